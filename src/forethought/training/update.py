"""One optimizer update: schedule, finite check, clip, step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from forethought.schema_tables import Optimizer
from forethought.training.muon import Muon

Optimizers = tuple[torch.optim.Optimizer, ...]
_CLIP_EPSILON = 1e-6  # torch's


@dataclass(frozen=True, slots=True)
class UpdateResult:
    """What an update did. `skipped` is True when the weights were left alone, as the loss or the
    gradient was not finite; `bad_parameters` names those whose gradient was not."""

    grad_norm: float
    learning_rate: float
    skipped: bool
    bad_parameters: tuple[str, ...] = ()

    def metrics(self) -> dict[str, float]:
        return {
            "optim/grad_norm": self.grad_norm,
            "optim/learning_rate": self.learning_rate,
            "optim/skipped": float(self.skipped),
        }


def build_optimizers(model: PreTrainedModel, config: Optimizer) -> Optimizers:
    """AdamW (Loshchilov & Hutter 2019), with Muon for the blocks' matrices when asked for.

    Only matrices decay, not norms or biases.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    caller: Any = model  # transformers' own annotations are in the way
    tables = {id(caller.get_input_embeddings().weight), id(caller.get_output_embeddings().weight)}
    is_muon = {
        id(p): config.muon_learning_rate is not None and p.ndim == 2 and id(p) not in tables
        for p in trained
    }
    rest = [p for p in trained if not is_muon[id(p)]]
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(
        [g for g in groups if g["params"]],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        fused=True,
    )
    if config.muon_learning_rate is None:
        return (adamw,)
    matrices = [p for p in trained if is_muon[id(p)]]
    muon = Muon(matrices, lr=config.muon_learning_rate, weight_decay=config.weight_decay)
    return (adamw, muon)


def schedule_at(config: Optimizer, step: int, num_steps: int) -> float:
    """The fraction of the full learning rate at update `step` (0 is the first) of `num_steps`."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    done = (step - config.warmup_steps) / max(1, num_steps - config.warmup_steps)
    left = 1 - done if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return config.final_fraction + (1 - config.final_fraction) * left


def apply_update(
    model: nn.Module,
    optimizers: Optimizers,
    config: Optimizer,
    step: int,
    num_steps: int,
    *,
    is_sound: bool = True,
) -> UpdateResult:
    """Clip the summed gradient to `max_grad_norm` and step; skip when it is not finite.

    `step` counts from 0. Without `is_sound` the gradient is thrown away.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.grad is not None}
    gradients = [p.grad for p in parameters.values() if p.grad is not None]
    total = torch.nn.utils.get_total_norm(gradients)
    norm = float(total) if is_sound else math.nan
    finite = math.isfinite(norm)
    if finite and norm + _CLIP_EPSILON > config.max_grad_norm:  # otherwise the factor is 1
        torch.nn.utils.clip_grads_with_norm_(parameters.values(), config.max_grad_norm, total)
    bad = _not_finite(parameters) if is_sound and not finite else ()
    fraction = schedule_at(config, step, num_steps)
    rates = (config.learning_rate, config.muon_learning_rate)
    for optimizer, rate in zip(optimizers, rates, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = (rate or 0.0) * fraction
        if finite:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return UpdateResult(
        grad_norm=norm,
        learning_rate=config.learning_rate * fraction,
        skipped=not finite,
        bad_parameters=bad,
    )


def _not_finite(parameters: Mapping[str, nn.Parameter]) -> tuple[str, ...]:
    """Names of those whose gradient holds what is no finite number."""
    gradients = {name: p.grad for name, p in parameters.items()}
    return tuple(n for n, g in gradients.items() if g is not None and not g.isfinite().all())
