"""Matrix products of the lean decoding step: the model's own layers, or packed copies of them.

A packed matrix stands in the order in which it will be read, in float32, float16, bfloat16 or int8,
by a library or, on processors that have dot products of the last two, by `sampling/tiles.py`. Below
`_WORTH_PACKING` weights the overhead of a library's call is more than that saves.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from forethought.machine import usable_cores
from forethought.sampling.scaled import ZERO, Format, Scaled, Values, tensor_of, values_of
from forethought.sampling.stacks import side_by_side
from forethought.sampling.tiled import Tiled, TiledFormat, TiledLayers, is_tiled

_WORTH_PACKING = 1 << 18
_WORTH_SPLITTING = 1 << 22
_TYPICAL_ROWS = 64  # what the packed order is chosen for; others work too


Weights = Literal["float32", "float16", "bfloat16", "int8"]
_TILED_AS: dict[Weights, TiledFormat] = {"int8": "uint8", "bfloat16": "bfloat16"}


class Product(Protocol):
    """Layers with one input, their outputs side by side: x (n, K) to (n, N)."""

    @property
    def takes(self) -> Format:
        """The format of x."""

    def __call__(self, x: Scaled) -> Values: ...


def product_of(layers: Sequence[nn.Module], weights: Weights | None) -> Product:
    """The product of these layers with weights in that format: packed where the layers are plain
    and large; never with None. Layers in bfloat16 are packed in that, whatever was asked for."""
    [product] = products_of([layers], weights)
    return product


def products_of(many: Sequence[Sequence[nn.Module]], weights: Weights | None) -> list[Product]:
    """`product_of` all of them, several packed at a time: packing is work of one thread."""
    if weights is None or not can_multiply(weights):
        return [Plain(tuple(layers)) for layers in many]
    with warnings.catch_warnings(), ThreadPoolExecutor(usable_cores(), "pack") as pool:
        warnings.simplefilter("ignore")  # torch 2.13 says that its quantized tensors will go
        formats = [_format_of(layers, weights) for layers in many]
        making = [
            None if found is None else _packing(pool, layers, found)
            for found, layers in zip(formats, many, strict=True)
        ]
        return [
            Plain(tuple(layers)) if packed is None else packed()
            for layers, packed in zip(many, making, strict=True)
        ]


def tiled_layers(
    kinds: Sequence[Sequence[Sequence[nn.Module]]], weights: Weights | None
) -> list[TiledLayers] | None:
    """Each kind of product, given for every layer, in one piece; None unless all are tiled, in one
    format."""
    if weights is None or not can_multiply(weights):
        return None
    every = [layers for kind in kinds for layers in kind]
    formats = {_format_of(layers, weights) for layers in every}
    found = formats.pop()
    if formats or found is None or not all(is_tiled(layers, found) for layers in every):
        return None
    return [TiledLayers.of(kind, _TILED_AS[found]) for kind in kinds]


def _format_of(layers: Sequence[nn.Module], wanted: Weights) -> Weights | None:
    """The format to pack these layers in; None where they stay as they are."""
    parameters = [p for layer in layers for p in layer.parameters()]
    is_plain = all(type(layer) is nn.Linear for layer in layers)
    formats = {p.dtype for p in parameters}
    if formats == {torch.bfloat16} and can_multiply("bfloat16"):
        wanted = "bfloat16"
    elif formats != {torch.float32}:
        return None
    if not is_plain or any(p.device.type != "cpu" for p in parameters):
        return None
    is_worth_it = _num_weights(layers) >= _WORTH_PACKING or is_tiled(layers, wanted)
    return wanted if is_worth_it else None


def _packing(
    pool: ThreadPoolExecutor, layers: Sequence[nn.Module], weights: Weights
) -> Callable[[], Product]:
    """Begin to pack these layers; what is returned waits for them."""
    match weights:
        case "float16":
            return Half.packing(pool, layers)
        case "int8" | "bfloat16" if is_tiled(layers, weights):
            return partial(Tiled.of, layers, _TILED_AS[weights])
        case "int8":
            return Int8.packing(pool, layers)
        case _:
            return Packed.packing(layers, getattr(torch, weights))


def _num_weights(layers: Sequence[nn.Module]) -> int:
    return sum(p.numel() for layer in layers for p in layer.parameters())


@dataclass(frozen=True, slots=True)
class Plain:
    """The layers as they are."""

    layers: tuple[nn.Module, ...]
    takes: Literal["float32"] = "float32"

    def __call__(self, x: Scaled) -> Values:
        rows = x.tensor().to(next(self.layers[0].parameters()).dtype)
        found = [layer(rows) for layer in self.layers]
        return values_of((torch.cat(found, dim=-1) if len(found) > 1 else found[0]).float())


@dataclass(frozen=True, slots=True)
class Packed:
    """The layers side by side, packed by oneDNN in float32 or bfloat16. In bfloat16 what goes in
    and comes out is rounded to it too; sums stay in float32."""

    packed: Tensor
    bias: Tensor | None

    @staticmethod
    @torch.no_grad()
    def packing(layers: Sequence[nn.Module], dtype: torch.dtype) -> Callable[[], Packed]:
        weight, bias = side_by_side(layers)
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype), _TYPICAL_ROWS)
        return lambda: Packed(packed, None if bias is None else bias.to(dtype))

    @property
    def takes(self) -> Format:
        return "bfloat16" if self.packed.dtype == torch.bfloat16 else "float32"

    def __call__(self, x: Scaled) -> Values:
        product = torch.ops.mkldnn._linear_pointwise
        return values_of(product(x.tensor(), self.packed, self.bias, "none", [], ""))


@dataclass(frozen=True, slots=True)
class Half:
    """The layers side by side with float16 weights, packed by FBGEMM; sums stay in float32. Half
    the bytes to read, which is what a step of few rows waits for. A very large matrix, as a head
    is, stands in parts, so that several threads can pack it."""

    parts: tuple[Any, ...]
    takes: Literal["float32"] = "float32"

    @staticmethod
    def packing(pool: ThreadPoolExecutor, layers: Sequence[nn.Module]) -> Callable[[], Half]:
        is_large = _num_weights(layers) >= _WORTH_SPLITTING
        count = usable_cores() if is_large else 1
        parts = [pool.submit(_pack_half, layers, part, count) for part in range(count)]
        return lambda: Half(tuple(part.result() for part in parts))

    def __call__(self, x: Scaled) -> Values:
        product = torch.ops.quantized.linear_dynamic_fp16
        found = [product(x.tensor(), part) for part in self.parts]
        return values_of(torch.cat(found, dim=1) if len(found) > 1 else found[0])


@torch.no_grad()
def _pack_half(layers: Sequence[nn.Module], part: int, count: int) -> Any:
    """Part number `part` of `count` of the matrix, packed."""
    weight, bias = side_by_side(layers)
    bias = None if bias is None else bias.tensor_split(count)[part]
    return torch.ops.quantized.linear_prepack_fp16(weight.tensor_split(count)[part], bias)


# Weights keep 7 bits and activations 8: x86 processors without VNNI add two products of 8 bits into
# 16 and would overflow with more.
_WEIGHT_LEVELS, _INPUT_LEVELS = 63, 127


@dataclass(frozen=True, slots=True)
class Int8:
    """The layers side by side in int8, packed by FBGEMM: one scale an output channel, one an input
    row. Scaling every row by itself keeps its result apart from whoever else is in the batch.
    """

    packed: Any
    scales: Tensor  # (N,), of the weights
    bias: Tensor | None
    takes: Literal["float32"] = "float32"

    @staticmethod
    def packing(pool: ThreadPoolExecutor, layers: Sequence[nn.Module]) -> Callable[[], Int8]:
        return pool.submit(Int8.of, layers).result

    @staticmethod
    @torch.no_grad()
    def of(layers: Sequence[nn.Module]) -> Int8:
        """One scale for the whole matrix in FBGEMM's eyes: with one a channel it would read them
        one by one, which takes as long as packing."""
        weight, bias = side_by_side(layers)
        levels, scales = torch.empty(weight.shape, dtype=torch.int8), torch.empty(len(weight))
        _kernels().to_levels(weight.numpy(), _WEIGHT_LEVELS, levels.numpy(), scales.numpy())
        quantized = torch._make_per_tensor_quantized_tensor(levels, 1.0, 0)
        return Int8(torch.ops.quantized.linear_prepack(quantized, None), scales, bias)

    def __call__(self, x: Scaled) -> Values:
        scaled, scales = np.empty_like(x.values), np.empty_like(x.scales)
        _kernels().scale_rows(x.values, scaled, scales)
        product = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
        y = product(torch.from_numpy(scaled), 1 / _INPUT_LEVELS, ZERO, self.packed)
        y.mul_(self.scales).mul_(torch.from_numpy(scales)[:, None])
        return values_of(y if self.bias is None else y.add_(self.bias))


@cache
def _kernels() -> Any:
    """The compiled passes: numba is an extra."""
    from forethought.sampling import kernels

    return kernels


@cache
def can_multiply(weights: Weights) -> bool:
    """Whether this torch and this processor have that packed product: tried out once."""
    layer = nn.Linear(64, 96)
    x = torch.linspace(-3, 3, 4 * 64).view(4, 64).cos()
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(-1, 1, 96 * 64).view(96, 64).sin())
        wanted = layer(x)
        try:
            if weights == "bfloat16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
                return False  # it would be worked out in float32
            with warnings.catch_warnings(), ThreadPoolExecutor(1) as pool:
                warnings.simplefilter("ignore")
                product = _packing(pool, [layer], weights)()
                y = tensor_of(product(Scaled.in_format(x, product.takes))).float()
        except (RuntimeError, AttributeError, NotImplementedError, TypeError, ImportError):
            return False
        return bool((y - wanted).abs().max() < 0.05 * wanted.abs().max())
