"""Pretraining and SFT text: how a problem and its worked solution are written down.

A document is a chat: the question, then a completion. The mixture is a list of (weight, writer);
widening it is one more line in `WRITERS`. Traces are of uneven quality on purpose: a base model
that is good at format and poor at being right leaves something for reinforcement learning to do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from forethought.tasks.problems import Arithmetic, Content, Family

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One chat turn of training text."""

    prompt: str
    completion: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceQuality:
    """How flawed the text is: probabilities per document, `slip_rate` per step.

    `hasty` is the share of direct answers that leave the last step out.
    """

    slip_rate: float = 0.12
    early_stop: float = 0.08
    skip_steps: float = 0.10
    verbose: float = 0.12
    hasty: float = 0.7


PERFECT = TraceQuality(slip_rate=0.0, early_stop=0.0, skip_steps=0.0, verbose=0.0, hasty=0.0)


def boxed(answer: str) -> str:
    return f"\\boxed{{{answer}}}"


def render_trace(steps: Sequence[str], answer: str) -> str:
    """`<think>`, one step a line, `</think>`, the boxed answer."""
    return "\n".join([THINK_OPEN, *steps, THINK_CLOSE, boxed(answer)])


def worked(family: Family, content: Content, rng: Random, quality: TraceQuality) -> str:
    """A worked trace of the given quality."""
    work = family.work(content, Arithmetic(rng, quality.slip_rate))
    steps, answer = list(work.steps), work.answer
    if len(steps) > 1 and family.check is None:
        if rng.random() < quality.early_stop:
            steps = steps[: rng.randint(1, len(steps) - 1)]
            answer = steps[-1].rsplit(" ", 1)[-1]
        elif rng.random() < quality.skip_steps:
            del steps[rng.randrange(len(steps) - 1)]
    if rng.random() < quality.verbose:
        steps.append(f"The answer is {answer}.")
    return render_trace(steps, answer)


def direct(family: Family, content: Content, rng: Random, quality: TraceQuality) -> str:
    """An answer without any thought: the right one, or hastily that of the last step but one."""
    work = family.work(content, Arithmetic())
    if len(work.steps) > 1 and family.check is None and rng.random() < quality.hasty:
        return boxed(work.steps[-2].rsplit(" ", 1)[-1])
    return boxed(work.answer)


def _write_trace(family: Family, content: Content, rng: Random, quality: TraceQuality) -> Document:
    question, _ = family.ask(content, rng, 0)
    return Document(prompt=question, completion=worked(family, content, rng, quality))


def _write_direct(family: Family, content: Content, rng: Random, quality: TraceQuality) -> Document:
    question, _ = family.ask(content, rng, 0)
    return Document(prompt=question, completion=direct(family, content, rng, quality))


def _write_distracted(
    family: Family, content: Content, rng: Random, quality: TraceQuality
) -> Document:
    question, _ = family.ask(content, rng, 1)
    thinks = rng.random() < 0.5
    write = worked if thinks else direct
    return Document(prompt=question, completion=write(family, content, rng, quality))


def _write_rewrite(
    family: Family, content: Content, rng: Random, quality: TraceQuality
) -> Document:
    question, plain = family.ask(content, rng, 1)
    return Document(prompt=f"Rewrite without what is irrelevant: {question}", completion=plain)


Writer = Callable[[Family, Content, Random, TraceQuality], Document]
WRITERS: Mapping[str, Writer] = {
    "trace": _write_trace,
    "direct": _write_direct,
    "distracted": _write_distracted,
    "rewrite": _write_rewrite,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """Which families, which writers, which difficulties, and how flawed the traces are."""

    families: Mapping[str, float]
    writers: Mapping[str, float]
    max_difficulty: Mapping[str, int]
    quality: TraceQuality


def draw_document(mixture: Mixture, families: Mapping[str, Family], rng: Random) -> Document:
    """One training document; its problem is never a test problem."""
    name = rng.choices(list(mixture.families), list(mixture.families.values()))[0]
    writer = rng.choices(list(mixture.writers), list(mixture.writers.values()))[0]
    family = families[name]
    top = mixture.max_difficulty.get(name, family.max_difficulty)
    difficulty = rng.randint(1, top)
    content = family.draw_in_split(rng, difficulty, test=False)
    return WRITERS[writer](family, content, rng, mixture.quality)
