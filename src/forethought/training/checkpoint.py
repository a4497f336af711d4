"""What a stage needs to go on as if it had never stopped: weights, optimizer state, counters.

Weights that do not learn are left out: the recipe's model holds them.

There are no random states to keep: every draw is a pure function of (seed, step). What was measured
at the start is kept: a resumed run must compute in the number formats it began with.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.nn import Parameter
from transformers import PreTrainedModel

from forethought.models.hardware import Purpose, pick_dtype
from forethought.run import Run
from forethought.training.update import Optimizers

_WEIGHTS, _OPTIMIZER, _COUNTERS = "weights.safetensors", "optimizer.pt", "counters.json"


def save_state(
    folder: Path,
    model: PreTrainedModel,
    optimizers: Optimizers,
    counters: Mapping[str, float],
) -> None:
    """Write the fp32 weights that learn, optimizer state and counters into `folder`."""
    weights = {name: p.detach().contiguous() for name, p in _learned(model)}
    save_file(weights, folder / _WEIGHTS)
    save_objects([o.state_dict() for o in optimizers], folder / _OPTIMIZER)
    (folder / _COUNTERS).write_text(json.dumps(dict(counters)))


def save_objects(state: object, path: Path) -> None:
    """torch.save, by a file that is opened here: a full disk is told as an OSError then."""
    with path.open("wb") as file:
        torch.save(state, file)


@torch.no_grad()
def load_state(folder: Path, model: PreTrainedModel, optimizers: Optimizers) -> dict[str, float]:
    """Restore what `save_state` wrote, in place; returns the counters."""
    weights = load_file(folder / _WEIGHTS, device=str(model.device))
    for name, parameter in _learned(model):
        parameter.copy_(weights[name])
    states = torch.load(folder / _OPTIMIZER, weights_only=True, map_location=model.device)
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict(state)
    return load_counters(folder)


def load_counters(folder: Path) -> dict[str, float]:
    """The counters that `save_state` wrote, without the rest."""
    counters: dict[str, float] = json.loads((folder / _COUNTERS).read_text())
    return counters


def _learned(model: PreTrainedModel) -> Iterator[tuple[str, Parameter]]:
    """named_parameters names tied weights once, as safetensors wants it."""
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad)


def settled_dtypes(run: Run, name: str, device: str) -> dict[Purpose, torch.dtype]:
    """The number formats of a run, by purpose: what its first start picked for `name`."""
    path = run.folder / "dtypes.json"
    if not path.exists():
        purposes: tuple[Purpose, ...] = ("sampling", "training")
        run.write_json(path.name, {p: pick_dtype(name, p, device) for p in purposes})
    picked: dict[Purpose, str] = json.loads(path.read_text(encoding="utf-8"))
    return {purpose: getattr(torch, dtype) for purpose, dtype in picked.items()}
