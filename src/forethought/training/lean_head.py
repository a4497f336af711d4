"""A head's log-probabilities by compiled passes (`training/softmax.py`). It needs numba."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from forethought.models.kept import cast_weight, give_back, take_table
from forethought.sampling.scaled import values_of
from forethought.sampling.team import threads_for
from forethought.training.lean_products import fills_words, laid_in_pairs, to_input, to_weight
from forethought.training.softmax import ROWS_TOGETHER, sum_up, to_gradient
from forethought.training.word_products import AT_ONCE, turn


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
        ctx.save_for_backward(hidden, weight, targets, top, logs, logprobs)
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
        carry = _carry_in_words if _is_in_words(weight, table) else _carry
        found = carry(ctx.needs_input_grad, table, hidden, weight)
        give_back(table)
        return *found, None, None


def _carry(
    wanted: Sequence[bool], table: Tensor, hidden: Tensor, weight: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """The gradient of the logits, `table` (V, N), on to states and weight, where wanted."""
    own, states = cast_weight(weight, table.dtype), hidden.to(table.dtype)
    to_hidden = (table.T @ own).to(hidden.dtype) if wanted[0] else None
    return to_hidden, (table @ states).float() if wanted[1] else None


def _is_in_words(weight: Tensor, table: Tensor) -> bool:
    count = table.shape[1]
    return count > 0 and count % AT_ONCE == 0 and fills_words(weight, table.dtype)


def _carry_in_words(
    wanted: Sequence[bool], table: Tensor, hidden: Tensor, weight: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """The same by AMX; what the weight has already is added to (`lean_products.py`)."""
    found_hidden = found_weight = None
    if wanted[0]:
        turned = take_table(table.shape[1], len(table), table.dtype)
        turn(torch.get_num_threads(), values_of(table), values_of(turned))
        found_hidden = to_input((turned,), (weight,), hidden.dtype)
        give_back(turned)
    if wanted[1]:
        found_weight = to_weight(weight, table, laid_in_pairs(hidden.to(table.dtype)))
    return found_hidden, found_weight
