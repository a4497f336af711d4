"""Passes over whole rows in vector registers do what numpy and torch do, in either format."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from forethought.sampling.row_passes import (
    add_and_square,
    copy,
    gate_row,
    magnitude,
    put_in_pairs,
    quantize,
    scale,
)
from forethought.sampling.row_vectors import exponentials_of_both
from forethought.sampling.scaled import values_of

FEW = settings(max_examples=60, deadline=None)
COUNTS = st.integers(1, 70)
SEEDS = st.integers(0, 999)
FORMATS = st.sampled_from([torch.float32, torch.bfloat16])
Array = Any


@njit  # type: ignore[untyped-decorator]
def copied(out: Array, x: Array) -> None:
    copy(out, x)


@njit  # type: ignore[untyped-decorator]
def added(x: Array, more: Array) -> Any:
    return add_and_square(x, more)


@njit  # type: ignore[untyped-decorator]
def scaled(x: Array, factor: Any, weight: Array, out: Array) -> None:
    scale(x, factor, weight, out)


@njit  # type: ignore[untyped-decorator]
def gated(out: Array, gates: Array, ups: Array) -> None:
    gate_row(out, gates, ups)


@njit  # type: ignore[untyped-decorator]
def top_of(x: Array) -> Any:
    return magnitude(x)


@njit  # type: ignore[untyped-decorator]
def levels_of(x: Array, factor: Any, middle: Any, out: Array) -> None:
    quantize(x, factor, middle, out)


@njit  # type: ignore[untyped-decorator]
def paired(x: Array, which: int, out: Array) -> None:
    put_in_pairs(x, which, out)


@njit  # type: ignore[untyped-decorator]
def weigh_both(x: Array, first: int, begin: int, count: int, stop: int, out: Array) -> Any:
    return exponentials_of_both(x, 1, first, begin, count, stop, out)


@given(count=COUNTS, given_=FORMATS, wanted=FORMATS, seed=SEEDS)
@FEW
def test_a_row_is_copied_and_rounded_as_torch_does(
    count: int, given_: torch.dtype, wanted: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    x = torch.randn(count).to(given_)
    x[seed % count] = [1.0, torch.nan, torch.inf, -torch.inf][seed % 4]
    out = torch.full((count + 16,), 7.0, dtype=wanted)
    copied(values_of(out[:count]), values_of(x))
    assert torch.equal(out[:count].nan_to_num(9.0), x.to(wanted).nan_to_num(9.0))
    assert bool((out[count:] == 7.0).all())


@given(count=COUNTS, dtype=FORMATS, seed=SEEDS)
@FEW
def test_what_is_added_is_squared_and_scaled(count: int, dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    x, weight, more = torch.randn(count), torch.randn(count), torch.randn(count).to(dtype)
    wanted, out = x + more.float(), torch.empty(count, dtype=dtype)
    square = added(x.numpy(), values_of(more))
    assert torch.equal(x, wanted)
    assert np.isclose(square, float((wanted.double() ** 2).sum()), rtol=1e-5)
    scaled(x.numpy(), np.float32(0.7), weight.numpy(), values_of(out))
    assert torch.equal(out, (x * 0.7 * weight).to(dtype))


@given(count=COUNTS, dtype=FORMATS, seed=SEEDS)
@FEW
def test_gates_are_those_of_torch(count: int, dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    gates, ups = (30 * torch.randn(count)).to(dtype), torch.randn(count).to(dtype)
    gates[0] = torch.nan if seed % 2 else 0.0
    out = torch.empty(count)
    gated(out.numpy(), values_of(gates), values_of(ups))
    wanted = torch.nn.functional.silu(gates.float()) * ups.float()
    assert torch.allclose(out, wanted, rtol=1e-5, atol=1e-30, equal_nan=True)


@given(count=COUNTS, seed=SEEDS)
@FEW
def test_levels_are_whole_numbers_within_the_largest_magnitude(count: int, seed: int) -> None:
    x = np.random.default_rng(seed).normal(0, 3, count).astype(np.float32)
    top = top_of(x)
    assert top == np.abs(x).max()
    out = np.full(count + 16, 7, np.uint8)
    levels_of(x, np.float32(127) / top, np.float32(128.5), out[:count])
    assert np.abs((out[:count] - 128.0) * top / 127 - x).max() <= top / 127 * 0.5001
    assert (out[count:] == 7).all()
    x[seed % count] = np.nan
    assert np.isnan(top_of(x))


@given(count=COUNTS, which=st.integers(0, 1), seed=SEEDS)
@FEW
def test_one_of_two_is_put_and_the_other_left(count: int, which: int, seed: int) -> None:
    torch.manual_seed(seed)
    x, out = torch.randn(count), torch.full((2 * count + 32,), 7.0, dtype=torch.bfloat16)
    paired(x.numpy(), which, values_of(out[: 2 * count]))
    pairs = out[: 2 * count].view(count, 2)
    assert torch.equal(pairs[:, which], x.bfloat16())
    assert bool((pairs[:, 1 - which] == 7.0).all()) and bool((out[2 * count :] == 7.0).all())


@given(first=st.integers(0, 70), count=st.integers(1, 70), seed=SEEDS)
@FEW
def test_weights_of_both_parts_share_their_largest_score(first: int, count: int, seed: int) -> None:
    begin, stop = -(-first // 32) * 32, -(-count // 32) * 32
    x = np.random.default_rng(seed).normal(0, 9, (2, begin + stop)).astype(np.float32)
    out = torch.full((3, begin + stop), 7.0, dtype=torch.bfloat16)
    total, top = weigh_both(x, first, begin, count, stop, values_of(out))
    scores = np.concatenate([x[1, :first], x[1, begin : begin + count]])
    wanted = np.exp(scores - scores.max())
    found = np.concatenate([out[1, :first].float(), out[1, begin : begin + count].float()])
    assert np.allclose(found, wanted, rtol=2**-8, atol=1e-30)
    assert np.isclose(total, wanted.sum(), rtol=1e-5) and top == scores.max()
    assert not out[1, first:begin].any() and not out[1, begin + count :].any()
    assert bool((out[[0, 2]] == 7.0).all())
    x[1, 0 if first else begin] = np.nan
    assert np.isnan(weigh_both(x, first, begin, count, stop, values_of(out))[0])
