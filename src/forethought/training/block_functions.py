"""The two blocks of a layer of the Llama and Qwen families, in bfloat16 by AMX, each as one of
torch's operations: x + o(attention(qkv(norm(x)))) and x + down(gate(norm(x))).

What lean layers otherwise do one after the other (`training/lean_functions.py`) goes from one
compiled pass into the next here: the last product adds its sums onto x, and the norm's gradient is
added to what comes by x itself. Torch's sums and casts between them, each a pass through memory,
are not needed, nor is most of what a small model's layer costs besides. Gradients of weights are
put where they belong at once (`training/lean_products.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from forethought.models.kept import keep
from forethought.sampling.scaled import values_of
from forethought.sampling.team import threads_for
from forethought.training.lean_functions import Layout, find, find_back, rotation_of
from forethought.training.lean_products import (
    has_hooks,
    is_in_words,
    laid_in_pairs,
    laid_in_rows,
    product_onto,
    product_with,
    to_input,
    to_weight,
    turned,
)
from forethought.training.passes import (
    ROWS_TOGETHER,
    gate,
    gate_back,
    norm,
    norm_back_onto,
    round_rows,
)

Gradients = tuple[Tensor | None, ...]


def layer_of(
    layout: Layout,
    layer: Any,
    hidden_states: Tensor,
    *,
    position_embeddings: tuple[Tensor, Tensor],
    **_: object,
) -> Tensor:
    """The `forward` of a layer: the mask says what the layout says, and there is no cache."""
    attention, mlp = layer.self_attn, layer.mlp
    found: Tensor = AttentionBlock.apply(  # type: ignore[no-untyped-call]
        hidden_states,
        rotation_of(position_embeddings, hidden_states),
        layout,
        attention,
        layer.input_layernorm.variance_epsilon,
        layer.input_layernorm.weight,
        *_parameters(attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj),
    )
    out: Tensor = MlpBlock.apply(  # type: ignore[no-untyped-call]
        found,
        layer.post_attention_layernorm.variance_epsilon,
        layer.post_attention_layernorm.weight,
        *_parameters(mlp.gate_proj, mlp.up_proj, mlp.down_proj),
    )
    return out


def is_whole(layer: Any) -> bool:
    """Whether a layer whose parts are transformers' own can go by its blocks: nobody hears of what
    its parts do, and its products go by AMX."""
    attention, mlp = layer.self_attn, layer.mlp
    parts = attention, mlp, mlp.act_fn, layer.input_layernorm, layer.post_attention_layernorm
    linear = (
        *(attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj),
        *(mlp.gate_proj, mlp.up_proj, mlp.down_proj),
    )
    is_heard = any(map(has_hooks, parts))
    return not is_heard and all(is_in_words(module, torch.bfloat16) for module in linear)


def _parameters(*layers: Any) -> list[Tensor | None]:
    """Weights, and then as many biases."""
    return [layer.weight for layer in layers] + [layer.bias for layer in layers]


class MlpBlock(Function):
    """x (..., D) float32 + down(silu(gate(n)) * up(n)), where n = norm(x)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, epsilon: float, norm_weight: Tensor, *parameters: Tensor | None
    ) -> Tensor:
        weights, biases = parameters[:3], parameters[3:]
        rows = _rows(x)
        read, factors = _normed(rows, norm_weight, epsilon)
        gates, ups = _projected(read, weights[:2], biases[:2])
        inner = torch.empty_like(gates)
        gate(threads_for(2 * inner.numel()), *map(values_of, (gates, ups, inner)))
        ctx.save_for_backward(rows, factors, read, gates, ups, inner, norm_weight, *weights)
        return _added(rows, inner, weights[2], biases[2]).view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Gradients:
        rows, factors, read, gates, ups, inner, norm_weight, *weights = ctx.saved_tensors
        wanted = ctx.needs_input_grad[3:]
        given, narrow = _rounded(gradient)
        to_inner = to_input((narrow,), weights[2:], narrow.dtype)
        of_down = _learned((narrow,), inner, weights[2:], wanted[2::3])
        to_gates, to_ups = torch.empty_like(gates), torch.empty_like(ups)
        given_to_gate = map(values_of, (gates, ups, to_inner, to_gates, to_ups))
        gate_back(threads_for(2 * gates.numel()), *given_to_gate)
        some = to_gates, to_ups
        of_projections = _learned(some, read, weights[:2], (*wanted[:2], *wanted[3:5]))
        to_read = to_input(some, weights[:2], given.dtype)
        to_x, to_norm = _norm_back(rows, norm_weight, factors, to_read, given)
        return to_x.view(gradient.shape), None, to_norm, *_in_order(of_projections, of_down)


