"""What a step of RL says about itself; docs/metrics.md defines every name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import fmean, pstdev
from typing import Any

from forethought.evaluation.curves import Cell
from forethought.evaluation.evaluate import Evaluation
from forethought.tasks.traces import THINK_OPEN
from forethought.training.filters import has_signal
from forethought.types import GradeStatus, Rollout, RolloutGroup


def describe_rollouts(
    groups: Sequence[RolloutGroup], num_kept: int, sample_seconds: float
) -> dict[str, float]:
    """Reward, signal, length, status and speed of one step's rollouts."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    count = len(rollouts)
    rewards = [r.reward for r in rollouts if r.reward is not None]
    lengths = [r.num_sampled for r in rollouts]
    metrics = {
        "reward/mean": fmean(rewards) if rewards else float("nan"),
        "reward/std": pstdev(rewards) if rewards else float("nan"),
        "rollout/signal_frac": fmean(has_signal(g) for g in groups),
        "rollout/kept_frac": num_kept / count,
        "rollout/ungraded_frac": 1 - len(rewards) / count,
        "rollout/length_mean": fmean(lengths),
        "rollout/length_max": float(max(lengths)),
        "rollout/truncated_frac": fmean(r.finish_reason.is_truncated for r in rollouts),
        "rollout/think_frac": fmean(r.text.lstrip().startswith(THINK_OPEN) for r in rollouts),
        "rollout/tokens_per_second": sum(lengths) / sample_seconds,
        "policy/entropy": -sum(sum(r.logprobs) for r in rollouts) / sum(lengths),
        "total/rollouts": float(count),
        "total/sampled_tokens": float(sum(lengths)),
    }
    names = dict.fromkeys(name for r in rollouts for name in r.reward_parts)
    for name in names:
        values = [v for r in rollouts if (v := r.reward_parts.get(name)) is not None]
        metrics[f"reward/{name}"] = fmean(values) if values else float("nan")
    statuses = Counter(r.grade.status for r in rollouts if r.grade is not None)
    for status in GradeStatus:
        metrics[f"grade/{status}_frac"] = statuses[status] / count
    seconds = (r.grade.seconds for r in rollouts if r.grade is not None)
    metrics["time/slowest_grade_seconds"] = max(seconds, default=0.0)
    return metrics


def evaluation_metrics(found: Evaluation) -> dict[str, float]:
    """An evaluation on the way, as metrics."""
    length = found.tokens
    return {
        "eval/accuracy": found.accuracy,
        "eval/accuracy_low": found.low,
        "eval/accuracy_high": found.high,
        "eval/length_mean": length.mean,
        "eval/length_low": length.low,
        "eval/length_high": length.high,
        "eval/truncated_frac": found.truncated_frac,
    }


def strategy_metrics(cell: Cell) -> dict[str, float]:
    """An evaluation on the way by a strategy, as metrics; costs are means a problem."""
    found = cell.summary()
    right = {key: found[key] for key in ("accuracy", "low", "high")}
    shown = {key: float("nan") if value is None else value for key, value in right.items()}
    return {
        "eval/accuracy": shown["accuracy"],
        "eval/accuracy_low": shown["low"],
        "eval/accuracy_high": shown["high"],
        "eval/truncated_frac": fmean(s.finish_reason.is_truncated for s in cell.solutions),
        "eval/budget_frac": found["budget_frac"],
        "eval/total_tokens": found["total_tokens"],
        "eval/sampled_tokens": found["sampled_tokens"],
        "eval/completions": found["completions"],
    }


def transcript_rows(groups: Iterable[RolloutGroup]) -> list[dict[str, object]]:
    """The first two siblings of each group, readable."""
    return [
        {
            "example_id": group.example.id,
            "question": group.example.messages[-1]["content"],
            "answer": group.example.answer,
            "completion": rollout.text,
            "reward": rollout.reward,
            "advantage": rollout.advantage,
            "status": rollout.grade.status if rollout.grade else None,
            "finish_reason": rollout.finish_reason,
            "num_tokens": rollout.num_sampled,
        }
        for group in groups
        for rollout in group.rollouts[:2]
    ]


def describe_learned(rollouts: Sequence[Rollout], kept: Sequence[int]) -> dict[int, dict[str, Any]]:
    """What to look at in the kept rollouts, by their number among these."""
    return {
        number: {
            "example_id": rollouts[i].example_id,
            "reward": rollouts[i].reward,
            "advantage": rollouts[i].advantage,
            "finish_reason": rollouts[i].finish_reason,
            "completion": rollouts[i].text,
            "token_ids": list(rollouts[i].token_ids),
            "num_prompt": rollouts[i].sampled_mask.index(True),
        }
        for number, i in enumerate(kept)
    }
