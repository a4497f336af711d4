"""Linear layers in bfloat16 by AMX (`training/word_products.py`) as one of torch's operations.

The gradient of a weight is put where it belongs as the sum is formed, in float32 and beginning with
what is there already: what autocast does instead, round it, widen it and add it up, goes over a
large model's weights several times a micro-batch. So only `backward()` may walk such layers back,
which keeps gradients there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from forethought.models.kept import keep
from forethought.sampling.amx import WORDS
from forethought.sampling.lanes import may_use_amx
from forethought.sampling.scaled import values_of
from forethought.training.word_products import (
    AT_ONCE,
    add_onto,
    add_product,
    lay_pairs,
    lay_rows,
    multiply,
    turn,
)


def project(layers: Sequence[nn.Module], x: Tensor, *, is_wide: bool = False) -> Sequence[Tensor]:
    """What each of the layers makes of x (..., S). Where it is made by AMX it is in bfloat16, or if
    it `is_wide` in float32, as the sums are."""
    if not x.numel() or not all(is_in_words(layer, x.dtype) for layer in layers):
        return [layer(x) for layer in layers]
    plain: Sequence[Any] = layers
    found = Products.apply(x, is_wide, *(layer.weight for layer in plain))  # type: ignore[no-untyped-call]
    return [
        out if layer.bias is None else out + layer.bias.to(out.dtype)
        for out, layer in zip(found, plain, strict=True)
    ]


def is_in_words(layer: Any, dtype: torch.dtype) -> bool:
    """Whether a layer is torch's own, is not watched, and its weight fills words."""
    if type(layer) is not nn.Linear or "forward" in vars(layer) or has_hooks(layer):
        return False
    return fills_words(layer.weight, dtype)


def has_hooks(module: nn.Module) -> bool:
    """Whether someone hears when it is called, or walked back."""
    forward_hooks = module._forward_hooks or module._forward_pre_hooks
    return bool(forward_hooks or module._backward_hooks or module._backward_pre_hooks)


def fills_words(weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether the products of a weight (N, S) with numbers of that format, and those of its
    gradient, go by AMX; not if someone waits for the gradient, which is put in its place here."""
    if dtype != torch.bfloat16 or weight.dtype != torch.float32 or not may_use_amx():
        return False
    hooks = weight._backward_hooks or getattr(weight, "_post_accumulate_grad_hooks", None)
    fills = all(size % AT_ONCE == 0 for size in weight.shape)
    return fills and weight.is_leaf and weight.is_contiguous() and not hooks


class Products(Function):
    """x (..., S) bfloat16 times weights (N, S) float32, each turned: as many (..., N)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, is_wide: bool, *weights: Tensor) -> tuple[Tensor, ...]:
        rows = x.detach().contiguous().view(-1, x.shape[-1])
        ctx.save_for_backward(rows, *weights)
        found = []
        for weight in weights:
            words = keep("rows", weight, laid_in_rows)
            found.append(product_with(rows, words, is_wide).view(*x.shape[:-1], -1))
        return tuple(found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, *weights = ctx.saved_tensors
        given = [g.to(rows.dtype).contiguous().view(len(rows), -1) for g in gradients]
        to_x: Tensor | None = None
        to_weights: list[Tensor | None] = [None] * len(weights)
        if ctx.needs_input_grad[0]:
            to_x = to_input(given, weights, rows.dtype).view(*gradients[0].shape[:-1], -1)
        if any(ctx.needs_input_grad[2:]):
            words = laid_in_pairs(rows)
            to_weights = [
                to_weight(weight, turned(gradient), words) if wanted else None
                for weight, gradient, wanted in zip(
                    weights, given, ctx.needs_input_grad[2:], strict=True
                )
            ]
        return to_x, None, *to_weights


def to_input(gradients: Sequence[Tensor], weights: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """The sum of gradients (n, N) times weights (N, S), rounded when all are added up."""
    words = [keep("pairs", weight, laid_in_pairs) for weight in weights]
    if len(words) == 1:
        return product_with(gradients[0], words[0], dtype == torch.float32).to(dtype)
    total = torch.empty(len(gradients[0]), weights[0].shape[1])
    threads = torch.get_num_threads()
    for i, (gradient, laid) in enumerate(zip(gradients, words, strict=True)):
        add_product(threads, i > 0, values_of(gradient), laid.numpy(), total.numpy())
    return total.to(dtype)


def product_onto(so_far: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """so_far (n, N) float32 + x (n, S) times the weight (N, S), turned."""
    words, out = keep("rows", weight, laid_in_rows), torch.empty_like(so_far)
    given = so_far.numpy(), values_of(x), words.numpy()
    add_onto(torch.get_num_threads(), *given, out.numpy())
    return out


def to_weight(weight: Tensor, gradient: Tensor, words: Tensor) -> Tensor | None:
    """gradient, turned (N, n), times x (n, S), laid in pairs of rows; None where it was added to
    the gradient that the weight has, or is it now."""
    so_far = weight.grad
    is_more = so_far is not None and so_far.layout == torch.strided and so_far.is_contiguous()
    out = so_far if so_far is not None and is_more else torch.empty_like(weight)
    given = values_of(gradient), words.numpy()
    add_product(torch.get_num_threads(), is_more, *given, out.numpy())
    if so_far is None:
        weight.grad = out
    return None if weight.grad is out else out


def laid_in_pairs(x: Tensor) -> Tensor:
    """x (n, N), the right side of a product, in words; below its rows stand zeros."""
    steps = -(-len(x) // AT_ONCE)
    words = torch.empty(x.shape[1] // WORDS, steps * WORDS, WORDS, dtype=torch.int32)
    lay_pairs(torch.get_num_threads(), values_of(x.detach().contiguous()), words.numpy())
    return words


def laid_in_rows(x: Tensor) -> Tensor:
    """x (N, S), the right side turned, in words."""
    words = torch.empty(len(x) // WORDS, x.shape[1] // 2, WORDS, dtype=torch.int32)
    lay_rows(torch.get_num_threads(), values_of(x.detach()), words.numpy())
    return words


def turned(x: Tensor) -> Tensor:
    """x (n, N) bfloat16 as (N, n), and zeros up to whole words."""
    out = torch.empty(x.shape[1], -(-len(x) // AT_ONCE) * AT_ONCE, dtype=x.dtype)
    turn(torch.get_num_threads(), values_of(x), values_of(out))
    return out


def product_with(rows: Tensor, words: Tensor, is_wide: bool) -> Tensor:
    """rows (n, S) times what is laid out in `words`."""
    shape = len(rows), len(words) * WORDS
    threads, given = torch.get_num_threads(), (values_of(rows), words.numpy())
    if is_wide:
        out = torch.empty(shape)
        add_product(threads, False, *given, out.numpy())
    else:
        out = torch.empty(shape, dtype=rows.dtype)
        multiply(threads, *given, values_of(out))
    return out
