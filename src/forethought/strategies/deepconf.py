"""DeepConf (arXiv 2508.15260): completions that were sure of themselves vote, with that weight.

A token's confidence is minus the mean log-probability of its 20 likeliest alternatives. A trace is
scored by the mean over all tokens, over the last window, or by its least sure windows. Offline, the
best share of the traces votes. Online, a few traces set a threshold, and later ones are aborted
once a window falls below it; an engine without `aborts` samples them to the end and pays for them,
and they are left out of the vote all the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from statistics import fmean
from typing import ClassVar

from forethought.strategies.base import (
    ask,
    at_least,
    num_sampled,
    one_of,
    require_able,
    solution_of,
    unsolved,
)
from forethought.strategies.vote import elect, tally
from forethought.types import Completion, FinishReason, Problem, Request, Solution, Steps

NUM_TOP = 20
_BOTTOM_SHARE = 0.1


def group_confidences(confidences: Sequence[float], window: int) -> list[float]:
    """Means over every window of so many tokens; of a shorter trace, its one mean."""
    size = min(window, len(confidences))
    if not size:
        return []
    sums = list(accumulate(confidences, initial=0.0))
    return [(sums[i] - sums[i - size]) / size for i in range(size, len(sums))]


def mean_confidence(confidences: Sequence[float], window: int) -> float:
    """Over the whole trace."""
    return fmean(confidences)


def lowest_confidence(confidences: Sequence[float], window: int) -> float:
    """Of the least sure window."""
    return min(group_confidences(confidences, window))


def bottom_confidence(confidences: Sequence[float], window: int) -> float:
    """Over the least sure tenth of the windows, at least one."""
    groups = sorted(group_confidences(confidences, window))
    return fmean(groups[: max(1, int(len(groups) * _BOTTOM_SHARE))])


def tail_confidence(confidences: Sequence[float], window: int) -> float:
    """Over the last window."""
    return fmean(confidences[-window:])


MEASURES: Mapping[str, Callable[[Sequence[float], int], float]] = {
    "mean": mean_confidence,
    "lowest": lowest_confidence,
    "bottom": bottom_confidence,
    "tail": tail_confidence,
}


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which `percent` of the values lie, linear between neighbours (numpy's)."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepConf:
    """`n` traces of which the most confident `keep` percent vote.

    mode=online samples `warmup` whole traces, takes as threshold the confidence that `keep` percent
    of them reach with their least sure window, and goes on `warmup` at a time until the leading
    answer has a share of `consensus` of all weight. `window` is in tokens.
    """

    needs: ClassVar[tuple[str, ...]] = ("confidences",)
    n: int = 32
    mode: str = "offline"
    measure: str = "bottom"
    keep: float = 90.0
    window: int = 2048
    warmup: int = 8
    consensus: float = 0.95

    def __post_init__(self) -> None:
        at_least("n", self.n, 1)
        at_least("window", self.window, 1)
        at_least("warmup", self.warmup, 1)
        one_of("mode", self.mode, ("offline", "online"))
        one_of("measure", self.measure, tuple(MEASURES))
        if not 0 < self.keep <= 100:
            raise ValueError("keep must be above 0 and at most 100 percent")
        if not 0 < self.consensus <= 1:
            raise ValueError("consensus must be above 0 and at most 1")

    def solve(self, problem: Problem) -> Steps:
        require_able(self, problem.capabilities)
        params = replace(problem.params, top_logprobs=NUM_TOP)
        if self.mode == "offline":
            traces = yield from ask(
                Request(messages=problem.messages, params=replace(params, n=self.n))
            )
            return self._vote(traces, self.measure, self._threshold(traces, self.measure))
        traces = yield from ask(
            Request(messages=problem.messages, params=replace(params, n=min(self.warmup, self.n)))
        )
        threshold = self._threshold(traces, "lowest")
        params = replace(params, min_confidence=threshold, confidence_window=self.window)
        while traces and len(traces) < self.n and not self._is_settled(traces, threshold):
            count = min(self.warmup, self.n - len(traces))
            params = replace(params, n=count, first_sibling=len(traces))
            more = yield from ask(Request(messages=problem.messages, params=params))
            traces += more
            if len(more) < count:
                break
        return self._vote(traces, "lowest", threshold)

    def _score(self, trace: Completion, measure: str) -> float:
        """-inf for a trace without tokens or an aborted one, which is never kept."""
        if not trace.confidences or trace.finish_reason is FinishReason.ABORTED:
            return -math.inf
        return MEASURES[measure](trace.confidences, self.window)

    def _threshold(self, traces: Sequence[Completion], measure: str) -> float:
        known = [self._score(t, measure) for t in traces if t.confidences]
        return percentile(known, 100 - self.keep) if known else -math.inf

    def _kept(
        self, traces: Sequence[Completion], measure: str, threshold: float
    ) -> dict[int, float]:
        """The places of the traces that vote, with their scores."""
        scores = enumerate(self._score(trace, measure) for trace in traces)
        return {i: score for i, score in scores if score >= threshold and math.isfinite(score)}

    def _is_settled(self, traces: Sequence[Completion], threshold: float) -> bool:
        kept = self._kept(traces, "lowest", threshold)
        votes, _ = tally([solution_of(traces[i]) for i in kept], list(kept.values()))
        total = sum(vote.weight for vote in votes)
        return bool(votes) and votes[0].weight >= self.consensus * total

    def _vote(self, traces: Sequence[Completion], measure: str, threshold: float) -> Solution:
        if not traces:
            return unsolved()
        kept = self._kept(traces, measure, threshold)
        if not kept:
            return solution_of(traces[0])
        out = [t for i, t in enumerate(traces) if i not in kept]
        thrown = num_sampled([t for t in out if t.finish_reason is not FinishReason.ABORTED])
        found = elect([solution_of(traces[i]) for i in kept], list(kept.values()))
        return replace(found, discarded_tokens=thrown)
