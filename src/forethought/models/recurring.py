"""Numbers of rows that come again.

For bfloat16 on a CPU oneDNN compiles a product for each new shape, which takes longer than many a
product of a small model, and keeps the last of them. So a few rows more, where they make a number
that other batches have too, cost less than a number of its own.
"""

from __future__ import annotations

_FRACTION = 16  # at most so many steps between a power of two and the next
_COMPILING = 6e8  # operations in whose time a product is compiled, roughly: tried on one processor


def largest_step(num_weights: int, num_products: int) -> int:
    """A number of rows that takes no longer to walk there and back (6 operations a weight and row)
    than the products would take to compile, where half of it is added on average."""
    return max(1, int(num_products * _COMPILING / (3 * max(1, num_weights))))


def recurring(count: int, step: int) -> int:
    """`count` rounded up to a multiple of `step`, or by a sixteenth at most."""
    half = (1 << max(0, count - 1).bit_length()) // 2  # the power of two below
    step = max(1, min(step, half // _FRACTION))
    return -(-count // step) * step
