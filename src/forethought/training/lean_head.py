"""A head's log-probabilities by compiled passes (`training/softmax.py`). It needs numba."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from forethought.models.kept import cast_weight, give_back, take_table
from forethought.sampling.scaled import values_of
from forethought.sampling.team import threads_for
from forethought.training.softmax import ROWS_TOGETHER, sum_up, to_gradient


class LeanHead(Function):
    """log softmax(hidden @ weight.T / temperature)[target], as `heads._HeadLogprobs`, over logits
    in the format of the product, which become their own gradient. So it can be walked back once."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float
    ) -> Tensor:
        """hidden: (N, D); weight: (V, D) float32; targets: (N,). Returns (N,) nats."""
        dtype = torch.bfloat16 if torch.is_autocast_enabled("cpu") else torch.float32
        own, states, scale = cast_weight(weight, dtype), hidden.detach().to(dtype), 1 / temperature
        table = take_table(len(weight), len(hidden), dtype)
        with torch.autocast("cpu", enabled=False):
            torch.mm(own, states.T, out=table)
        tops, totals = torch.empty(2, -(-len(weight) // ROWS_TOGETHER), len(hidden)).unbind()
        threads = threads_for(table.numel())
        sum_up(threads, values_of(table), np.float32(scale), tops.numpy(), totals.numpy())
        top = tops.amax(dim=0)
        logs = (totals * (scale * (tops - top)).exp()).sum(dim=0).log()
        logprobs = scale * (table.gather(0, targets[None])[0].float() - top) - logs
        ctx.save_for_backward(hidden, own, targets, top, logs, logprobs)
        ctx.table, ctx.scale = table, scale
        return logprobs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, top, logs, logprobs = ctx.saved_tensors
        if ctx.table is None:
            raise RuntimeError("the log-probabilities of a head can be walked back only once")
        table, ctx.table = ctx.table, None
        upstream = (gradient * ctx.scale).contiguous()
        to_gradient(
            threads_for(table.numel()),
            values_of(table),
            np.float32(ctx.scale),
            *(x.numpy() for x in (top, logs, upstream)),
        )
        at_targets = upstream * (1 - logprobs.exp())
        table[targets, torch.arange(len(targets))] = at_targets.to(table.dtype)
        to_hidden = to_weight = None
        if ctx.needs_input_grad[0]:
            to_hidden = (table.T @ weight).to(hidden.dtype)
        if ctx.needs_input_grad[1]:
            to_weight = (table @ hidden.to(table.dtype)).float()
        give_back(table)
        return to_hidden, to_weight, None, None
