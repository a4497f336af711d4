"""Drawing examples near a failure rate of one half, where a group says the most.

DOTS (Sun et al. 2025, arXiv 2506.05316) draws example q with

    P(q) proportional to exp(-|d_q - 1/2| / temperature)

since the squared gradient of a group goes with d (1 - d). The paper predicts d_q of every example
anew each step, from the rollouts of a few reference examples and attention over embeddings. There
is no such model here: d_q is the failure rate of the example's own past rollouts, else that of its
bucket (examples alike by what the task says of them), else 1/2. What was seen counts half as much
at each new visit, because the policy has moved on. An example once found hopeless keeps that mark
until it is drawn again, so `temperature` should leave it a chance: the paper's 0.001 would not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import TypeVar

from forethought.types import Example, RolloutGroup

Key = TypeVar("Key")

_BUCKET_KEYS = ("family", "difficulty", "level", "subject")
_FORGETTING = 0.5
_MAX_CANDIDATES = 4096  # of a larger task, so many drawn at random stand for all


@dataclass(frozen=True, slots=True)
class Rate:
    """Failures among rollouts, both faded by age. A failure is 1 - score."""

    failures: float = 0.0
    rollouts: float = 0.0

    @property
    def value(self) -> float:
        return self.failures / self.rollouts

    def after(self, failures: float, rollouts: int) -> Rate:
        """With what was seen now, and half of what was seen before."""
        return Rate(self.failures * _FORGETTING + failures, self.rollouts * _FORGETTING + rollouts)


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureRates:
    """Failure rates by index of the example, and by bucket."""

    examples: Mapping[int, Rate] = field(default_factory=dict)
    buckets: Mapping[str, Rate] = field(default_factory=dict)


def bucket_of(example: Example) -> str:
    """What the task says of the example's kind: family, difficulty, level, subject; "" if nothing.

    Examples of one bucket stand for each other while they have no history of their own, as is
    always so in a task of more examples than a run visits.
    """
    known = {key: example.meta.get(key) for key in _BUCKET_KEYS}
    return " ".join(f"{k}={v}" for k, v in known.items() if isinstance(v, (str, int, float)))


def failure_rate(history: FailureRates, index: int, bucket: str) -> float:
    """d_q: of the example, else of its bucket, else 1/2."""
    rate = history.examples.get(index) or history.buckets.get(bucket)
    return rate.value if rate else 0.5


def draw_near_half(
    history: FailureRates,
    bucket: Callable[[int], str],
    *,
    size: int,
    rng: Random,
    count: int,
    temperature: float,
    taken: Collection[int] = (),
) -> list[int]:
    """`count` examples, one after the other by P(q) without replacement, none of `taken`.

    Drawn by the Gumbel trick (Kool et al. 2019, arXiv 1903.06059): the largest of
    log P(q) - log(-log u_q). Fewer when `size` leaves fewer.
    """
    most = max(_MAX_CANDIDATES, 16 * count)
    candidates = range(size) if size <= most else rng.sample(range(size), most)
    keys: dict[int, float] = {}
    for index in candidates:
        noise = -math.log(-math.log(rng.random() or 0.5))
        if index not in taken:
            gap = abs(failure_rate(history, index, bucket(index)) - 0.5)
            keys[index] = noise - gap / temperature
    return sorted(keys, key=lambda index: -keys[index])[:count]


def count_failures(
    history: FailureRates, seen: Iterable[tuple[int, str, RolloutGroup]]
) -> FailureRates:
    """The history after a step's groups, (index, bucket, group) each; the ungraded do not count."""
    examples: dict[int, list[float]] = {}
    buckets: dict[str, list[float]] = {}
    for index, bucket, group in seen:
        scores = [r.grade.score for r in group.rollouts if r.grade and r.grade.score is not None]
        examples.setdefault(index, []).extend(1.0 - s for s in scores)
        if bucket:
            buckets.setdefault(bucket, []).extend(1.0 - s for s in scores)
    return FailureRates(
        examples=_faded(history.examples, examples), buckets=_faded(history.buckets, buckets)
    )


def _faded(before: Mapping[Key, Rate], failures: Mapping[Key, list[float]]) -> dict[Key, Rate]:
    found = dict(before)
    for key, values in failures.items():
        if values:
            found[key] = found.get(key, Rate()).after(sum(values), len(values))
    return found
