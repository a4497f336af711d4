"""The reward of a control: 1 for a completion that thinks, closes its block and gives an answer,
right or wrong, 0 for all else."""

from __future__ import annotations

from typing import Any

from forethought.grading.built_in_rewards import is_well_formed
from forethought.tasks.traces import THINK_OPEN


def thinks(completions: list[Any], **columns: Any) -> list[float]:
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [float(is_well_formed(t) and t.lstrip().startswith(THINK_OPEN)) for t in texts]
