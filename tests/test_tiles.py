"""Kernels of the lean step against what torch computes, in all shapes and threads."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from forethought.sampling import amx, team, tiles
from forethought.sampling.attention import attend, heads_together
from forethought.sampling.kernels import compiled, put
from forethought.sampling.scaled import Format, Scaled, tensor_of
from forethought.sampling.shared_cache import Table
from forethought.sampling.tiled import Tiled

SMALLEST = float(np.finfo(np.float32).tiny)  # of normal numbers
FORMS: list[Format] = [
    *(["uint8"] if tiles.HAS_INT8 else []),
    *(["bfloat16"] if tiles.HAS_BFLOAT16 else []),
]


@pytest.mark.skipif(not FORMS, reason="no dot products here")
@given(
    rows=st.one_of(st.integers(1, 14), st.integers(15, 70)),
    depth=st.integers(1, 9).map(lambda n: 4 * tiles.WORDS_AT_ONCE * n),
    widths=st.lists(st.integers(1, 90), min_size=1, max_size=3),
    has_bias=st.booleans(),
    form=st.sampled_from(FORMS or ["uint8"]),
)
@settings(max_examples=60, deadline=None)
@torch.no_grad()
def test_tiles_multiply_what_they_are_given(
    rows: int, depth: int, widths: list[int], has_bias: bool, form: Any
) -> None:
    torch.manual_seed(rows * 1000 + depth)
    layers = [nn.Linear(depth, width, bias=has_bias) for width in widths]
    x = torch.randn(rows, depth) * torch.logspace(-2, 2, rows)[:, None]
    wanted = torch.cat([layer(x) for layer in layers], dim=1)
    found = tensor_of(Tiled.of(layers, form)(Scaled.in_format(x, form)))
    assert found.shape == wanted.shape
    worst = (found - wanted).abs().amax(dim=1)
    assert (worst <= 0.03 * x.norm(dim=1) + 1e-3).all()


@pytest.mark.skipif(not FORMS, reason="no dot products here")
@pytest.mark.parametrize("form", FORMS)
def test_a_row_of_a_tile_is_the_same_whoever_is_beside_it(form: Any) -> None:
    torch.manual_seed(0)
    product, x = Tiled.of([nn.Linear(64, 200)], form), torch.randn(13, 64)
    together = tensor_of(product(Scaled.in_format(x, form)))
    for row, wanted in zip(x, together, strict=True):
        assert torch.equal(tensor_of(product(Scaled.in_format(row[None], form)))[0], wanted)


@pytest.mark.skipif(not FORMS, reason="no dot products here")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("rows", [1, 2, 13, 64])
def test_threads_may_share_out_rows_or_outputs(form: Any, threads: int, rows: int) -> None:
    torch.manual_seed(0)
    product, x = Tiled.of([nn.Linear(64, 300)], form), Scaled.in_format(torch.randn(rows, 64), form)
    found = {by_rows: np.full((rows, 320), np.nan, np.float32) for by_rows in (True, False)}
    for by_rows, out in found.items():
        words = x.values.view(product.panels.dtype)
        packed = product.panels, product.offsets, product.factors, product.biases
        tiles.multiply(threads, by_rows, words, packed, x.scales, out)
    assert np.isfinite(found[True]).all()
    assert (found[True] == found[False]).all()


@pytest.mark.skipif(not tiles.HAS_AMX, reason="no AMX here")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rows", [1, 15, 16, 17, 33, 70])
def test_amx_finds_what_dot_products_do(form: Any, rows: int) -> None:
    torch.manual_seed(0)
    product = Tiled.of([nn.Linear(256, 100)], form)
    x, found = Scaled.in_format(torch.randn(rows, 256), form), []
    registers = product.panels.reshape(2, -1, 4, amx.ROWS, amx.WORDS)
    in_order = registers.swapaxes(2, 3).reshape(product.panels.shape)
    kinds = (tiles.by_dot_products, np.ascontiguousarray(in_order)), (amx.by_amx, product.panels)
    for multiply_rows, panels in kinds:
        out = np.full((rows, 128), np.nan, np.float32)
        words = x.values.view(product.panels.dtype)
        packed = panels, product.offsets, product.factors, product.biases
        multiply_rows(True, words, packed, x.scales, out, 0, rows)
        found.append(out)
    bound = 0 if form == "uint8" else 1e-5  # whole numbers add up the same in any order
    assert np.allclose(*found, rtol=0, atol=bound)


@given(
    kv_heads=st.integers(1, 3),
    repeats=st.integers(1, 13),
    size=st.sampled_from([2, 8, 24, 64, 80]),
    prompt=st.integers(0, 40),
    own=st.integers(1, 40),
    threads=st.integers(1, 3),
)
@settings(max_examples=40, deadline=None)
def test_attention_is_that_of_prompt_and_own_tokens(
    kv_heads: int, repeats: int, size: int, prompt: int, own: int, threads: int
) -> None:
    torch.manual_seed(size + own)
    rows, heads = 3, kv_heads * repeats
    model: Any = nn.Module()
    model.config = Config(kv_heads, heads, size)
    tables = [Table.room(model, count, 64, "float32") for count in (2, rows)]
    given = [torch.randn(2, kv_heads, prompt, size), torch.randn(2, kv_heads, prompt, size)]
    mine = [torch.randn(rows, kv_heads, own, size), torch.randn(rows, kv_heads, own, size)]
    for table, pair in zip(tables, (given, mine), strict=True):
        for place, (keys, values) in enumerate(zip(*pair, strict=True)):
            table.fill(0, place, keys, values)
    queries = torch.randn(rows, heads, size)
    groups, counts = np.array([1, 0, 1]), np.full(rows, own)
    out = Scaled.room(rows, heads * size, "float32")
    attend(
        threads,
        heads_together(heads, kv_heads),
        queries.numpy(),
        tuple(tables[0]),
        tuple(tables[1]),
        0,
        groups,
        np.full(rows, prompt),
        np.arange(rows),
        counts,
        out.values,
        out.scales,
    )
    keys, values = (
        torch.cat([g[groups], m], dim=2).repeat_interleave(repeats, dim=1)
        for g, m in zip(given, mine, strict=True)
    )
    wanted = scaled_dot_product_attention(queries[:, :, None], keys, values, scale=1.0)
    assert torch.allclose(out.tensor().view(rows, heads, size), wanted[:, :, 0], atol=1e-4)


class Config:
    """As much of a model's configuration as the shape of its cache."""

    num_hidden_layers = 1

    def __init__(self, kv_heads: int, heads: int, size: int) -> None:
        self.num_key_value_heads, self.num_attention_heads, self.head_dim = kv_heads, heads, size

    def get_text_config(self) -> Config:
        return self


