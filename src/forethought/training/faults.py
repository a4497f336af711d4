"""A loss or gradient that is no finite number: which rows it came from, written down to look at.

    bad_batches/step_000012.json
        {"step", "cause", "micro_batch", "parameters", "num_rows", "rows": [{"is_bad", ...}]}

The update of such a step is skipped, and five in a row end the run (training/loop.py).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from forethought.run import BAD_BATCHES, Run, finite
from forethought.training.batch import Batch
from forethought.training.strips import Row

logger = logging.getLogger("forethought")

_MAX_FILES = 5  # of a run
_MAX_ROWS = 64  # of a file, those at fault first


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What was not finite. Rows are numbers of those that were packed for the update.

    Of a loss, `rows` are those of its micro-batch and `bad_rows` those whose part of it is not
    finite, with nobody to blame where only their sum is not. Of a gradient, `parameters` are
    those whose part of it is not finite; whose rows did that cannot be told.
    """

    cause: Literal["loss", "gradient"]
    micro_batch: int | None = None
    rows: tuple[int, ...] = ()
    bad_rows: tuple[int, ...] = ()
    parameters: tuple[str, ...] = ()


class LossNotFinite(Exception):
    """Ends the gradient of an update; `fault` says where it came from."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault)
        self.fault = fault


@torch.no_grad()
def fault_of_loss(loss: Tensor, logprobs: Tensor, batch: Batch, number: int) -> Fault | None:
    """The fault of micro-batch `number`, None when its loss is finite; logprobs: (N,)."""
    if torch.isfinite(loss):
        return None
    ratios = (logprobs - batch.old_logprobs).exp()  # they may overflow though both are finite
    parts = ratios + batch.sampler_logprobs + batch.weights * batch.advantages * logprobs
    at_fault = batch.rows[~torch.isfinite(parts)]
    return Fault(
        cause="loss",
        micro_batch=number,
        rows=tuple(sorted(set(batch.rows.tolist()))),
        bad_rows=tuple(sorted(set(at_fault.tolist()))),
    )


def report_fault(
    run: Run, step: int, fault: Fault, describe: Mapping[int, Mapping[str, Any]]
) -> None:
    """Write the fault and the rows it may have come from into the run folder, and log one line.

    `describe` holds what is known of every packed row. A run keeps the first few such files.
    """
    folder = run.folder / BAD_BATCHES
    name = f"step_{step:06d}.json"
    if len({path.name for path in folder.glob("step_*.json")} - {name}) >= _MAX_FILES:
        return
    folder.mkdir(exist_ok=True)
    order = [*fault.bad_rows, *(row for row in fault.rows if row not in fault.bad_rows)]
    rows = order if fault.rows else list(describe)
    content = {
        "step": step,
        "cause": fault.cause,
        "micro_batch": fault.micro_batch,
        "parameters": list(fault.parameters),
        "num_rows": len(rows),
        "rows": [{"is_bad": row in fault.bad_rows, **describe[row]} for row in rows[:_MAX_ROWS]],
    }
    path = run.write_json(f"{folder.name}/{name}", finite(content))
    logger.warning("NonFinite: %s; its update is skipped, see %s", _seen(step, fault), path)


def _seen(step: int, fault: Fault) -> str:
    if fault.cause == "gradient":
        return f"the gradient of step {step} is not finite"
    blamed = len(fault.bad_rows) or "only the sum"
    return (
        f"the loss of step {step} is not finite in micro-batch {fault.micro_batch} "
        f"({blamed} of {len(fault.rows)} rows)"
    )


def describe_rows(rows: Sequence[Row]) -> dict[int, dict[str, Any]]:
    """What is known of rows of text: their tokens, prompt and completion."""
    return {number: {"token_ids": list(row.token_ids)} for number, row in enumerate(rows)}
