"""What Math-Verify says of a gold answer and a completion, as its README calls it. For a worker."""

from __future__ import annotations

from math_verify import parse, verify


def verdict(gold: str, completion: str) -> bool:
    """Both are parsed by default rules, the gold answer as LaTeX in dollars."""
    return bool(verify(parse(f"${gold}$"), parse(completion)))
