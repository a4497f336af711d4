"""Layers of the Llama and Qwen families with one compiled pass between two matrix products.

The model is transformers' own, and so are its products. For the time of a training pass on a CPU
three kinds of modules have another `forward`: norms and MLPs do in one pass what torch does in many
(`training/passes.py`), and attention turns its queries and keys and works out the pairs that a
strip lets through, and no others (`training/strip_attention.py`). Each has its own gradient and
keeps less for it than torch's operations do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from forethought.sampling.decoder import has_lean_step
from forethought.sampling.scaled import Values, values_of

Lengths = Sequence[int]  # of a strip's prompt and of its completions
Forward = tuple[nn.Module, Any]


@contextmanager
def lean_layers(model: PreTrainedModel, pieces: Sequence[Lengths], width: int) -> Iterator[None]:
    """Where the model can, let its layers take their compiled passes; strip b of a batch consists
    of pieces[b], padded to `width`."""
    forwards = _forwards(model, pieces, width)
    for module, forward in forwards:
        module.__dict__["forward"] = forward
    try:
        yield
    finally:
        for module, _ in forwards:
            del module.__dict__["forward"]


def has_lean_attention(model: PreTrainedModel) -> bool:
    """Whether attention takes its compiled pass, in which sharing a prompt costs nothing."""
    base: Any = model.base_model
    return _is_lean(model) and all(_is_plain_attention(layer.self_attn) for layer in base.layers)


def _is_lean(model: PreTrainedModel) -> bool:
    if not has_lean_step(model) or model.dtype != torch.float32:
        return False
    base: Any = model.base_model  # a layer that is read anew on the way back would be another then
    return not any(getattr(layer, "gradient_checkpointing", False) for layer in base.layers)


def _forwards(model: PreTrainedModel, pieces: Sequence[Lengths], width: int) -> list[Forward]:
    if not _is_lean(model):
        return []
    base: Any = model.base_model
    layout = _layout(pieces, width)
    found: list[Forward] = []
    for layer in base.layers:
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            found.append((norm, partial(_norm, norm)))
        found.append((layer.mlp, partial(_mlp, layer.mlp)))
        if _is_plain_attention(layer.self_attn):
            found.append((layer.self_attn, partial(_attend, layer.self_attn, layout)))
    return [pair for pair in found if _is_untouched(pair[0])]


def _is_untouched(module: nn.Module) -> bool:
    return type(module).__module__.startswith("transformers.models.") and (
        "forward" not in vars(module)
    )


def _is_plain_attention(attention: Any) -> bool:
    """Whether queries and keys are turned as they come, and nothing is dropped."""
    has_norms = hasattr(attention, "q_norm")
    drops = attention.training and attention.attention_dropout > 0
    is_sdpa = attention.config._attn_implementation == "sdpa"
    return is_sdpa and not has_norms and not drops and _is_untouched(attention)


def _layout(pieces: Sequence[Lengths], width: int) -> tuple[Any, Any, int]:
    """As `strip_attention` takes it."""
    lengths = np.array([length for strip in pieces for length in strip], np.int64)
    firsts = np.concatenate([[0], np.cumsum([len(strip) for strip in pieces])]).astype(np.int64)
    return lengths, firsts, width


def _norm(module: Any, hidden_states: Tensor) -> Tensor:
    """In the format of the product behind it."""
    is_cast = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if is_cast else torch.float32
    found: Tensor = _Norm.apply(hidden_states, module.weight, module.variance_epsilon, dtype)  # type: ignore[no-untyped-call]
    return found


def _mlp(module: Any, x: Tensor) -> Tensor:
    gated: Tensor = _Gate.apply(module.gate_proj(x), module.up_proj(x))  # type: ignore[no-untyped-call]
    down: Tensor = module.down_proj(gated)
    return down


def _attend(
    module: Any,
    layout: tuple[Any, Any, int],
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    attention_mask: Tensor | None = None,
    past_key_values: object = None,
    **_: object,
) -> tuple[Tensor, None]:
    """The mask says what the layout says, and there is no cache in training."""
    rows, length, _width = hidden_states.shape
    heads = (
        projection(hidden_states).view(rows * length, -1, module.head_dim)
        for projection in (module.q_proj, module.k_proj, module.v_proj)
    )
    cos, sin = (
        table.float().expand(rows, -1, -1).reshape(rows * length, -1)
        for table in position_embeddings
    )
    found = _Attention.apply(*heads, cos, sin, layout, module.scaling)  # type: ignore[no-untyped-call]
    return module.o_proj(found.view(rows, length, -1)), None


class _Norm(Function):
    """x (..., D) float32 to (..., D) in `dtype`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float, dtype: torch.dtype) -> Tensor:
        from forethought.sampling.team import threads_for
        from forethought.training.passes import norm

        rows = x.detach().contiguous().view(-1, x.shape[-1])
        out, factors = torch.empty_like(rows, dtype=dtype), torch.empty(len(rows))
        threads, given = threads_for(rows.numel()), (_values(rows), _values(weight))
        norm(threads, *given, np.float32(epsilon), _values(out), _values(factors))
        ctx.save_for_backward(rows, weight, factors)
        return out.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        from forethought.sampling.team import threads_for
        from forethought.training.passes import ROWS_TOGETHER, norm_back

        rows, weight, factors = ctx.saved_tensors
        to_x = torch.empty_like(rows)
        parts = torch.empty(-(-len(rows) // ROWS_TOGETHER), rows.shape[1])
        given = gradient.contiguous().view(rows.shape)
        norm_back(
            threads_for(rows.numel()), *map(_values, (rows, weight, factors, given, to_x, parts))
        )
        to_weight = parts.sum(dim=0) if ctx.needs_input_grad[1] else None
        return to_x.view(gradient.shape), to_weight, None, None


class _Gate(Function):
    """silu(gates) * ups, all (..., F) of one format."""

    @staticmethod
    def forward(ctx: Any, gates: Tensor, ups: Tensor) -> Tensor:
        from forethought.sampling.team import threads_for
        from forethought.training.passes import gate

        gates, ups = gates.detach().contiguous(), ups.detach().to(gates.dtype).contiguous()
        out = torch.empty_like(gates)
        gate(threads_for(2 * out.numel()), *map(_table, (gates, ups, out)))
        ctx.save_for_backward(gates, ups)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        from forethought.sampling.team import threads_for
        from forethought.training.passes import gate_back

        gates, ups = ctx.saved_tensors
        to_gates, to_ups = torch.empty_like(gates), torch.empty_like(ups)
        given = gradient.to(gates.dtype).contiguous()
        threads = threads_for(2 * gates.numel())
        gate_back(threads, *map(_table, (gates, ups, given, to_gates, to_ups)))
        return to_gates, to_ups


class _Attention(Function):
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
        layout: tuple[Any, Any, int],
        scale: float,
    ) -> Tensor:
        from forethought.sampling.team import threads_for
        from forethought.training.strip_attention import attend

        heads = tuple(x.detach().contiguous() for x in (queries, keys, values))
        out = torch.empty_like(heads[0])
        logsums = torch.empty(out.shape[:2])
        attend(
            threads_for(out.numel()),
            tuple(map(_values, heads)),
            (_values(cos), _values(sin)),
            layout,
            np.float32(scale),
            *map(_values, (out, logsums)),
        )
        ctx.save_for_backward(*heads, cos, sin, out, logsums)
        ctx.layout, ctx.scale = layout, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        from forethought.sampling.team import threads_for
        from forethought.training.strip_attention import attend_back

        *heads, cos, sin, out, logsums = ctx.saved_tensors
        to_heads = [torch.zeros_like(x) for x in heads]
        given = gradient.to(out.dtype).contiguous()
        attend_back(
            threads_for(out.numel()),
            tuple(map(_values, heads)),
            (_values(cos), _values(sin)),
            ctx.layout,
            np.float32(ctx.scale),
            _values(out),
            _values(logsums),
            _values(given),
            tuple(map(_values, to_heads)),
        )
        return *to_heads, None, None, None, None


def _values(x: Tensor) -> Values:
    return values_of(x.detach())


def _table(x: Tensor) -> Values:
    """(n, last dimension)."""
    return values_of(x.view(-1, x.shape[-1]))
