"""From a tile's sums to what a product gives: 16 outputs at a time, in vector registers."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from forethought.sampling.lanes import INT, INT32, spread

AT_ONCE = 16
WORDS, FLOATS = ir.VectorType(INT32, AT_ONCE), ir.VectorType(ir.FloatType(), AT_ONCE)


def load_at(b: Any, place: Any, vector: int, kind: Any) -> Any:
    """Vector number `vector` from `place` on."""
    at = b.gep(place, [INT(vector * AT_ONCE)])
    return b.load(b.bitcast(at, kind.as_pointer()), align=4)


def constants_of(b: Any, places: Any, vector: int) -> Any:
    """What 16 outputs have of their own: offsets int32, factors, biases, each from its place on."""
    kinds = WORDS, FLOATS, FLOATS
    return [load_at(b, place, vector, kind) for place, kind in zip(places, kinds, strict=True)]


def finish(
    b: Any, sums: Any, constants: Any, scale: Any, place: Any, vector: int, is_bytes: bool
) -> None:
    """(sums - offsets) * factors * scale + biases to where vector number `vector` from `place` on
    stands. Sums are int32 for bytes and are not lessened for bfloat16, given by their bits."""
    offsets, factors, biases = constants
    y = b.sitofp(b.sub(sums, offsets), FLOATS) if is_bytes else b.bitcast(sums, FLOATS)
    factor = b.fmul(factors, spread(b, scale, AT_ONCE))
    y = b.fadd(b.fmul(y, factor), biases)
    at = b.bitcast(b.gep(place, [INT(vector * AT_ONCE)]), FLOATS.as_pointer())
    b.store(y, at, align=4)
