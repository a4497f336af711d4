"""Deciding for the model how long it thinks: budget forcing, and no thinking at all.

Both continue the assistant's turn from a prefix and need an engine that can. Thinking is sent again
with the answer's request, so the ledger counts it as sampled once and as prompt after that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from forethought.grading.answers import THINK_CLOSE, THINK_OPEN
from forethought.strategies.base import Part, ask, at_least, require_able, solution_of, unsolved
from forethought.types import Completion, FinishReason, Problem, Request, Solution, Steps

OPENING = THINK_OPEN + "\n"
CLOSING = "\n" + THINK_CLOSE + "\n"


def think(
    problem: Problem, thought: str, max_tokens: int, stop: tuple[str, ...], reserve: int
) -> Part[Completion | None]:
    """Go on from `thought` until the think block would close, or at another stop string. A budget
    keeps `reserve` tokens for an answer, and room for the tag before it."""
    params = replace(
        problem.params,
        max_tokens=max_tokens,
        n=1,
        stop=(THINK_CLOSE, *stop),
        stop_at_boxed=False,
    )
    request = Request(
        messages=problem.messages,
        prefix=OPENING + thought,
        params=params,
        reserve=reserve + len(CLOSING),  # a token of it has at least one letter
    )
    found = yield from ask(request)
    return found[0] if found else None


def answer(problem: Problem, thought: str) -> Part[Solution]:
    """Close the think block after `thought` and let the model answer."""
    prefix = OPENING + thought.rstrip() + CLOSING
    params = replace(problem.params, n=1)
    found = yield from ask(Request(messages=problem.messages, prefix=prefix, params=params))
    return solution_of(found[0], prefix) if found else unsolved()


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetForcing:
    """s1's budget forcing (arXiv 2501.19393): thinking is cut at `max_thinking` tokens (by default
    the problem's max_tokens), and whenever the model would end it sooner it is told to `word`, up
    to `waits` times. Under a token budget, room for `answer_tokens` of answer is kept."""

    needs: ClassVar[tuple[str, ...]] = ("prefix",)
    max_thinking: int = 0
    waits: int = 0
    word: str = "Wait"
    answer_tokens: int = 32

    def __post_init__(self) -> None:
        at_least("max_thinking", self.max_thinking, 0)
        at_least("waits", self.waits, 0)
        at_least("answer_tokens", self.answer_tokens, 1)

    def solve(self, problem: Problem) -> Steps:
        require_able(self, problem.capabilities)
        left = self.max_thinking or problem.params.max_tokens
        thought, waits = "", self.waits
        while left > 0:
            more = yield from think(problem, thought, left, (), self.answer_tokens)
            if more is None and not thought:
                return unsolved()  # what there is belongs to siblings that have thought
            if more is None:
                break
            left -= max(1, len(more.token_ids))
            thought += before(more.text, THINK_CLOSE)
            ended = more.finish_reason in (FinishReason.STOP, FinishReason.EOS)
            if not ended or not waits or left <= 0:
                break
            thought, waits = f"{thought.rstrip()}\n{self.word}", waits - 1
        return (yield from answer(problem, thought))


@dataclass(frozen=True, slots=True, kw_only=True)
class NoThinking:
    """The model finds its thinking already done (arXiv 2504.09858) and answers at once. An empty
    `thought` is an empty think block."""

    needs: ClassVar[tuple[str, ...]] = ("prefix",)
    thought: str = "Okay, I think I have finished thinking."

    def solve(self, problem: Problem) -> Steps:
        require_able(self, problem.capabilities)
        return (yield from answer(problem, self.thought))


def before(text: str, mark: str) -> str:
    """`text` up to the first `mark`."""
    return text.partition(mark)[0]
