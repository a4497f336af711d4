"""What every stage does around its steps: resume, log, checkpoint, stop when asked."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from itertools import takewhile
from pathlib import Path

import torch
from transformers import PreTrainedModel

from forethought.errors import TrainingStopped
from forethought.models.pages import keep_pages
from forethought.run import Run
from forethought.sampling.draw import stable_seed
from forethought.training.checkpoint import load_state, save_state
from forethought.training.interrupt import stop_flag
from forethought.training.update import Optimizers

Metrics = dict[str, float]
StepFunction = Callable[[int], Metrics]
OnStep = Callable[[int, Mapping[str, float]], None]
StateFiles = Callable[[Path], None]  # writes files into a checkpoint's folder, or reads them

_MAX_SKIPPED = 5  # updates in a row with a non-finite gradient


def _nothing(folder: Path) -> None:
    """A stage with no state beyond weights, optimizer and counters."""


def run_steps(
    run: Run,
    model: PreTrainedModel,
    optimizers: Optimizers,
    step_function: StepFunction,
    *,
    num_steps: int,
    checkpoint_every: int,
    on_step: OnStep | None = None,
    on_resume: Callable[[int], None] | None = None,
    save_extra: StateFiles = _nothing,
    load_extra: StateFiles = _nothing,
) -> Metrics:
    """Call `step_function(step)` for steps 1..num_steps, going on from the last checkpoint.

    `on_resume(step)` is called once, with the weights in place, before the first step. The step
    function's metrics named "total/..." add up over the run and survive a resume. `save_extra` and
    `load_extra` write and read what else a stage must not forget.
    Returns these totals. Raises TrainingStopped after 5 skipped updates in a row or when the
    weights are not finite, and KeyboardInterrupt when the user asked to stop, with a checkpoint
    to resume from.
    """
    keep_pages(model)
    start, totals = resume_state(run, model, optimizers, load_extra)

    def save(folder: Path) -> None:
        _refuse_broken(model)
        save_state(folder, model, optimizers, totals)
        save_extra(folder)

    if on_resume is not None:
        on_resume(start)
    skipped = _skipped_last(run)
    with stop_flag() as stop:
        for step in range(start + 1, num_steps + 1):
            began = time.perf_counter()
            torch.manual_seed(stable_seed("step", run.info["seed"], step))  # of dropout
            metrics = step_function(step)
            for name in [n for n in metrics if n.startswith("total/")]:
                totals[name] = metrics[name] = totals.get(name, 0.0) + metrics[name]
            metrics["time/step_seconds"] = time.perf_counter() - began
            run.log(step, metrics)
            if on_step is not None:
                on_step(step, metrics)
            skipped = skipped + 1 if metrics.get("optim/skipped") else 0
            if step % checkpoint_every == 0 or step == num_steps or stop:
                run.save_checkpoint(step, save)
            if skipped >= _MAX_SKIPPED:
                raise TrainingStopped(
                    f"the loss or gradient was not finite in {skipped} updates in a row up to step "
                    f"{step}, see bad_batches in '{run.folder}'; start a new run with a lower "
                    "optimizer.learning_rate"
                )
            if stop:  # also after the last step: a pipeline or quickstart would go on
                raise KeyboardInterrupt
    return totals


def _skipped_last(run: Run) -> int:
    """How many updates in a row the run skipped before it was stopped."""
    rows = reversed(run.metrics())
    return sum(1 for _ in takewhile(lambda row: row.get("optim/skipped"), rows))


def _refuse_broken(model: PreTrainedModel) -> None:
    """Raise TrainingStopped rather than let a broken model take a good checkpoint's place."""
    if not all(bool(p.isfinite().all()) for p in model.parameters()):
        raise TrainingStopped(
            "the weights are no longer finite and were not saved; start a new run with a lower "
            "optimizer.learning_rate"
        )


def resume_state(
    run: Run, model: PreTrainedModel, optimizers: Optimizers, load_extra: StateFiles = _nothing
) -> tuple[int, Metrics]:
    """(last step, totals) of the newest good checkpoint, loaded into place; (0, {}) without one."""
    found = run.latest_checkpoint()
    if found is None:
        run.truncate_metrics(-1)  # the measurement before the first step is made again
        return 0, {}
    step, folder = found
    totals = load_state(folder, model, optimizers)
    load_extra(folder)
    run.truncate_metrics(step)
    return step, totals
