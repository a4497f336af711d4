"""Skipping examples before they are sampled, because lately they taught nothing.

GRESO (Zheng et al. 2025, arXiv 2506.02177): a prompt whose siblings all did equally well tends to
do so again. An example that was so at its last z visits is passed over with probability

    1 - max(p ** z, 0.01)

with p = p_easy where all its siblings were right, p_hard where all were wrong. Both start at 0.5.
After every step of the second and later epochs each moves by 0.01, down where the share of such
groups among the sampled ones is at or above its target and up where it is below, within 0.05 to
0.95. The targets are a third (easy) and two thirds (hard) of `target_dead_share`.

As in the code released with the paper, z counts visits of one kind: an easy one after hard ones
counts as the first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from random import Random
from statistics import fmean

from forethought.training.filters import has_signal
from forethought.training.text import shuffled_index
from forethought.types import RolloutGroup

_STEP, _LOWEST, _HIGHEST = 0.01, 0.05, 0.95
_LEAST_CHANCE = 0.01  # no example is ever given up


@dataclass(frozen=True, slots=True, kw_only=True)
class Greso:
    """`streaks[i]` is z of example i where its last z visits were all easy, -z where all hard."""

    p_easy: float = 0.5
    p_hard: float = 0.5
    streaks: Mapping[int, int] = field(default_factory=dict)


def skip_probability(state: Greso, index: int) -> float:
    """1 - max(p ** z, 0.01); 0 for an example never seen, or last seen with signal."""
    streak = state.streaks.get(index, 0)
    chance = state.p_easy if streak > 0 else state.p_hard
    return 1.0 - max(chance ** abs(streak), _LEAST_CHANCE)


def walk_past(
    state: Greso, *, size: int, seed: int, cursor: int, count: int
) -> tuple[list[int], int]:
    """(`count` examples, cursor after them): the shuffled walk over `size` from `cursor`, less
    what is skipped. Whether a position is skipped is a pure function of (state, seed, position).
    """
    found: list[int] = []
    while len(found) < count:
        index = shuffled_index(size, seed, cursor)
        draw = Random(f"{seed}/skip/{cursor}").random()
        if draw >= skip_probability(state, index):
            found.append(index)
        cursor += 1
    return found, cursor


def kind_of(group: RolloutGroup) -> int:
    """1 for an easy group, -1 for a hard one, 0 for one with signal or without a grade.

    Easy and hard groups have equal rewards; easy is a mean score of a half or more.
    """
    scores = [r.grade.score for r in group.rollouts if r.grade and r.grade.score is not None]
    if has_signal(group) or not scores:
        return 0
    return 1 if fmean(scores) >= 0.5 else -1


def count_visits(state: Greso, visits: Iterable[tuple[int, int]]) -> Greso:
    """The state after visits, (example, kind) each, in their order."""
    streaks = dict(state.streaks)
    for index, kind in visits:
        before = streaks.pop(index, 0)
        if kind:
            streaks[index] = before + kind if before * kind > 0 else kind
    return replace(state, streaks=streaks)


def adjust(state: Greso, kinds: list[int], target_dead_share: float) -> Greso:
    """The state with p_easy and p_hard moved towards their targets, after a step's `kinds`."""
    easy, hard = kinds.count(1) / len(kinds), kinds.count(-1) / len(kinds)
    return replace(
        state,
        p_easy=_moved(state.p_easy, down=easy >= target_dead_share / 3),
        p_hard=_moved(state.p_hard, down=hard >= target_dead_share * 2 / 3),
    )


def _moved(chance: float, *, down: bool) -> float:
    return min(max(chance - _STEP if down else chance + _STEP, _LOWEST), _HIGHEST)
