"""Ask Math-Verify whether two formulas are the same. For workers only: it may hang, so it must be
in a process that can be killed (`workers`), and it is imported when this module is."""

from __future__ import annotations

from typing import Any

from math_verify import parse, verify
from math_verify.parser import LatexExtractionConfig

from forethought.grading.formula import same_value
from forethought.grading.math import compare

_ROUNDING, _PRECISION = 14, 40  # decimal places and digits: a rounded decimal is not exact


def is_same(gold: str, answer: str) -> bool:
    """Compare as `math` does, with Math-Verify where two formulas are beyond `formula`."""
    return compare(gold, answer, _same_formula)


def _same_formula(gold: str, answer: str) -> bool:
    known = same_value(gold, answer)
    return verdict(gold, answer) if known is None else known


def verdict(gold: str, answer: str) -> bool:
    """What Math-Verify says of two formulas, where it reads both and no decimal is rounded."""
    expected, given = _read(gold), _read(answer)
    if not expected or not given or ("." in answer) != ("." in gold):
        return False
    return bool(
        verify(
            expected,
            given,
            float_rounding=_ROUNDING,
            numeric_precision=_PRECISION,
            timeout_seconds=None,
        )
    )


def _read(text: str) -> list[Any]:
    """The formula as Math-Verify reads it; [] when it cannot."""
    found: list[Any] = parse(
        f"${text}$",
        extraction_config=[LatexExtractionConfig()],
        fallback_mode="no_fallback",
        parsing_timeout=None,
    )
    return found
