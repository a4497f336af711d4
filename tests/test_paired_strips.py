"""Strips by AMX find what their attention in float32 does, but for what bfloat16 cannot hold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from forethought.sampling.lanes import may_use_amx
from forethought.training.lean_functions import Attention, layout_of

STRIPS = st.lists(st.lists(st.integers(1, 70), min_size=1, max_size=4), min_size=1, max_size=3)
_OFF = 0.01  # of what is found: bfloat16 has 8 bits

needs_amx = pytest.mark.skipif(not may_use_amx(), reason="the processor has no AMX")


def attention(
    pieces: Sequence[Sequence[int]],
    padding: int,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
) -> list[Tensor]:
    """What random queries find, and the gradients of queries, keys and values; `shape`: key-value
    heads, query heads of each, head_dim."""
    kv_heads, repeats, head_dim = shape
    starts = [0]
    for strip in pieces:
        starts.append(starts[-1] + sum(strip) + padding)
    torch.manual_seed(starts[-1])
    counts = (kv_heads * repeats, kv_heads, kv_heads)
    heads = [torch.randn(starts[-1], n, head_dim).bfloat16() for n in counts]
    given_back = torch.randn_like(heads[0])
    angles = torch.rand(starts[-1], head_dim // 2).repeat(1, 2)
    leaves = [x.to(dtype).requires_grad_() for x in heads]
    out = Attention.apply(  # type: ignore[no-untyped-call]
        *leaves, angles.cos(), angles.sin(), layout_of(pieces, starts), head_dim**-0.5
    )
    out.backward(given_back.to(dtype))
    return [out.detach(), *(x.grad for x in leaves if x.grad is not None)]


@needs_amx
@given(
    pieces=STRIPS,
    padding=st.integers(0, 3),
    kv_heads=st.integers(1, 3),
    repeats=st.sampled_from([1, 2, 3, 5, 7, 16, 20]),
    head_dim=st.sampled_from([64, 96, 128]),
)
@settings(max_examples=60, deadline=None)
def test_they_are_as_in_float32(
    pieces: list[list[int]], padding: int, kv_heads: int, repeats: int, head_dim: int
) -> None:
    shape = (kv_heads, repeats, head_dim)
    found = attention(pieces, padding, shape, torch.bfloat16)
    wanted = attention(pieces, padding, shape, torch.float32)
    largest = max(float(x.norm()) for x in wanted[1:])
    for mine, theirs in zip(found, wanted, strict=True):
        off = float((mine.float() - theirs).norm())
        # of one token alone nothing hangs on queries and keys; rounding is all there is
        assert off <= _OFF * max(float(theirs.norm()), 0.3 * largest)
        assert not bool(mine.isnan().any())


@needs_amx
def test_what_stands_behind_a_strip_finds_and_gets_nothing() -> None:
    out, *gradients = attention([[9, 20], [31]], 3, (2, 3, 64), torch.bfloat16)
    for found in (out, *gradients):
        assert not found[29:32].any() and not found[63:].any()
    assert bool((out[:29].flatten(1) != 0).any(dim=1).all())


@needs_amx
def test_threads_change_no_bit_of_them() -> None:
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(attention([[80, *[64] * 4], [200]], 0, (2, 4, 64), torch.bfloat16))
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        for mine, theirs in zip(found[0], others, strict=True):
            assert np.array_equal(mine.float().numpy(), theirs.float().numpy())
