"""Early exit by answer confidence (DEER, arXiv 2504.15895).

Where the model turns to another thought, it is made to answer on trial; when it is sure enough of
that answer, thinking ends there. The paper asks for the trial answer inside the think block, here
the block is closed first, so that the trial reads like the answers that the model was trained on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import ClassVar

from forethought.grading.answers import BOX_OPEN, THINK_CLOSE
from forethought.strategies.base import Part, ask, at_least, one_of, require_able, unsolved
from forethought.strategies.forcing import CLOSING, OPENING, answer, before, think
from forethought.types import Completion, Problem, Purpose, Request, Steps

_PLACES = {"newline": "\n"}  # what a spec cannot spell


def mean_probability(logprobs: Sequence[float]) -> float:
    return fmean(map(math.exp, logprobs))


def geometric_probability(logprobs: Sequence[float]) -> float:
    return math.exp(fmean(logprobs))


def least_probability(logprobs: Sequence[float]) -> float:
    return math.exp(min(logprobs))


CONFIDENCES: Mapping[str, Callable[[Sequence[float]], float]] = {
    "mean": mean_probability,
    "geometric": geometric_probability,
    "min": least_probability,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyExit:
    """Think until a trial answer has `confidence` above `threshold`.

    Tried wherever the model writes `at` ("newline" for the end of a line), `max_probes` times at
    most, with trial answers of up to `probe_tokens`. `max_thinking` caps the thinking (by default
    at the problem's max_tokens); `answer_tokens` are kept free of a token budget.
    """

    needs: ClassVar[tuple[str, ...]] = ("prefix", "logprobs")
    at: str = "Wait"
    threshold: float = 0.95
    confidence: str = "mean"
    max_probes: int = 10
    probe_tokens: int = 20
    max_thinking: int = 0
    answer_tokens: int = 32

    def __post_init__(self) -> None:
        one_of("confidence", self.confidence, tuple(CONFIDENCES))
        at_least("max_probes", self.max_probes, 0)
        at_least("probe_tokens", self.probe_tokens, 1)
        at_least("max_thinking", self.max_thinking, 0)
        at_least("answer_tokens", self.answer_tokens, 1)
        if not self.at:
            raise ValueError("at must not be empty")

    def solve(self, problem: Problem) -> Steps:
        require_able(self, problem.capabilities)
        mark = _PLACES.get(self.at, self.at)
        left, thought, discarded = self.max_thinking or problem.params.max_tokens, "", 0
        num_probes = 0
        while left > 0:
            stop = (mark,) if num_probes < self.max_probes else ()
            more = yield from think(problem, thought, left, stop, self.answer_tokens)
            if more is None and not thought:
                return unsolved()
            if more is None:
                break
            left -= max(1, len(more.token_ids))
            new = before(more.text, THINK_CLOSE)
            if THINK_CLOSE in more.text or not any(s in new for s in stop):
                thought += new
                break
            thought += before(new, mark)
            num_probes += 1
            trial = yield from self._probe(problem, thought)
            if trial is None:
                break
            discarded += trial.usage.sampled_tokens
            if trial.logprobs and CONFIDENCES[self.confidence](trial.logprobs) > self.threshold:
                break
            thought += mark
        solution = yield from answer(problem, thought)
        return replace(solution, discarded_tokens=discarded)

    def _probe(self, problem: Problem, thought: str) -> Part[Completion | None]:
        """A trial answer after `thought`, its box already opened."""
        params = replace(
            problem.params, temperature=0.0, n=1, max_tokens=self.probe_tokens, stop_at_boxed=True
        )
        prefix = OPENING + thought.rstrip() + CLOSING + BOX_OPEN
        request = Request(
            messages=problem.messages, prefix=prefix, params=params, purpose=Purpose.PROBE
        )
        found = yield from ask(request)
        return found[0] if found else None
