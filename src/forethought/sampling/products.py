"""Matrix products of the lean decoding step: the model's own layers, or packed copies of them.

A packed matrix stands in the order in which it will be read, in float32, float16 or int8; below
`_WORTH_PACKING` weights the overhead of every call is more than that saves.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

_WORTH_PACKING = 1 << 18
_TYPICAL_ROWS = 64  # what the packed order is chosen for; others work too


Weights = Literal["float32", "float16", "int8"]


class Product(Protocol):
    """Layers with one input, their outputs side by side: x (n, K) to (n, N), both float32."""

    def __call__(self, x: Tensor) -> Tensor: ...


def product_of(layers: Sequence[nn.Module], weights: Weights | None) -> Product:
    """The product of these layers with weights in that format: packed where the layers are plain,
    large and float32; never with None."""
    parameters = [p for layer in layers for p in layer.parameters()]
    is_plain = all(type(layer) is nn.Linear for layer in layers)
    is_wide = all(p.dtype == torch.float32 and p.device.type == "cpu" for p in parameters)
    is_large = sum(p.numel() for p in parameters) >= _WORTH_PACKING
    if weights and is_plain and is_wide and is_large and can_multiply(weights):
        return _KINDS[weights].of(layers)
    return Plain(tuple(layers))


@dataclass(frozen=True, slots=True)
class Plain:
    """The layers as they are."""

    layers: tuple[nn.Module, ...]

    def __call__(self, x: Tensor) -> Tensor:
        x = x.to(next(self.layers[0].parameters()).dtype)
        found = [layer(x) for layer in self.layers]
        return (torch.cat(found, dim=-1) if len(found) > 1 else found[0]).float()


@dataclass(frozen=True, slots=True)
class Packed:
    """The layers side by side in float32, packed by oneDNN."""

    packed: Tensor
    bias: Tensor | None

    @staticmethod
    @torch.no_grad()
    def of(layers: Sequence[nn.Module]) -> Packed:
        weight, bias = _side_by_side(layers)
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, _TYPICAL_ROWS)
        return Packed(packed, bias)

    def __call__(self, x: Tensor) -> Tensor:
        product = torch.ops.mkldnn._linear_pointwise
        y: Tensor = product(x, self.packed, self.bias, "none", [], "")
        return y


@dataclass(frozen=True, slots=True)
class Half:
    """The layers side by side with float16 weights, packed by FBGEMM; sums stay in float32. Half
    the bytes to read, which is what a step of few rows waits for."""

    packed: Any

    @staticmethod
    @torch.no_grad()
    def of(layers: Sequence[nn.Module]) -> Half:
        weight, bias = _side_by_side(layers)
        return Half(torch.ops.quantized.linear_prepack_fp16(weight, bias))

    def __call__(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.quantized.linear_dynamic_fp16(x, self.packed)
        return y


# Weights keep 7 bits and activations 8: x86 processors without VNNI add two products of 8 bits into
# 16 and would overflow with more.
_WEIGHT_LEVELS, _INPUT_LEVELS, _INPUT_ZERO = 63, 127, 128
_SMALLEST = 1e-12


@dataclass(frozen=True, slots=True)
class Int8:
    """The layers side by side in int8, packed by FBGEMM: one scale an output channel, one an input
    row. Scaling every row by itself keeps its result apart from whoever else is in the batch.
    """

    packed: Any
    bias: Tensor | None

    @staticmethod
    @torch.no_grad()
    def of(layers: Sequence[nn.Module]) -> Int8:
        weight, bias = _side_by_side(layers)
        scales = weight.abs().amax(dim=1).clamp(min=_SMALLEST) / _WEIGHT_LEVELS
        levels = (weight / scales[:, None]).round_().to(torch.int8)
        zeros = torch.zeros(len(scales), dtype=torch.int64)
        with warnings.catch_warnings():  # torch 2.13 says that its quantized tensors will go
            warnings.simplefilter("ignore")
            quantized = torch._make_per_channel_quantized_tensor(levels, scales.double(), zeros, 0)
            packed = torch.ops.quantized.linear_prepack(quantized, None)
        return Int8(packed, bias)

    def __call__(self, x: Tensor) -> Tensor:
        from forethought.sampling.kernels import scale_rows  # numba is an extra

        scaled, largest = torch.empty_like(x), torch.empty(len(x), 1)
        scale_rows(x.numpy(), scaled.numpy(), largest.numpy())
        product: Any = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
        y: Tensor = product(scaled, 1 / _INPUT_LEVELS, _INPUT_ZERO, self.packed).mul_(largest)
        return y if self.bias is None else y.add_(self.bias)


_KINDS: Mapping[Weights, type[Packed] | type[Half] | type[Int8]] = {
    "float32": Packed,
    "float16": Half,
    "int8": Int8,
}


def _side_by_side(layers: Sequence[Any]) -> tuple[Tensor, Tensor | None]:
    """The weights (N, K) of linear layers one below the other, and their biases."""
    weight = torch.cat([layer.weight for layer in layers]) if len(layers) > 1 else layers[0].weight
    biases = [layer.bias for layer in layers]
    bias = None if any(b is None for b in biases) else torch.cat(biases)
    return weight.detach(), bias


@cache
def can_multiply(weights: Weights) -> bool:
    """Whether this torch and this processor have that packed product: tried out once."""
    layer = nn.Linear(64, 96)
    x = torch.linspace(-3, 3, 4 * 64).view(4, 64).cos()
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(-1, 1, 96 * 64).view(96, 64).sin())
        wanted = layer(x)
        try:
            y = _KINDS[weights].of([layer])(x)
        except (RuntimeError, AttributeError, NotImplementedError, TypeError, ImportError):
            return False
        return bool((y - wanted).abs().max() < 0.05 * wanted.abs().max())
