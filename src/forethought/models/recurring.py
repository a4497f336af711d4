"""Numbers of rows that come again."""

from __future__ import annotations

_STEPS = 16  # between a power of two and the next


def recurring(count: int) -> int:
    """`count` or up to a sixteenth more: of all numbers only sixteen between two powers of two.

    oneDNN compiles a product for each new shape, which takes longer than a product of a small
    model, and keeps the last of them.
    """
    step = max(1, (1 << max(0, count - 1).bit_length()) // 2 // _STEPS)
    return -(-count // step) * step
