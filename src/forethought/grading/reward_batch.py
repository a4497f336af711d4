"""What every reward sees: the completions of one step, with all that is known about them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from forethought.errors import RewardError
from forethought.types import Example, Grade


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardBatch:
    """What a reward sees: B completions, and for each its example, grade and token ids.

    `prompts` holds B texts, or None when the prompts are the examples' messages. `opened` says
    that every prompt ends inside a think block. `step` is the optimizer step, from 1, of
    `num_steps`, and `seed` the run's; all are 0 outside training. What a reward wants logged beside
    its value it adds to `metrics`, where numbers of one name are averaged.
    """

    examples: tuple[Example, ...]
    completions: tuple[str, ...]
    grades: tuple[Grade, ...]
    completion_ids: tuple[tuple[int, ...], ...]
    prompts: tuple[str, ...] | None = None
    opened: bool = False
    step: int = 0
    num_steps: int = 0
    seed: int = 0
    metrics: dict[str, list[float]] = field(default_factory=dict)

    def log_metric(self, name: str, value: float) -> None:
        """Have `value` averaged into the metric `reward/name` of this step."""
        if name in ("mean", "std"):
            raise RewardError(f"a logged value cannot be named {name}, as a metric is; rename it")
        self.metrics.setdefault(name, []).append(float(value))


RewardFunction: TypeAlias = Callable[[RewardBatch], Sequence[float | None]]
