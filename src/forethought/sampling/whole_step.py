"""All layers of the lean step in one compiled call, for models whose products are all tiled.

A layer is four products and the passes between them. Called one by one each costs some ten
microseconds in Python, and begins when the slowest thread has ended the one before. With many rows
a thread takes its own through all layers here, and waits for nobody; with few, the threads share
out the outputs of a product, as each should read its own part of the weights, and wait after each.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import overload

from forethought.sampling.attention import attend_rows, store_rows
from forethought.sampling.kernels import PART, compiled, gate_rows, norm_rows, part
from forethought.sampling.paired_attention import attend_paired, store_paired
from forethought.sampling.team import share_out, wait_for_team
from forethought.sampling.tiles import multiply_rows


@compiled
def run_layers(
    num_threads: int,
    by_rows: bool,
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

    by_rows: whether threads share out rows alone. is_reading: whether rows see each other, being
    tokens of one prompt. norms: weights (L, 2, D) before attention and before the MLP, and epsilon;
    head_norms: (L, 0 or 2, head_dim), and epsilon. products: of heads, output, gate and up, and
    down, each panels (L, P, W, 64), offsets, factors and biases (L, P, 64). buffers: inputs of the
    products, first D wide, then query heads * head_dim, then F, each as values, words and scales;
    rooms: for heads and for gate and up, of n rows, and queries (n, query heads, head_dim). seats:
    positions, groups, prompt lengths, seats and own lengths, each (n,). tables: cosines, sines,
    prompts and own, as in `turn_and_store` and `attend`. Where keys and values stand in pairs,
    queries and tables are as in `store_paired`.
    """
    arguments = (
        num_threads,
        by_rows,
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
    normed, found, gated = buffers
    heads, gate_up, queries = rooms
    positions, groups, prompt_lengths, places, own_lengths = seats
    cos, sin, prompts, own = tables
    team = (num_threads, by_rows, start, stop)
    first, last = len(hidden) * start // num_threads, len(hidden) * stop // num_threads
    for layer in range(len(norm_weights)):
        weight = norm_weights[layer, 0]
        norm_rows(hidden, more, weight, epsilon, normed[0], normed[2], first, last)
        _multiply_in(team, normed, to_heads, layer, heads)
        _store(
            is_reading,
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
        _attend(
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
        _multiply_in(team, normed, to_gate_up, layer, gate_up)
        gate_rows(gate_up, gated[0], gated[2], first, last)
        _multiply_in(team, gated, to_down, layer, more)


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
        (panels[layer], offsets[layer], factors[layer], biases[layer]),
        given[2],
        out,
        count * start // num_threads,
        count * stop // num_threads,
    )
    if not by_rows:
        wait_for_team()


def _store(is_reading: bool, *rest: Any) -> None:
    """`store_rows`, or where keys and values stand in pairs `store_paired`."""


@overload(_store, jit_options=PART)  # type: ignore[untyped-decorator]
def _store_as(is_reading: Any, *rest: Any) -> Any:
    def apart(is_reading: Any, *rest: Any) -> None:
        store_rows(*rest)

    def paired(is_reading: Any, *rest: Any) -> None:
        store_paired(is_reading, *rest)

    return paired if _is_paired(rest[10]) else apart


def _attend(together: Any, *rest: Any) -> None:
    """`attend_rows`, or `attend_paired`."""


@overload(_attend, jit_options=PART)  # type: ignore[untyped-decorator]
def _attend_as(together: Any, *rest: Any) -> Any:
    def apart(together: Any, *rest: Any) -> None:
        attend_rows(together, *rest)

    def paired(together: Any, *rest: Any) -> None:
        attend_paired(*rest)

    return paired if _is_paired(rest[0]) else apart


def _is_paired(queries: Any) -> bool:
    """By their type, which is that of bfloat16 only then."""
    return bool(queries.dtype == types.uint16)
