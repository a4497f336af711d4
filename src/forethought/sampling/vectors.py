"""The two inner loops of attention, written for vector registers.

numba turns a plain loop into vector instructions, but not one whose sums should stay in registers
over another loop; so these are LLVM's own instructions. Keys stand in blocks of LANES tokens, a
block (head_dim, LANES): one register then holds one number of each token's key, and no sum runs
across a register. Several queries that share their keys go over them together. `heads` is a tuple
as long as there are queries, as that number must be known when the loops are compiled.

While they go over one row's keys and values they ask for the next row's, whose place a processor
cannot guess: reading them from memory takes longer than going over them.

Keys and values are float32 or bfloat16 (`sampling/lanes.py`).
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from forethought.sampling.lanes import (
    FLOAT,
    INT,
    LANES,
    LINE,
    add_to,
    array_of,
    constant,
    fetch,
    load,
    plus,
    row_at,
    spread,
    store,
    times,
    variable,
)

_IS_WIDE = LANES == 16
SUMS = 24 if _IS_WIDE else 12  # registers that can hold sums, beside what is read
MOST_HEADS = 8 if _IS_WIDE else 6
_CHAINS = 2  # sums of one score that do not wait for each other


@intrinsic  # type: ignore[untyped-decorator]
def score(
    typing: Any,
    heads: Any,
    queries: Any,
    query: Any,
    keys: Any,
    num_blocks: Any,
    scores: Any,
    row: Any,
    first: Any,
    ahead: Any,
) -> Any:
    """scores[row + h, first + t] = queries[query + h] . key t for every token t of `num_blocks`
    blocks, for each h below H, the length of `heads`.

    queries: (at least query + H, head_dim or more), head_dim even; keys: (blocks, head_dim,
    LANES); scores: (at least row + H, tokens), with room for all tokens of the last block. `ahead`
    are the keys that will be scored next: as many blocks of them are fetched meanwhile.
    """

    def body(context: Any, b: Any, signature: Any, values: Any) -> Any:
        queries, keys, scores, following = (
            array_of(context, b, signature.args[i], values[i]) for i in (1, 3, 5, 8)
        )
        query, num_blocks, row, first = (values[i] for i in (2, 4, 6, 7))
        head_dim = cgutils.unpack_tuple(b, keys.shape)[1]
        every = [INT(h) for h in range(len(heads))]
        query_rows = [row_at(b, queries, b.add(query, h)) for h in every]
        score_rows = [b.gep(row_at(b, scores, b.add(row, h)), [first]) for h in every]
        sums = [[variable(b, constant(0.0)) for _ in range(_CHAINS)] for _ in heads]
        with cgutils.for_range(b, num_blocks) as block:
            key = row_at(b, keys, block.index)
            for total in (total for chains in sums for total in chains):
                b.store(constant(0.0), total)
            with cgutils.for_range_slice(b, INT(0), head_dim, INT(_CHAINS)) as (start, _):
                for chain in range(_CHAINS):
                    i = b.add(start, INT(chain))
                    offset = b.mul(i, INT(LANES))
                    if chain % _per_line(keys) == 0:
                        fetch(b, b.gep(row_at(b, following, block.index), [offset]))
                    numbers = load(b, b.gep(key, [offset]))
                    for query, chains in zip(query_rows, sums, strict=True):
                        number = spread(b, b.load(b.gep(query, [i])))
                        add_to(b, chains[chain], times(b, number, numbers))
            for target, chains in zip(score_rows, sums, strict=True):
                total = plus(b, *(b.load(chain) for chain in chains))
                store(b, total, b.gep(target, [b.mul(block.index, INT(LANES))]))
        return context.get_dummy_value()

    return types.void(heads, queries, query, keys, num_blocks, scores, row, first, ahead), body


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
        row: Any,
        at: Any,
        ahead: Any,
    ) -> Any:
        """out[row + h, at:] += the sum over t < count of weights[row + h, first + t] * values[t,
        at:], of so many vectors, for each h below H, the length of `heads`; by column, of
        weights[t, first + h] instead.

        weights: (at least row + H, tokens), or by column (tokens, at least first + H); values:
        (tokens, head_dim); out: (at least row + H, head_dim), head_dim rounded up to whole
        vectors; `ahead`: the values that will be weighed next.
        """

        def body(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
            weights, values, out, following = (
                array_of(context, b, signature.args[i], arguments[i]) for i in (1, 3, 5, 8)
            )
            first, count, row, at = (arguments[i] for i in (2, 4, 6, 7))
            every = range(len(heads))
            rows = [b.add(row, INT(h)) for h in every]
            weight_rows = [b.gep(row_at(b, weights, place), [first]) for place in rows]
            offsets = [b.add(at, INT(v * LANES)) for v in range(num_vectors)]
            places = [[b.gep(row_at(b, out, place), [o]) for o in offsets] for place in rows]
            sums = [[variable(b, constant(0.0)) for _ in offsets] for _ in heads]
            pairs = [
                pair for both in zip(sums, places, strict=True) for pair in zip(*both, strict=True)
            ]
            for total, place in pairs:
                b.store(load(b, place), total)
            with cgutils.for_range(b, count) as token:
                value = row_at(b, values, token.index)
                if is_by_column:
                    line = b.gep(row_at(b, weights, token.index), [first])
                    at_token = [b.gep(line, [INT(h)]) for h in every]
                else:
                    at_token = [b.gep(weight, [token.index]) for weight in weight_rows]
                factors = [spread(b, b.load(place)) for place in at_token]
                for offset in offsets[:: _per_line(values)]:
                    fetch(b, b.gep(row_at(b, following, token.index), [offset]))
                for v, offset in enumerate(offsets):
                    numbers = load(b, b.gep(value, [offset]))
                    for factor, totals in zip(factors, sums, strict=True):
                        add_to(b, totals[v], times(b, factor, numbers))
            for total, place in pairs:
                store(b, b.load(total), place)
            return context.get_dummy_value()

        return types.void(heads, weights, first, values, count, out, row, at, ahead), body

    return weigh


weigh_1, weigh_2, weigh_4 = _weighing(1), _weighing(2), _weighing(4)
columns_1, columns_2, columns_4 = (_weighing(n, is_by_column=True) for n in (1, 2, 4))


def _per_line(numbers: Any) -> int:
    """Vectors that stand in one line of memory."""
    kind = numbers.data.type.pointee
    size = 4 if kind == FLOAT else int(kind.width) // 8
    return max(1, LINE // (LANES * size))
