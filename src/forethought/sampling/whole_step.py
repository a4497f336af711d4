"""All layers of the lean step in one compiled call, for models whose products are all tiled.

A layer is four products and the passes between them. Called one by one each costs some ten
microseconds in Python, and begins when the slowest thread has ended the one before. With many rows
a thread takes its own through all layers here, and waits for nobody; with few, the threads share
out the outputs of a product, as each should read its own part of the weights, and wait after each.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from forethought.sampling.attention import attend_rows, store_rows
from forethought.sampling.kernels import compiled, gate_rows, gated, norm_rows, part, store
from forethought.sampling.team import share_out, wait_for_team
from forethought.sampling.tiles import PANEL, multiply_rows

_ONE = np.float32(1.0)


@compiled
def run_layers(
    num_threads: int,
    by_rows: bool,
    is_gating_apart: bool,
    is_reading: bool,
    together: Any,
    hidden: Any,
    more: Any,
    norms: Any,
    head_norms: Any,
    products: Any,
    buffers: Any,
    rooms: Any,
    seats: Any,
    tables: Any,
) -> None:
    """Take `hidden` (n, D), float32, and `more` (n, at least D), what is to be added to it, through
    all L layers; `more` is then what the last layer adds.

    by_rows: whether threads share out rows alone. is_gating_apart: whether all of gate and up is
    worked out before any of it is gone over, and not a panel at a time. is_reading: whether rows
    see each other, being tokens of one prompt. norms: weights (L, 2, D) before attention and before
    the MLP, and epsilon; head_norms: (L, 0 or 2, head_dim), and epsilon. products: of heads,
    output, gate and up, and down, each panels (L, P, W, PANEL), offsets, factors and biases (L, P,
    PANEL). buffers: inputs of the products, first D wide, then query heads * head_dim, then F, each
    as values, words and scales; rooms: for heads and for gate and up, of n rows, for a panel of
    each of the latter (2, n, PANEL), and for queries (n, query heads, head_dim). seats: positions,
    groups, prompt lengths, seats and own lengths, each (n,). tables: cosines, sines, prompts and
    own, as in `turn_and_store` and `attend`.
    """
    arguments = (
        num_threads,
        by_rows,
        is_gating_apart,
        is_reading,
        together,
        hidden,
        more,
        norms,
        head_norms,
        products,
        buffers,
        rooms,
        seats,
        tables,
    )
    share_out(_run_layers, arguments, num_threads, num_threads)


@compiled
def _run_layers(
    num_threads: int,
    by_rows: bool,
    is_gating_apart: bool,
    is_reading: bool,
    together: Any,
    hidden: Any,
    more: Any,
    norms: Any,
    head_norms: Any,
    products: Any,
    buffers: Any,
    rooms: Any,
    seats: Any,
    tables: Any,
    start: int,
    stop: int,
) -> None:
    (norm_weights, epsilon), (head_weights, head_epsilon) = norms, head_norms
    to_heads, to_output, to_gate_up, to_down = products
    normed, found, wide = buffers
    heads, gate_up, panels, queries = rooms
    positions, groups, prompt_lengths, places, own_lengths = seats
    cos, sin, prompts, own = tables
    team = (num_threads, by_rows, start, stop)
    first, last = len(hidden) * start // num_threads, len(hidden) * stop // num_threads
    for layer in range(len(norm_weights)):
        weight = norm_weights[layer, 0]
        norm_rows(hidden, more, weight, epsilon, normed[0], normed[2], first, last)
        _multiply_in(team, normed, to_heads, layer, heads)
        store_rows(
            heads,
            head_weights[layer],
            head_epsilon,
            cos,
            sin,
            positions,
            own,
            layer,
            places,
            own_lengths,
            queries,
            first,
            last,
        )
        if is_reading:
            wait_for_team()
        attend_rows(
            together,
            queries,
            prompts,
            own,
            layer,
            groups,
            prompt_lengths,
            places,
            own_lengths,
            found[0],
            found[2],
            first,
            last,
        )
        _multiply_in(team, found, to_output, layer, more)
        weight = norm_weights[layer, 1]
        norm_rows(hidden, more, weight, epsilon, normed[0], normed[2], first, last)
        if is_gating_apart:
            _multiply_in(team, normed, to_gate_up, layer, gate_up)
            gate_rows(gate_up, wide[0], wide[2], first, last)
        else:
            _gate_by_panels(normed, to_gate_up, layer, panels, wide, first, last)
        _multiply_in(team, wide, to_down, layer, more)


@part
def _multiply_in(team: Any, given: Any, product: Any, layer: int, out: Any) -> None:
    """One thread's share of one layer's product."""
    num_threads, by_rows, start, stop = team
    panels, offsets, factors, biases = product
    count = len(out)
    if not by_rows:
        wait_for_team()
        count = panels.shape[1]
    multiply_rows(
        by_rows,
        given[1],
        panels[layer],
        offsets[layer],
        factors[layer],
        biases[layer],
        given[2],
        out,
        count * start // num_threads,
        count * stop // num_threads,
    )
    if not by_rows:
        wait_for_team()


@part
def _gate_by_panels(
    given: Any, product: Any, layer: int, room: Any, out: Any, first: int, last: int
) -> None:
    """silu(gate) * up of some rows, gone over while it is in the nearest cache. `room`: (2, n,
    PANEL), for a panel of gate and one of up."""
    half, row = product[0].shape[1] // 2, np.empty(PANEL, np.float32)
    gate, up = room[0], room[1]
    for p in range(half):
        _multiply_panel(given, product, layer, p, gate, first, last)
        _multiply_panel(given, product, layer, half + p, up, first, last)
        for r in range(first, last):
            for i in range(PANEL):
                row[i] = gated(gate[r, i], up[r, i])
            store(row, out[0][r, p * PANEL : (p + 1) * PANEL])
    out[2][first:last] = _ONE


@part
def _multiply_panel(
    given: Any, product: Any, layer: int, p: int, out: Any, first: int, last: int
) -> None:
    """One panel's outputs of some rows, into out (n, PANEL)."""
    panels, offsets, factors, biases = product
    multiply_rows(
        True,
        given[1],
        panels[layer, p : p + 1],
        offsets[layer, p : p + 1],
        factors[layer, p : p + 1],
        biases[layer, p : p + 1],
        given[2],
        out,
        first,
        last,
    )
