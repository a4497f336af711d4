"""Learning again from groups of earlier steps.

Rollout replay of DOTS+RR (Sun et al. 2025, arXiv 2506.05316): a share of each batch is not sampled
but drawn from a first-in, first-out buffer of earlier groups, which only those with signal enter.
They were sampled by an older policy, so the ratio of the loss is that of the learning policy to the
one that sampled, pi / pi_behaviour, whose log-probabilities a rollout carries, and it is clipped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random
from statistics import fmean

from forethought.training.filters import has_signal
from forethought.types import Rollout, RolloutGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A group in the buffer: the index of its example in the task, and its rollouts."""

    index: int
    rollouts: tuple[Rollout, ...]


def push(
    buffer: Sequence[Kept], sampled: Iterable[tuple[int, RolloutGroup]], capacity: int
) -> tuple[Kept, ...]:
    """The buffer after a step's groups, (index, group) each: the last `capacity` with signal."""
    new = [Kept(index=i, rollouts=g.rollouts) for i, g in sampled if has_signal(g)]
    return (*buffer, *new)[-capacity:]


def num_replayed(buffer: Sequence[Kept], share: float, num_groups: int) -> int:
    """How many of a batch of `num_groups` are replayed: its share, as far as the buffer goes.

    At least one group is sampled.
    """
    return min(int(share * num_groups), len(buffer), num_groups - 1)


def draw_kept(buffer: Sequence[Kept], *, rng: Random, count: int) -> list[Kept]:
    """`count` different entries of the buffer, each as likely as any other."""
    return rng.sample(list(buffer), count)


def mean_age(kept: Sequence[Kept], policy_version: int) -> float:
    """Updates between the policies that sampled the entries and the given one, on average."""
    ages = [policy_version - r.policy_version for entry in kept for r in entry.rollouts]
    return fmean(ages) if ages else math.nan
