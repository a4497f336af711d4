"""Passes over a row in vector registers do what numpy and torch do, whatever the row's length."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from forethought.sampling.head_vectors import (
    product_with,
    read,
    read_turned,
    transpose,
    write,
    write_turned_back,
)
from forethought.sampling.lanes import LANES
from forethought.sampling.row_vectors import exponentials, largest_of, to_slopes
from forethought.sampling.scaled import values_of

FEW = settings(max_examples=60, deadline=None)
SIZES = st.sampled_from([2, 10, 16, 32, 46, 64, 80])
FORMATS = st.sampled_from([torch.float32, torch.bfloat16])
Array = Any


@njit  # type: ignore[untyped-decorator]
def weigh(x: Array, count: int, stop: int) -> Any:
    top = largest_of(x, 1, count)
    return top, exponentials(x, 1, count, stop, top, x)


@njit  # type: ignore[untyped-decorator]
def slope(x: Array, y: Array, count: int, stop: int, logsum: Any, whole: Any) -> None:
    to_slopes(x, y, 1, count, stop, logsum, whole)


@njit  # type: ignore[untyped-decorator]
def take(heads: Array, rows: Array, factor: Any, cos: Array, sin: Array) -> Any:
    read(heads, 1, 2, rows, 0)
    read_turned(heads, 1, 2, rows, 1, factor, cos, sin, 3)
    return product_with(heads, 1, 2, rows, 0)


@njit  # type: ignore[untyped-decorator]
def give(rows: Array, out: Array, factor: Any, cos: Array, sin: Array) -> None:
    write(rows, 0, factor, out, 1, 0)
    write_turned_back(rows, 1, factor, out, 1, 1, cos, sin)


@njit  # type: ignore[untyped-decorator]
def turn_round(rows: Array, size: int, blocks: Array) -> None:
    transpose(rows, size, blocks)


def room(count: int) -> int:
    return count + 2 * LANES


@given(count=st.integers(1, 70), more=st.integers(0, 20), seed=st.integers(0, 999))
@FEW
def test_weights_are_exponentials_and_zero_behind(count: int, more: int, seed: int) -> None:
    x = np.random.default_rng(seed).normal(0, 20, (3, room(count + more))).astype(np.float32)
    before = x.copy()
    top, total = weigh(x, count, count + more)
    wanted = np.exp(before[1, :count] - before[1, :count].max())
    assert top == before[1, :count].max()
    assert np.allclose(x[1, :count], wanted, rtol=1e-5, atol=1e-30)
    assert np.isclose(total, wanted.sum(), rtol=1e-5)
    assert not x[1, count : count + more].any()
    assert np.array_equal(x[[0, 2]], before[[0, 2]])


def test_what_is_not_a_number_is_seen_in_the_sum() -> None:
    for place in (0, 7, 30):
        x = np.zeros((2, room(31)), np.float32)
        x[1, place] = np.nan
        assert np.isnan(weigh(x, 31, 31)[1])


@given(count=st.integers(1, 50), more=st.integers(0, 20), seed=st.integers(0, 999))
@FEW
def test_slopes_are_those_of_scores(count: int, more: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    x, y = random.normal(0, 2, (2, 3, room(count + more))).astype(np.float32)
    weights = np.exp(x[1, :count] - np.float32(1.5))
    wanted = weights * (y[1, :count] - np.float32(0.3))
    slope(x, y, count, count + more, np.float32(1.5), np.float32(0.3))
    assert np.allclose(x[1, :count], weights, rtol=1e-5)
    assert np.allclose(y[1, :count], wanted, rtol=1e-4, atol=1e-5)
    assert not x[1, count : count + more].any() and not y[1, count : count + more].any()


def turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    low, high = x.chunk(2)
    return x * cos + torch.cat([-high, low]) * sin


@given(size=SIZES, dtype=FORMATS, seed=st.integers(0, 999))
@FEW
def test_heads_are_read_and_turned(size: int, dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    heads = torch.randn(2, 3, size).to(dtype)
    cos, sin = torch.randn(2, 4, size)
    rows = torch.full((2, room(size)), 7.0)
    found = take(values_of(heads), rows.numpy(), np.float32(0.5), cos.numpy(), sin.numpy())
    plain = heads[1, 2].float()
    assert torch.equal(rows[0, :size], plain)
    assert torch.allclose(rows[1, :size], turned(plain * 0.5, cos[3], sin[3]), atol=1e-5)
    assert bool((rows[:, size:] == 7.0).all())
    assert np.isclose(found, float((plain * plain).sum()), rtol=1e-5)


@given(size=SIZES, dtype=FORMATS, seed=st.integers(0, 999))
@FEW
def test_gradients_are_turned_back_and_rounded_as_torch_does(
    size: int, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    rows = torch.randn(2, room(size))
    rows[0, 0] = torch.nan
    cos, sin = torch.randn(2, 3, size)
    out = torch.zeros(3, 2, size, dtype=dtype)
    give(rows.numpy(), values_of(out), np.float32(0.5), cos.numpy(), sin.numpy())
    assert torch.equal(out[1, 0].nan_to_num(9.0), (rows[0, :size] * 0.5).to(dtype).nan_to_num(9.0))
    given_ = torch.zeros(size, requires_grad=True)
    (turned(given_ * 0.5, cos[1], sin[1]) * rows[1, :size]).sum().backward()
    assert given_.grad is not None
    assert torch.allclose(out[1, 1].float(), given_.grad, rtol=1e-2, atol=1e-2)
    assert not out[[0, 2]].any()


@given(size=SIZES, num_blocks=st.integers(1, 3))
@FEW
def test_keys_stand_in_blocks(size: int, num_blocks: int) -> None:
    rows = np.random.default_rng(size).normal(size=(num_blocks * LANES, size + 5))
    blocks = np.empty((num_blocks, size, LANES), np.float32)
    turn_round(rows.astype(np.float32), size, blocks)
    wanted = rows.astype(np.float32)[:, :size].reshape(num_blocks, LANES, size).swapaxes(1, 2)
    assert np.array_equal(blocks, wanted)
