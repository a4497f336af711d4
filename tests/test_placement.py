"""Compiled passes give the same bits wherever their arrays lie in memory.

Before a loop that writes, LLVM has the processor look how far apart its arrays lie; where one ends
just before another begins, the loop runs number by number. A resumed run, whose memory lies
otherwise, must not differ by that.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from forethought.sampling import draw_kernel, kernels
from forethought.training import passes

Array = NDArray[Any]
ROWS, WIDTH = 8, 32  # narrow rows: the last of them ends just before what lies behind
BEHIND = range(64, 640, 16)  # bytes of the memory that a pass finds free behind an array
NUM_TRIES = 1000
EPSILON = np.float32(1e-5)


def numbers(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def room(*shape: int) -> Array:
    return np.zeros(shape, np.float32)


PASSES: dict[str, tuple[Callable[..., None], Callable[[], list[Array]]]] = {
    "add_and_norm": (
        lambda *arrays: kernels.add_and_norm(1, *arrays[:3], EPSILON, *arrays[3:]),
        lambda: [
            numbers(ROWS, WIDTH),
            numbers(ROWS, WIDTH) + 1,
            numbers(WIDTH),
            room(ROWS, WIDTH),
            room(ROWS),
        ],
    ),
    "silu_gate": (
        lambda *arrays: kernels.silu_gate(1, *arrays),
        lambda: [numbers(ROWS, 2 * WIDTH), room(ROWS, WIDTH), room(ROWS)],
    ),
    "draw_rows": (
        lambda *arrays: draw_kernel.draw_rows(1, *arrays[:3], arrays[3].view(np.int64), arrays[4]),
        lambda: [numbers(ROWS, 300), room(ROWS) + 1, room(ROWS) + 0.5, room(2 * ROWS), room(ROWS)],
    ),
    "norm": (
        lambda *arrays: passes.norm(1, *arrays[:2], EPSILON, *arrays[2:]),
        lambda: [numbers(ROWS, WIDTH), numbers(WIDTH), room(ROWS, WIDTH), room(ROWS)],
    ),
    "norm_back": (
        lambda *arrays: passes.norm_back(1, *arrays),
        lambda: [
            numbers(ROWS, WIDTH),
            numbers(WIDTH),
            numbers(ROWS),
            numbers(ROWS, WIDTH) + 1,
            room(ROWS, WIDTH),
            room(1, WIDTH),
        ],
    ),
    "gate": (
        lambda *arrays: passes.gate(1, *arrays),
        lambda: [numbers(ROWS, WIDTH), numbers(ROWS, WIDTH) + 1, room(ROWS, WIDTH)],
    ),
    "gate_back": (
        lambda *arrays: passes.gate_back(1, *arrays),
        lambda: [
            numbers(ROWS, WIDTH),
            numbers(ROWS, WIDTH) + 1,
            numbers(ROWS, WIDTH) - 1,
            room(ROWS, WIDTH),
            room(ROWS, WIDTH),
        ],
    ),
}


@pytest.mark.parametrize("name", PASSES)
def test_where_arrays_lie_changes_no_bit(name: str) -> None:
    run, make = PASSES[name]
    expected = result(run, make())
    for place in range(len(make())):
        for bytes_behind in BEHIND:
            arrays = make()
            with before_free_memory(arrays[place], bytes_behind) as array:
                moved = [*arrays[:place], array, *arrays[place + 1 :]]
                assert result(run, moved) == expected, (place, bytes_behind)


def result(run: Callable[..., None], arrays: list[Array]) -> list[bytes]:
    run(*arrays)
    return [array.tobytes() for array in arrays]


@contextmanager
def before_free_memory(array: Array, num_bytes: int) -> Iterator[Array]:
    """A copy behind which the next to ask for so many bytes, as a pass does for a row of its own,
    finds them; where the memory is not given out in order, somewhere."""
    memory = ctypes.CDLL(None)
    memory.malloc.restype = ctypes.c_void_p
    memory.malloc.argtypes, memory.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
    taken: list[int] = []
    for _ in range(NUM_TRIES):
        taken += memory.malloc(array.nbytes), memory.malloc(num_bytes)
        if 0 <= taken[-1] - taken[-2] - array.nbytes <= 2 * 16:  # what malloc keeps between two
            break
    *_, mine, behind = taken
    copy = np.frombuffer((ctypes.c_byte * array.nbytes).from_address(mine), array.dtype)
    copy = copy.reshape(array.shape)
    copy[:] = array
    memory.free(behind)
    try:
        yield copy
    finally:
        for place in taken[:-1]:
            memory.free(place)
