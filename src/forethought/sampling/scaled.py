"""Rows of numbers in the format that a matrix product takes and gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Format = Literal["float32", "bfloat16", "uint8"]
ZERO = 128  # what stands for 0 in uint8
_STORED_AS: dict[Format, Any] = {
    "float32": np.float32,
    "bfloat16": np.uint16,
    "uint8": np.uint8,
}


@dataclass(frozen=True, slots=True)
class Scaled:
    """Row r is values[r] * scales[r]: values (n, K), scales (n,) float32.

    Values in bfloat16 stand as the upper half of a float32, in uint16; those in uint8 are ZERO
    more than what they mean. Every row has a scale of its own, so that it is the same whoever
    else is in the batch.
    """

    values: NDArray[Any]
    scales: NDArray[np.float32]

    @staticmethod
    def room(rows: int, width: int, form: Format) -> Scaled:
        """Not filled in yet."""
        return Scaled(np.empty((rows, width), _STORED_AS[form]), np.empty(rows, np.float32))

    @staticmethod
    def of(x: Tensor) -> Scaled:
        """x: (n, K) float32 or bfloat16, kept as it is."""
        is_half = x.dtype == torch.bfloat16
        values = x.view(torch.uint16) if is_half else x
        return Scaled(values.numpy(), np.ones(len(x), np.float32))

    @staticmethod
    def in_format(x: Tensor, form: Format) -> Scaled:
        """x (n, K) float32, rounded to that format."""
        if form != "uint8":
            return Scaled.of(x.to(getattr(torch, form)))
        scales = x.abs().amax(dim=1) / 127  # (n,)
        return Scaled((x / scales[:, None] + ZERO).round().byte().numpy(), scales.numpy())

    def tensor(self) -> Tensor:
        """The values (n, K), in bfloat16 where they are, without their scales."""
        values = torch.from_numpy(self.values)
        return values.view(torch.bfloat16) if values.dtype == torch.uint16 else values

    def floats(self) -> Tensor:
        """The rows themselves (n, K), in float32."""
        rows = self.tensor().float()
        return rows if (self.scales == 1).all() else rows * torch.from_numpy(self.scales)[:, None]
