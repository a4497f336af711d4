"""Weights in the order in which tiles read them (`sampling/tiles.py`), of one product and of one in
every layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from forethought.sampling.scaled import Format, Scaled, Values, room
from forethought.sampling.stacks import side_by_side

TiledFormat = Literal["uint8", "bfloat16"]
_PER_WORD: dict[TiledFormat, int] = {"uint8": 4, "bfloat16": 2}  # numbers
_WORTH_SHARING = 1 << 13  # words of weights among threads
Panels = tuple[NDArray[Any], NDArray[np.int32], NDArray[np.float32], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Tiled:
    """The layers side by side in int8 or bfloat16, for processors with dot products of those. Int8
    has one scale an output and one an input row, so that a row is the same whoever else is in the
    batch."""

    panels: NDArray[Any]  # (P, W, 64) words of 4 bytes
    offsets: NDArray[np.int32]  # (P, 64), as are factors and biases
    factors: NDArray[np.float32]
    biases: NDArray[np.float32]
    width: int  # outputs, of P * 64
    takes: Format

    @staticmethod
    def of(layers: Sequence[nn.Module], form: TiledFormat) -> Tiled:
        whole = TiledLayers.of([layers], form)
        panels, offsets, factors, biases = whole.panels
        return Tiled(panels[0], offsets[0], factors[0], biases[0], whole.width, form)

    def __call__(self, x: Scaled) -> Values:
        out = room(len(x.scales), self.biases.size)
        tiles, threads = _tiles(), torch.get_num_threads()
        tiles.multiply(
            threads if self.panels.size > _WORTH_SHARING else 1,
            len(out) >= tiles.ROWS_EACH * threads,
            x.values.view(self.panels.dtype),
            (self.panels, self.offsets, self.factors, self.biases),
            x.scales,
            out,
        )
        return out if self.width == out.shape[1] else out[:, : self.width]


@dataclass(frozen=True, slots=True)
class TiledLayers:
    """The same product of all layers: what `Tiled` has, each in one piece for all L layers."""

    panels: Panels  # (L, P, W, 64) words, and offsets, factors and biases (L, P, 64)
    width: int
    takes: TiledFormat

    @staticmethod
    @torch.no_grad()
    def of(many: Sequence[Sequence[nn.Module]], form: TiledFormat) -> TiledLayers:
        """`many`: the product's linear layers, layer by layer of the model."""
        tiles = _tiles()
        shapes = [layer.weight.shape for layer in cast("Sequence[Any]", many[0])]
        width, depth = sum(outputs for outputs, _ in shapes), shapes[0][1]
        shape = (len(many), -(-width // tiles.PANEL), depth // _PER_WORD[form])
        # by torch, whose memory begins where a register's does
        panels = torch.empty(*shape, tiles.PANEL, dtype=torch.int32).numpy().view(_word(form))
        offsets = np.empty((*shape[:2], tiles.PANEL), np.int32)
        factors, biases = np.empty(offsets.shape, np.float32), np.zeros(offsets.shape, np.float32)
        for i, layers in enumerate(many):
            weight, bias = side_by_side(layers)
            packed = panels[i], offsets[i], factors[i]
            tiles.pack(torch.get_num_threads(), weight.float().numpy(), *packed)
            if bias is not None:
                biases[i].flat[:width] = bias.float().numpy()
        return TiledLayers((panels, offsets, factors, biases), width, form)


def _word(form: TiledFormat) -> Any:
    return np.int32 if form == "uint8" else np.uint32


def is_tiled(layers: Sequence[nn.Module], weights: str) -> bool:
    """Whether there are such tiles here, and the inputs of these layers fill whole words."""
    if weights not in ("int8", "bfloat16") or find_spec("numba") is None:
        return False
    tiles, depths = _tiles(), [int(x.weight.shape[1]) for x in cast("Sequence[Any]", layers)]
    has = tiles.HAS_INT8 if weights == "int8" else tiles.HAS_BFLOAT16
    at_once = tiles.WORDS_AT_ONCE * _PER_WORD["uint8" if weights == "int8" else "bfloat16"]
    return bool(has) and all(depth % at_once == 0 for depth in depths)


@cache
def _tiles() -> Any:
    """numba is an extra."""
    from forethought.sampling import tiles

    return tiles
