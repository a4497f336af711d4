"""Rows of numbers in the format that a matrix product takes, and what it gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Format = Literal["float32", "bfloat16", "uint8"]
Values = NDArray[Any]  # numbers in bfloat16 stand as the upper half of a float32, in uint16
ZERO = 128  # what stands for 0 in uint8
_STORED_AS: dict[Format, Any] = {
    "float32": torch.float32,
    "bfloat16": torch.uint16,
    "uint8": torch.uint8,
}


@dataclass(frozen=True, slots=True)
class Scaled:
    """Row r is values[r] * scales[r]: values (n, K), scales (n,) float32, 1 but in uint8.

    Values in uint8 are ZERO more than what they mean. Every row has a scale of its own, so that it
    is the same whoever else is in the batch.
    """

    values: Values
    scales: NDArray[np.float32]

    @staticmethod
    def room(rows: int, width: int, form: Format) -> Scaled:
        """Not filled in yet."""
        return Scaled(room(rows, width, kind=_STORED_AS[form]), np.empty(rows, np.float32))

    @staticmethod
    def in_format(x: Tensor, form: Format) -> Scaled:
        """x (n, K) float32, rounded to that format."""
        if form != "uint8":
            return Scaled(values_of(x.to(getattr(torch, form))), np.ones(len(x), np.float32))
        scales = x.abs().amax(dim=1) / 127  # (n,)
        return Scaled((x / scales[:, None] + ZERO).round().byte().numpy(), scales.numpy())

    def tensor(self) -> Tensor:
        """The values (n, K), in bfloat16 where they are, without their scales."""
        return tensor_of(self.values)


def room(*shape: int, kind: torch.dtype = torch.float32) -> Values:
    """Numbers not filled in yet, which begin where a line of memory does, as torch's do: a register
    of a line's width then reads one line and not two."""
    return torch.empty(*shape, dtype=kind).numpy()


def values_of(x: Tensor) -> Values:
    """x in float32 or bfloat16, kept as it is."""
    return (x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).numpy()


def tensor_of(values: Values) -> Tensor:
    """The same back."""
    x = torch.from_numpy(values)
    return x.view(torch.bfloat16) if x.dtype == torch.uint16 else x
