"""What training computes in has a gradient at every length."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from forethought.models.precision import compute_in

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