class AttentionBlock(Function):
    """x (..., D) float32 + o(attention(q(n), k(n), v(n))), where n = norm(x)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        rotation: tuple[Tensor, Tensor],
        layout: Layout,
        attention: Any,
        epsilon: float,
        norm_weight: Tensor,
        *parameters: Tensor | None,
    ) -> Tensor:
        weights, biases = parameters[:4], parameters[4:]
        rows = _rows(x)
        read, factors = _normed(rows, norm_weight, epsilon)
        projected = _projected(read, weights[:3], biases[:3])
        heads = [found.view(len(rows), -1, attention.head_dim) for found in projected]
        found, logsums = find(heads, rotation, layout, attention.scaling)
        saved = rows, factors, read, found, logsums, *rotation
        ctx.save_for_backward(*saved, *heads, norm_weight, *weights)
        ctx.layout, ctx.scale = layout, attention.scaling
        return _added(rows, found.view(len(rows), -1), weights[3], biases[3]).view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Gradients:
        saved, rest = ctx.saved_tensors[:7], ctx.saved_tensors[7:]
        rows, factors, read, found, logsums, *rotation = saved
        heads, (norm_weight, *weights) = rest[:3], rest[3:]
        wanted = ctx.needs_input_grad[6:]
        given, narrow = _rounded(gradient)
        to_found = to_input((narrow,), weights[3:], narrow.dtype).view(found.shape)
        of_out = _learned((narrow,), found.view(len(rows), -1), weights[3:], wanted[3::4])
        to_heads = find_back(heads, rotation, ctx.layout, ctx.scale, found, logsums, to_found)
        some = [found.view(len(rows), -1) for found in to_heads]
        of_projections = _learned(some, read, weights[:3], (*wanted[:3], *wanted[4:7]))
        to_read = to_input(some, weights[:3], given.dtype)
        to_x, to_norm = _norm_back(rows, norm_weight, factors, to_read, given)
        found = _in_order(of_projections, of_out)
        return to_x.view(gradient.shape), None, None, None, None, to_norm, *found


def _rows(x: Tensor) -> Tensor:
    return x.detach().contiguous().view(-1, x.shape[-1])


def _normed(rows: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """In bfloat16, and the factors."""
    out, factors = torch.empty_like(rows, dtype=torch.bfloat16), torch.empty(len(rows))
    given = rows.numpy(), weight.detach().numpy(), np.float32(epsilon)
    norm(threads_for(rows.numel()), *given, values_of(out), factors.numpy())
    return out, factors


def _norm_back(
    rows: Tensor, weight: Tensor, factors: Tensor, gradient: Tensor, so_far: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradient of what is normed, which has `so_far` from elsewhere, and of the weight."""
    to_x, parts = torch.empty_like(rows), torch.empty(-(-len(rows) // ROWS_TOGETHER), rows.shape[1])
    given = rows, weight.detach(), factors, gradient, so_far, to_x, parts
    norm_back_onto(threads_for(rows.numel()), *(x.numpy() for x in given))
    return to_x, parts.sum(dim=0)


def _projected(
    x: Tensor, weights: Sequence[Any], biases: Sequence[Tensor | None]
) -> Sequence[Tensor]:
    found = [product_with(x, keep("rows", weight, laid_in_rows), False) for weight in weights]
    for out, bias in zip(found, biases, strict=True):
        if bias is not None:
            out += bias.detach().to(out.dtype)
    return found


def _added(rows: Tensor, x: Tensor, weight: Any, bias: Tensor | None) -> Tensor:
    out = product_onto(rows, x, weight)
    return out if bias is None else out.add_(bias.detach())


def _rounded(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """As rows, and these in bfloat16."""
    rows = gradient.contiguous().view(-1, gradient.shape[-1])
    narrow = torch.empty_like(rows, dtype=torch.bfloat16)
    round_rows(threads_for(rows.numel()), rows.numpy(), values_of(narrow))
    return rows, narrow


def _learned(
    gradients: Sequence[Tensor], x: Tensor, weights: Sequence[Tensor], wanted: Sequence[bool]
) -> Gradients:
    """What is left to say of the weights' gradients, and after them those of their biases."""
    count = len(weights)
    of_weights: list[Tensor | None] = [None] * count
    if any(wanted[:count]):
        words = laid_in_pairs(x)
        for i, (gradient, weight) in enumerate(zip(gradients, weights, strict=True)):
            of_weights[i] = to_weight(weight, turned(gradient), words) if wanted[i] else None
    of_biases = [
        gradient.sum(dim=0, dtype=torch.float32) if is_wanted else None
        for gradient, is_wanted in zip(gradients, wanted[count:], strict=True)
    ]
    return *of_weights, *of_biases


def _in_order(of_projections: Gradients, of_last: Gradients) -> Gradients:
    """Weights first, as they are given."""
    count = len(of_projections) // 2
    return (*of_projections[:count], of_last[0], *of_projections[count:], of_last[1])
