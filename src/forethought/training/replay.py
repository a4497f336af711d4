"""Learning again from groups of earlier steps.

Rollout replay of DOTS+RR (Sun et al. 2025, arXiv 2506.05316): a share of each batch is not sampled
but drawn from a first-in, first-out buffer of earlier groups, which only those with signal enter.
They were sampled by an older policy, so the ratio of the loss is that of the learning policy to the
one that sampled, pi / pi_behaviour, whose log-probabilities a rollout carries, and it is clipped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from forethought.training.filters import has_signal
from forethought.types import FinishReason, Grade, GradeStatus, Rollout, RolloutGroup


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


def mean_age(kept: Sequence[Kept], step: int) -> float:
    """Updates between sampling and learning, on average; a rollout of this step's policy has 0."""
    ages = [step - 1 - r.policy_version for entry in kept for r in entry.rollouts]
    return sum(ages) / len(ages)


def kept_to_json(kept: Kept) -> dict[str, Any]:
    """An entry as JSON values. Numbers come back as the same bits."""
    return {"index": kept.index, "rollouts": [_rollout_to_json(r) for r in kept.rollouts]}


def kept_from_json(data: dict[str, Any]) -> Kept:
    rollouts = tuple(_rollout_from_json(row) for row in data["rollouts"])
    return Kept(index=data["index"], rollouts=rollouts)


def _rollout_to_json(rollout: Rollout) -> dict[str, Any]:
    grade = rollout.grade
    return {
        "example_id": rollout.example_id,
        "token_ids": list(rollout.token_ids),
        "sampled_mask": [int(sampled) for sampled in rollout.sampled_mask],
        "logprobs": list(rollout.logprobs),
        "text": rollout.text,
        "finish_reason": rollout.finish_reason,
        "grade": None
        if grade is None
        else [grade.score, grade.status, grade.extracted, grade.seconds],
        "reward": rollout.reward,
        "reward_parts": dict(rollout.reward_parts),
        "policy_version": rollout.policy_version,
    }


def _rollout_from_json(row: dict[str, Any]) -> Rollout:
    grade = row["grade"] and Grade(
        score=row["grade"][0],
        status=GradeStatus(row["grade"][1]),
        extracted=row["grade"][2],
        seconds=row["grade"][3],
    )
    rollout = Rollout(
        **{name: row[name] for name in ("example_id", "text", "reward", "policy_version")},
        token_ids=tuple(row["token_ids"]),
        sampled_mask=tuple(map(bool, row["sampled_mask"])),
        logprobs=tuple(row["logprobs"]),
        finish_reason=FinishReason(row["finish_reason"]),
        reward_parts=row["reward_parts"],
    )
    return replace(rollout, grade=grade)
