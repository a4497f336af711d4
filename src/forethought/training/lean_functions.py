"""What lean layers do instead: compiled passes of training (`training/passes.py`,
`training/strip_attention.py`) as torch's operations, with their gradients. It needs numba."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from forethought.sampling.lanes import may_use_amx
from forethought.sampling.paired_attention import TOKENS
from forethought.sampling.scaled import Values, values_of
from forethought.sampling.team import threads_for
from forethought.training.lean_products import project
from forethought.training.paired_strips import attend_paired_strips, attend_paired_strips_back
from forethought.training.passes import ROWS_TOGETHER, gate, gate_back, norm, norm_back
from forethought.training.strip_attention import attend, attend_back

Layout = tuple[Any, Any, Any]  # see `attend`


def layout_of(pieces: Sequence[Sequence[int]], starts: Sequence[int]) -> Layout:
    """Strips as `attend` takes them; each consists of a prompt and its completions, and of padding
    up to where the next one starts."""
    lengths = np.array([length for strip in pieces for length in strip], np.int64)
    firsts = np.concatenate([[0], np.cumsum([len(strip) for strip in pieces])]).astype(np.int64)
    return lengths, firsts, np.array(starts, np.int64)


def norm_of(module: Any, hidden_states: Tensor) -> Tensor:
    """The `forward` of a norm, in the format of the product behind it."""
    is_cast = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if is_cast else torch.float32
    found: Tensor = Norm.apply(hidden_states, module.weight, module.variance_epsilon, dtype)  # type: ignore[no-untyped-call]
    return found


def mlp_of(module: Any, x: Tensor) -> Tensor:
    """That of an MLP."""
    gated: Tensor = Gate.apply(*project((module.gate_proj, module.up_proj), x))  # type: ignore[no-untyped-call]
    return project((module.down_proj,), gated, is_wide=True)[0]


def attend_in(
    layout: Layout,
    module: Any,
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    attention_mask: Tensor | None = None,
    past_key_values: object = None,
    **_: object,
) -> tuple[Tensor, None]:
    """That of attention: the mask says what the layout says, and there is no cache in training."""
    rows, length, _width = hidden_states.shape
    projections = project((module.q_proj, module.k_proj, module.v_proj), hidden_states)
    heads = (found.view(rows * length, -1, module.head_dim) for found in projections)
    rotation = rotation_of(position_embeddings, hidden_states)
    found = Attention.apply(*heads, *rotation, layout, module.scaling)  # type: ignore[no-untyped-call]
    return project((module.o_proj,), found.view(rows, length, -1), is_wide=True)[0], None


def rotation_of(tables: tuple[Tensor, Tensor], hidden_states: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin (cells, head_dim) float32."""
    rows, length, _width = hidden_states.shape
    cos, sin = (table.float().expand(rows, -1, -1).reshape(rows * length, -1) for table in tables)
    return cos, sin


class Norm(Function):
    """x (..., D) float32 to (..., D) in `dtype`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float, dtype: torch.dtype) -> Tensor:
        rows = x.detach().contiguous().view(-1, x.shape[-1])
        out, factors = torch.empty_like(rows, dtype=dtype), torch.empty(len(rows))
        threads, given = threads_for(rows.numel()), (_values(rows), _values(weight))
        norm(threads, *given, np.float32(epsilon), _values(out), _values(factors))
        ctx.save_for_backward(rows, weight, factors)
        return out.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, factors = ctx.saved_tensors
        to_x = torch.empty_like(rows)
        parts = torch.empty(-(-len(rows) // ROWS_TOGETHER), rows.shape[1])
        given = gradient.contiguous().view(rows.shape)
        norm_back(
            threads_for(rows.numel()), *map(_values, (rows, weight, factors, given, to_x, parts))
        )
        to_weight = parts.sum(dim=0) if ctx.needs_input_grad[1] else None
        return to_x.view(gradient.shape), to_weight, None, None


class Gate(Function):
    """silu(gates) * ups, all (..., F) of one format."""

    @staticmethod
    def forward(ctx: Any, gates: Tensor, ups: Tensor) -> Tensor:
        gates, ups = gates.detach().contiguous(), ups.detach().to(gates.dtype).contiguous()
        out = torch.empty_like(gates)
        gate(threads_for(2 * out.numel()), *map(_table, (gates, ups, out)))
        ctx.save_for_backward(gates, ups)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        gates, ups = ctx.saved_tensors
        to_gates, to_ups = torch.empty_like(gates), torch.empty_like(ups)
        given = gradient.to(gates.dtype).contiguous()
        threads = threads_for(2 * gates.numel())
        gate_back(threads, *map(_table, (gates, ups, given, to_gates, to_ups)))
        return to_gates, to_ups


class Attention(Function):
    """Queries (cells, heads, head_dim), keys and values (cells, kv heads, head_dim), not turned, to
    (cells, heads, head_dim) in the values' format."""

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        cos: Tensor,
        sin: Tensor,
        layout: Layout,
        scale: float,
    ) -> Tensor:
        heads = tuple(x.detach().contiguous() for x in (queries, keys, values))
        out, logsums = find(heads, (cos, sin), layout, scale)
        ctx.save_for_backward(*heads, cos, sin, out, logsums)
        ctx.layout, ctx.scale = layout, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        *heads, cos, sin, out, logsums = ctx.saved_tensors
        given = gradient.to(out.dtype).contiguous()
        to_heads = find_back(heads, (cos, sin), ctx.layout, ctx.scale, out, logsums, given)
        return *to_heads, None, None, None, None


def find(
    heads: Sequence[Tensor], rotation: Sequence[Tensor], layout: Layout, scale: float
) -> tuple[Tensor, Tensor]:
    """What queries find, and the logarithms of their weights' sums."""
    out = torch.empty_like(heads[0])
    logsums = torch.empty(out.shape[:2])
    forth = attend_paired_strips if _goes_by_pairs(out) else attend
    forth(
        threads_for(out.numel()),
        tuple(map(_values, heads)),
        tuple(map(_values, rotation)),
        layout,
        np.float32(scale),
        *map(_values, (out, logsums)),
    )
    return out, logsums


def find_back(
    heads: Sequence[Tensor],
    rotation: Sequence[Tensor],
    layout: Layout,
    scale: float,
    out: Tensor,
    logsums: Tensor,
    gradient: Tensor,
) -> list[Tensor]:
    """The gradient of what they find carried on to queries, keys and values."""
    to_heads = [torch.empty_like(x) for x in heads]
    back = attend_paired_strips_back if _goes_by_pairs(out) else attend_back
    back(
        threads_for(out.numel()),
        tuple(map(_values, heads)),
        tuple(map(_values, rotation)),
        layout,
        np.float32(scale),
        _values(out),
        _values(logsums),
        _values(gradient),
        tuple(map(_values, to_heads)),
    )
    return to_heads


def _goes_by_pairs(heads: Tensor) -> bool:
    """Whether AMX can and pays: numbers are bfloat16, and those of a head fill its words, twice at
    least, or what it takes to lay them out is not won back over short completions."""
    size = heads.shape[-1]
    fills = size % TOKENS == 0 and size >= 2 * TOKENS
    return may_use_amx() and heads.dtype == torch.bfloat16 and fills


def _values(x: Tensor) -> Values:
    return values_of(x.detach())


def _table(x: Tensor) -> Values:
    """(n, last dimension)."""
    return values_of(x.view(-1, x.shape[-1]))