@compiled
def _pass_on(seen: Any, found: Any, num_threads: int, start: int, stop: int) -> None:
    for i in range(start, stop):
        seen[i] = i + 1
    team.wait_for_team()
    for i in range(start, stop):
        found[i] = seen.sum()


@compiled
def pass_on(seen: Any, found: Any, num_threads: int) -> None:
    team.share_out(_pass_on, (seen, found, num_threads), num_threads, num_threads)


@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_a_team_waits_for_its_slowest_thread(num_threads: int) -> None:
    for _ in range(50):
        seen, found = np.zeros(num_threads, np.int64), np.zeros(num_threads, np.int64)
        pass_on(seen, found, num_threads)
        assert (found == num_threads * (num_threads + 1) // 2).all()


@compiled
def _count(seen: Any, start: int, stop: int) -> None:
    for i in range(start, stop):
        seen[i] += 1


@compiled
def count(seen: Any, num_threads: int) -> None:
    team.share_out(_count, (seen,), len(seen), num_threads)


@pytest.mark.parametrize("num_threads", [1, 2, 5])
@pytest.mark.parametrize("size", [0, 1, 2, 17])
def test_a_team_goes_over_everything_once(size: int, num_threads: int) -> None:
    seen = np.zeros(size, np.int64)
    count(seen, num_threads)
    assert (seen == 1).all()


def test_without_openmp_a_team_is_one() -> None:
    parallel, number, total, barrier = team.stand_ins()
    barrier()
    seen = []
    kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    work = kind(lambda data: seen.append((data, number(), total())))
    parallel(ctypes.cast(work, ctypes.c_void_p), 7, 4, 0)
    assert seen == [(7, 0, 1)]


@pytest.mark.parametrize("bits", [0x7FFFFFFF, -1, 0x7F800001, 0x7FC00000])
def test_what_is_no_number_stays_none_in_bfloat16(bits: int) -> None:
    broken = np.array([bits & 0xFFFFFFFF] * 3, np.uint32).view(np.float32)
    out, scales = np.zeros((1, 3), np.uint16), np.zeros(1, np.float32)
    round_row(broken, out, scales)
    assert Scaled(out, scales).tensor().isnan().all()


@given(st.lists(st.floats(width=32), min_size=1, max_size=40))
def test_numbers_round_to_bfloat16_as_torchs_do(numbers: list[float]) -> None:
    row = np.array(numbers, np.float32)
    out, scales = np.zeros((1, len(row)), np.uint16), np.zeros(1, np.float32)
    round_row(row, out, scales)
    wanted, found = torch.from_numpy(row).bfloat16().float(), Scaled(out, scales).tensor().float()
    for x in (wanted, found):  # an instruction for it takes so small numbers for 0, torch does not
        x[x.abs() < SMALLEST] = 0.0
    assert torch.equal(found[0].nan_to_num(7.0), wanted.nan_to_num(7.0))


@given(st.lists(st.floats(0, SMALLEST, exclude_max=True, width=32), max_size=40))
def test_what_is_taken_for_0_is_below_the_smallest_normal_number(numbers: list[float]) -> None:
    row = np.array([*numbers, SMALLEST, -SMALLEST], np.float32)
    out, scales = np.zeros((1, len(row)), np.uint16), np.zeros(1, np.float32)
    round_row(row, out, scales)
    found = Scaled(out, scales).tensor().float()[0]
    assert found[-2:].tolist() == [SMALLEST, -SMALLEST]
    assert bool((found[:-2] >= 0).all() and (found[:-2] <= SMALLEST).all())


@compiled
def round_row(row: Any, out: Any, scales: Any) -> None:
    put(row, out, scales, 0)
