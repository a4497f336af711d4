"""The two inner loops of attention, written for vector registers.

numba turns a plain loop into vector instructions, but not one whose sums should stay in registers
over another loop; so these are LLVM's own instructions. Keys stand in blocks of LANES tokens, a
block (head_dim, LANES): one register then holds one number of each token's key, and no sum runs
across a register. Several queries that share their keys go over them together. `heads` is a tuple
as long as there are queries, as that number must be known when the loops are compiled.

While they go over one row's keys and values they ask for the next row's, whose place a processor
cannot guess: reading them from memory takes longer than going over them.

Keys and values are float32, or uint16, which stands for the upper half of a float32: bfloat16.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import types
from numba.core import cgutils, config
from numba.extending import intrinsic


def processor_has(feature: str) -> bool:
    """Whether numba compiles for this processor as it is, and it has that feature of LLVM's."""
    if config.CPU_NAME or config.CPU_FEATURES is not None or not config.ENABLE_AVX:
        return False
    try:
        return bool(get_host_cpu_features().get(feature))
    except RuntimeError:  # LLVM does not know
        return False


_IS_WIDE = processor_has("avx512f")
LANES = 16 if _IS_WIDE else 8  # float32 numbers in a register
SUMS = 24 if _IS_WIDE else 12  # registers that can hold sums, beside what is read
MOST_HEADS = 8 if _IS_WIDE else 6
_CHAINS = 2  # sums of one score that do not wait for each other

_BYTES = ir.IntType(8).as_pointer()
_LINE = 64  # bytes that the processor reads from memory at once
_INT, _INT32 = ir.IntType(64), ir.IntType(32)
_VECTOR = ir.VectorType(ir.FloatType(), LANES)
_TO_READ, _SECOND_CACHE, _DATA = 0, 2, 1  # in LLVM's numbers
_FLAGS = ("nsz", "contract", "reassoc")  # multiply and add in one


@intrinsic  # type: ignore[untyped-decorator]
def score(
    typing: Any,
    heads: Any,
    queries: Any,
    keys: Any,
    num_blocks: Any,
    scores: Any,
    first: Any,
    ahead: Any,
) -> Any:
    """scores[h, first + t] = queries[h] . key t for every token t of `num_blocks` blocks.

    queries: (H, head_dim), H the length of `heads` and head_dim even; keys: (blocks, head_dim,
    LANES); scores: (at least H, tokens), with room for all tokens of the last block. `ahead` are
    the keys that will be scored next: as many blocks of them are fetched meanwhile.
    """

    def body(context: Any, b: Any, signature: Any, values: Any) -> Any:
        queries, keys, scores, following = (
            _array(context, b, signature.args[i], values[i]) for i in (1, 2, 4, 6)
        )
        num_blocks, first = values[3], values[5]
        head_dim = cgutils.unpack_tuple(b, queries.shape)[1]
        query_rows = [row_at(b, queries, _INT(h)) for h in range(len(heads))]
        score_rows = [b.gep(row_at(b, scores, _INT(h)), [first]) for h in range(len(heads))]
        sums = [[_sum(b) for _ in range(_CHAINS)] for _ in heads]
        with cgutils.for_range(b, num_blocks) as block:
            key = row_at(b, keys, block.index)
            for total in (total for chains in sums for total in chains):
                b.store(_zeros(), total)
            with cgutils.for_range_slice(b, _INT(0), head_dim, _INT(_CHAINS)) as (start, _):
                for chain in range(_CHAINS):
                    i = b.add(start, _INT(chain))
                    offset = b.mul(i, _INT(LANES))
                    if chain % _per_line(keys) == 0:
                        _fetch(b, b.gep(row_at(b, following, block.index), [offset]))
                    numbers = _load(b, b.gep(key, [offset]))
                    for query, chains in zip(query_rows, sums, strict=True):
                        _add_product(
                            b, chains[chain], spread(b, b.gep(query, [i]), _VECTOR), numbers
                        )
            for target, chains in zip(score_rows, sums, strict=True):
                parts = [b.load(chain) for chain in chains]
                place = b.gep(target, [b.mul(block.index, _INT(LANES))])
                _store(b, b.fadd(*parts, flags=_FLAGS), place)
        return context.get_dummy_value()

    return types.void(heads, queries, keys, num_blocks, scores, first, ahead), body


