"""fp32 master weights, computation in what the machine is fast at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from forethought.models.kept import keeping

# Not cuDNN's attention: with a mask its gradient is not a number at some lengths
# (github.com/pytorch/pytorch/issues/196678).
_SOUND = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@contextmanager
def compute_in(device: str, dtype: torch.dtype) -> Iterator[None]:
    """Autocast to `dtype`, unless that is float32; attention has a sound gradient."""
    with _autocast(device, dtype), sdpa_kernel(_SOUND):
        yield


def wide_attention() -> AbstractContextManager[object]:
    """For what is autocast on a CPU: attention is in float32, as torch walks it back several times
    slower in bfloat16 where heads are narrow, and no faster where they are wide
    (docs/performance.md). Not for a model without it: every call of torch is looked at."""
    return _WideAttention() if torch.is_autocast_enabled("cpu") else nullcontext()


class _WideAttention(TorchFunctionMode):
    """Attention in float32 whatever is autocast around it; what it finds has the values' format."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        is_attention = func is scaled_dot_product_attention
        return (_wide_attention if is_attention else func)(*args, **(kwargs or {}))


def _wide_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *rest: Any,
    **named: Any,
) -> Tensor:
    if attn_mask is not None and attn_mask.is_floating_point():
        attn_mask = attn_mask.float()
    with torch.autocast("cpu", enabled=False):
        found = scaled_dot_product_attention(
            query.float(), key.float(), value.float(), attn_mask, *rest, **named
        )
    return found.to(value.dtype)


@contextmanager
def keep_casts(device: str, dtype: torch.dtype) -> Iterator[None]:
    """Weights that `compute_in` casts within stay cast until the end of this, for several passes
    over weights that do not change. Outside of `compute_in` nothing is autocast."""
    # autocast drops what it has cast when its outermost block ends
    within = torch.autocast(torch.device(device).type, enabled=False)
    with keeping(), _autocast(device, dtype), within:
        yield


def _autocast(device: str, dtype: torch.dtype) -> AbstractContextManager[object]:
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype=dtype)
