"""fp32 master weights, computation in what the machine is fast at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

# Not cuDNN's attention: with a mask its gradient is not a number at some lengths
# (github.com/pytorch/pytorch/issues/196678).
_SOUND = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@contextmanager
def compute_in(device: str, dtype: torch.dtype) -> Iterator[None]:
    """Autocast to `dtype`, unless that is float32; attention has a sound gradient."""
    is_narrow = dtype != torch.float32
    narrow = torch.autocast(torch.device(device).type, dtype=dtype) if is_narrow else nullcontext()
    with narrow, sdpa_kernel(_SOUND):
        yield