def _weighing(num_vectors: int, *, is_by_column: bool = False) -> Any:
    @intrinsic  # type: ignore[untyped-decorator]
    def weigh(
        typing: Any,
        heads: Any,
        weights: Any,
        first: Any,
        values: Any,
        count: Any,
        out: Any,
        at: Any,
        ahead: Any,
    ) -> Any:
        """out[h, at:] += the sum over t < count of weights[h, first + t] * values[t, at:], of so
        many vectors; H is the length of `heads`.

        weights: (at least H, tokens), or by column (tokens, at least H), for weights[first + h, t];
        values: (tokens, head_dim); out: (H, head_dim), head_dim rounded up to whole vectors;
        `ahead`: the values that will be weighed next.
        """

        def body(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
            weights, values, out, following = (
                _array(context, b, signature.args[i], arguments[i]) for i in (1, 3, 5, 7)
            )
            first, count, at = arguments[2], arguments[4], arguments[6]
            every = range(len(heads))
            weight_rows = [b.gep(row_at(b, weights, _INT(h)), [first]) for h in every]
            offsets = [b.add(at, _INT(v * LANES)) for v in range(num_vectors)]
            places = [[b.gep(row_at(b, out, _INT(h)), [o]) for o in offsets] for h in every]
            sums = [[_sum(b) for _ in offsets] for _ in heads]
            pairs = [
                pair for both in zip(sums, places, strict=True) for pair in zip(*both, strict=True)
            ]
            for total, place in pairs:
                b.store(_load(b, place), total)
            with cgutils.for_range(b, count) as token:
                row = row_at(b, values, token.index)
                if is_by_column:
                    line = b.gep(row_at(b, weights, token.index), [first])
                    at_token = [b.gep(line, [_INT(h)]) for h in every]
                else:
                    at_token = [b.gep(weight, [token.index]) for weight in weight_rows]
                factors = [spread(b, place, _VECTOR) for place in at_token]
                for offset in offsets[:: _per_line(values)]:
                    _fetch(b, b.gep(row_at(b, following, token.index), [offset]))
                for v, offset in enumerate(offsets):
                    numbers = _load(b, b.gep(row, [offset]))
                    for factor, totals in zip(factors, sums, strict=True):
                        _add_product(b, totals[v], factor, numbers)
            for total, place in pairs:
                _store(b, b.load(total), place)
            return context.get_dummy_value()

        return types.void(heads, weights, first, values, count, out, at, ahead), body

    return weigh


weigh_1, weigh_2, weigh_4 = _weighing(1), _weighing(2), _weighing(4)
columns_1, columns_2, columns_4 = (_weighing(n, is_by_column=True) for n in (1, 2, 4))


def _fetch(b: Any, place: Any) -> None:
    """Ask for the line at `place`, to be read from the second cache before long."""
    kind = ir.FunctionType(ir.VoidType(), [_BYTES, _INT32, _INT32, _INT32])
    prefetch = cgutils.get_or_insert_function(b.module, kind, "llvm.prefetch.p0i8")
    b.call(prefetch, [b.bitcast(place, _BYTES), *map(_INT32, (_TO_READ, _SECOND_CACHE, _DATA))])


def _per_line(numbers: Any) -> int:
    """Vectors that stand in one line of memory."""
    kind = numbers.data.type.pointee
    size = 4 if kind == ir.FloatType() else int(kind.width) // 8
    return max(1, _LINE // (LANES * size))


def _array(context: Any, b: Any, kind: Any, value: Any) -> Any:
    return context.make_array(kind)(context, b, value)


def row_at(b: Any, array: Any, index: Any) -> Any:
    """Where array[index] begins."""
    offset = b.mul(cgutils.unpack_tuple(b, array.strides)[0], index)
    return b.inttoptr(b.add(b.ptrtoint(array.data, _INT), offset), array.data.type)


def _sum(b: Any) -> Any:
    """A variable that LLVM keeps in a register."""
    return cgutils.alloca_once(b, _VECTOR)


def _zeros() -> Any:
    return ir.Constant(_VECTOR, [0.0] * LANES)


def _add_product(b: Any, total: Any, x: Any, y: Any) -> None:
    b.store(b.fadd(b.load(total), b.fmul(x, y, flags=_FLAGS), flags=_FLAGS), total)


def _load(b: Any, place: Any) -> Any:
    """LANES numbers from `place` on, of either format, as float32."""
    if place.type.pointee == ir.FloatType():
        return b.load(b.bitcast(place, _VECTOR.as_pointer()), align=4)
    wide = ir.VectorType(_INT32, LANES)
    halves = ir.VectorType(place.type.pointee, LANES).as_pointer()
    numbers = b.zext(b.load(b.bitcast(place, halves), align=2), wide)
    return b.bitcast(b.shl(numbers, ir.Constant(wide, [16] * LANES)), _VECTOR)


def _store(b: Any, vector: Any, place: Any) -> None:
    b.store(vector, b.bitcast(place, _VECTOR.as_pointer()), align=4)


def spread(b: Any, place: Any, kind: Any) -> Any:
    """The number at `place`, in every lane of a vector of that kind."""
    nothing = ir.Constant(kind, ir.Undefined)
    first = b.insert_element(nothing, b.load(place), _INT32(0))
    mask = ir.Constant(ir.VectorType(_INT32, kind.count), [0] * kind.count)
    return b.shuffle_vector(first, nothing, mask)
