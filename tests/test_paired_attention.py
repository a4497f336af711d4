"""Attention by AMX, over keys and values in pairs, against torch's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from forethought.sampling import tiles
from forethought.sampling.kernels import compiled
from forethought.sampling.paired_attention import attend_paired, store_paired
from forethought.sampling.scaled import Scaled, values_of
from forethought.sampling.shared_cache import Table
from forethought.sampling.team import share_out
from test_tiles import Config

needs_amx = pytest.mark.skipif(not tiles.HAS_AMX, reason="no AMX here")
SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 16), st.sampled_from([32, 64, 96, 128]))


def room(kv_heads: int, size: int, count: int) -> Table:
    """Of what is no number, so that nothing may be read that was not stored."""
    model: Any = nn.Module()
    model.config = Config(kv_heads, kv_heads, size)
    table = Table.room(model, count, 128, "paired")
    table.keys[:], table.values[:] = 0xFFFFFFFF, 0xFFFF
    return table


@compiled
def attend(num_threads: int, arguments: Any, count: int) -> None:
    share_out(attend_paired, arguments, count, num_threads)


@compiled
def put_in(num_threads: int, arguments: Any, count: int) -> None:
    share_out(store_paired, arguments, count, num_threads)


def found_by(
    queries: Tensor,
    tables: tuple[Table, Table],
    groups: Sequence[int],
    prompt: int,
    seats: Sequence[int],
    own: Sequence[int],
    threads: int,
) -> Tensor:
    """For queries (rows, kv_heads, repeats, size), the same."""
    rows, kv_heads, repeats, size = queries.shape
    asking = values_of(queries.transpose(0, 1).reshape(kv_heads, -1, size).bfloat16())
    out = Scaled.room(rows, kv_heads * repeats * size, "float32")
    indices = [np.array(numbers) for numbers in (groups, [prompt] * rows, seats, own)]
    prompts, mine = map(tuple, tables)
    attend(threads, (asking, prompts, mine, 0, *indices, out.values, out.scales), rows)
    return out.tensor().view(queries.shape)


def wanted_of(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """For one row: (kv_heads, repeats, size) over (kv_heads, tokens, size)."""
    numbers = (x.bfloat16().float() for x in (query, keys, values))
    return scaled_dot_product_attention(*numbers, scale=1.0)


@needs_amx
@given(shape=SHAPES, prompt=st.integers(0, 70), rows=st.integers(1, 12), threads=st.integers(1, 2))
@settings(max_examples=25, deadline=None)
def test_siblings_see_their_prompt_and_their_own_tokens(
    shape: tuple[int, int, int], prompt: int, rows: int, threads: int
) -> None:
    kv_heads, repeats, size = shape
    generator = torch.Generator().manual_seed(rows + prompt)
    groups = sorted(torch.randint(3, (rows,), generator=generator).tolist())
    seats = torch.randperm(rows, generator=generator).tolist()
    own = torch.randint(1, 100, (rows,), generator=generator).tolist()

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    queries = draw(rows, kv_heads, repeats, size) / size**0.5
    given = [(draw(kv_heads, prompt, size), draw(kv_heads, prompt, size)) for _ in range(3)]
    mine = [(draw(kv_heads, count, size), draw(kv_heads, count, size)) for count in own]
    tables = room(kv_heads, size, 3), room(kv_heads, size, rows)
    for place, pair in enumerate(given if prompt else []):
        tables[0].fill(0, place, *pair)
    for seat, pair in zip(seats, mine, strict=True):
        tables[1].fill(0, seat, *pair)
    found = found_by(queries, tables, groups, prompt, seats, own, threads)
    for r, (group, pair) in enumerate(zip(groups, mine, strict=True)):
        keys, values = (torch.cat(both, dim=1) for both in zip(given[group], pair, strict=True))
        assert torch.allclose(found[r], wanted_of(queries[r], keys, values), atol=2e-2)
        one = slice(r, r + 1)
        alone = found_by(queries[one], tables, groups[one], prompt, seats[one], own[one], 1)
        assert torch.equal(alone[0], found[r])


@needs_amx
@given(shape=SHAPES, counts=st.lists(st.integers(1, 70), min_size=1, max_size=3))
@settings(max_examples=15, deadline=None)
def test_tokens_of_a_prompt_see_those_before_them(
    shape: tuple[int, int, int], counts: list[int]
) -> None:
    kv_heads, repeats, size = shape
    generator = torch.Generator().manual_seed(sum(counts))
    table = room(kv_heads, size, len(counts))
    pairs = [torch.randn(2, kv_heads, n, size, generator=generator) for n in counts]
    for place, pair in enumerate(pairs):
        table.fill(0, place, *pair)
    seats = [place for place, n in enumerate(counts) for _ in range(n)]
    own = [i + 1 for n in counts for i in range(n)]
    queries = torch.randn(len(own), kv_heads, repeats, size, generator=generator) / size**0.5
    found = found_by(queries, (table, table), [0] * len(own), 0, seats, own, 2)
    for r, (seat, seen) in enumerate(zip(seats, own, strict=True)):
        keys, values = pairs[seat][:, :, :seen]
        assert torch.allclose(found[r], wanted_of(queries[r], keys, values), atol=2e-2)


@needs_amx
@pytest.mark.parametrize("is_reading", [False, True])
@pytest.mark.parametrize("size", [32, 64])
def test_what_is_stored_token_by_token_is_what_a_table_is_filled_with(
    size: int, is_reading: bool
) -> None:
    kv_heads, repeats, count = 2, 3, 45
    wanted, found = room(kv_heads, size, 1), room(kv_heads, size, 1)
    products = torch.randn(count, kv_heads * (repeats + 2), size)
    keys, values = products[:, -2 * kv_heads : -kv_heads], products[:, -kv_heads:]
    wanted.fill(0, 0, keys.transpose(0, 1), values.transpose(0, 1))
    found.end(np.array([count]))
    if not is_reading:
        found.values[:] = 0xFFFF
    cos, sin = np.ones((1, size), np.float32), np.zeros((1, size), np.float32)
    queries = np.empty((kv_heads, count * repeats, size), np.uint16)
    zeros, own = np.zeros(count, np.int64), np.arange(1, count + 1)
    norms, epsilon = np.empty((0, size), np.float32), np.float32(0)
    put_in(
        2 if is_reading else 1,
        (
            is_reading,
            products.flatten(1).numpy(),
            norms,
            epsilon,
            cos,
            sin,
            zeros,
            tuple(found),
            0,
            zeros,
            own,
            queries,
        ),
        count,
    )
    lane = np.arange(48) < count
    assert (
        (found.keys[..., :3, :, :] == wanted.keys[..., :3, :, :])
        .swapaxes(4, 5)[0, 0, :, lane.reshape(3, 16)]
        .all()
    )
    assert (found.values[..., :32, :] == wanted.values[..., :32, :]).all()
    asked = (products[:, : -2 * kv_heads] * np.float32(size**-0.5)).view(count, kv_heads, -1, size)
    assert (queries == values_of(asked.transpose(0, 1).flatten(1, 2).bfloat16())).all()
