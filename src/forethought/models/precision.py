"""fp32 master weights, computation in what the machine is fast at."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def compute_in(device: str, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Autocast to `dtype`, or nothing when it is float32."""
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype=dtype)
