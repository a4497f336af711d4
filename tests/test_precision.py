"""What training computes in has a gradient at every length, and casts no more than it must."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from forethought.models.precision import compute_in, keep_casts, wide_attention

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("length", [64, 100, 704])
def test_attention_with_a_mask_has_a_finite_gradient(length: int) -> None:
    """Where every score is low, as of some heads of Qwen2.5, cuDNN's has none at 64, 704, ..."""
    size = 64
    torch.manual_seed(0)
    shape = (1, 1, length, size)
    query, key, value = (torch.randn(shape, device=DEVICE) * x for x in (0.1, 0.1, 1.0))
    query[..., 0], key[..., 0] = 1.0, -120 * math.sqrt(size)
    query, key, value = (x.to(torch.bfloat16).requires_grad_() for x in (query, key, value))
    mask = torch.ones(length, length, dtype=torch.bool, device=DEVICE).tril()[None, None]
    with compute_in(DEVICE, torch.bfloat16):
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    found.backward(torch.randn_like(found))
    assert all(x.grad is not None and bool(x.grad.isfinite().all()) for x in (query, key, value))


def test_it_leaves_things_as_they_were() -> None:
    before = torch.backends.cuda.cudnn_sdp_enabled()
    with compute_in(DEVICE, torch.bfloat16):
        assert torch.is_autocast_enabled(DEVICE)
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    with compute_in(DEVICE, torch.float32):
        assert not torch.is_autocast_enabled(DEVICE)
    assert torch.backends.cuda.cudnn_sdp_enabled() == before


@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.bfloat16])
def test_on_a_cpu_attention_is_in_float32(mask_dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, 9, 8) for _ in range(3))
    seen = torch.ones(9, 9, dtype=torch.bool).tril()
    mask = seen if mask_dtype == torch.bool else torch.zeros(9, 9).masked_fill(~seen, -1024)
    value = value.bfloat16()
    exact = F.scaled_dot_product_attention(query, key, value.float(), attn_mask=mask)
    with compute_in("cpu", torch.bfloat16), wide_attention():
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=mask.to(mask_dtype))
        by_name = F.scaled_dot_product_attention(query=query, key=key, value=value, attn_mask=mask)
    assert torch.equal(found, exact.bfloat16())
    assert torch.equal(by_name, found)


class CountCasts(TorchDispatchMode):
    """How often a tensor of this shape is copied into another format."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape, self.count = shape, 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        is_cast = func is torch.ops.aten._to_copy.default and args[0].dtype == torch.float32
        self.count += is_cast and tuple(args[0].shape) == self.shape
        return func(*args, **(kwargs or {}))


def passes(layer: nn.Module, batches: list[Tensor]) -> int:
    """Walk every batch forward and back; how often the weight was cast."""
    with CountCasts((5, 4)) as casts:
        for x in batches:
            with compute_in("cpu", torch.bfloat16):
                y = layer(x)
            assert y.dtype == torch.bfloat16
            assert not torch.is_autocast_enabled("cpu")
            y.float().pow(2).sum().backward()
    return casts.count


def test_weights_that_do_not_change_are_cast_once() -> None:
    torch.manual_seed(0)
    layer, batches = nn.Linear(4, 5), [torch.randn(3, 4) for _ in range(3)]
    assert passes(layer, batches) == 3
    wanted = [p.grad for p in layer.parameters()]
    layer.zero_grad()
    with keep_casts("cpu", torch.bfloat16):
        assert passes(layer, batches) == 1
    for p, grad in zip(layer.parameters(), wanted, strict=True):
        assert p.grad is not None and grad is not None and torch.equal(p.grad, grad)
    with torch.no_grad():
        layer.weight.zero_()
    with compute_in("cpu", torch.bfloat16):
        assert not layer(batches[0]).sub(layer.bias).abs().gt(1e-2).any()  # not the old weight
