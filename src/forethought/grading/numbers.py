"""Read exact numbers from normalised text. No float, no evaluation, no huge integer."""

from __future__ import annotations

import re
from fractions import Fraction

MAX_EXPONENT = 400  # of ten: larger powers are not read as numbers

_UNSIGNED = r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)"
# LaTeX does not show a space between digits, and the SI groups them by threes: 1 234 is 1234.
_SPACED = re.compile(r"[0-9]{1,3}(?: [0-9]{3})+(?:\.[0-9]*)?")
_REPEATING = re.compile(
    r"([0-9]*)\.([0-9]*)(?:\\(?:overline|bar|dot) ?(?:\{([0-9]+)\}|([0-9]))|\(([0-9]+)\))"
)
_POWER = r"10\^(?:\{([+-]?[0-9]{1,4})\}|([0-9]{1,4}))"
_DECIMAL = re.compile(rf"({_UNSIGNED})(?:[eE]([+-]?[0-9]{{1,4}}))?")
_SCIENTIFIC = re.compile(rf"(?:({_UNSIGNED}) ?(?:\\times|\\cdot|\*|x) ?)?{_POWER}")
_FRACTION = re.compile(
    rf"\\[dt]?frac\{{([+-]?)({_UNSIGNED})\}}\{{([+-]?)({_UNSIGNED})\}}"
    rf"|()({_UNSIGNED}) ?/ ?()({_UNSIGNED})"
)
_MIXED = re.compile(r"([0-9]+) ?(?:\\frac\{([0-9]+)\}\{([0-9]+)\}|(?<= )([0-9]+)/([0-9]+))")


_STARTS = (*"0123456789.", "\\frac", "\\dfrac", "\\tfrac")


def read_number(text: str) -> Fraction | None:
    """Read an integer, decimal, fraction, mixed number or power of ten; None for all else."""
    is_negative = text.startswith("-")
    if text[:1] in ("-", "+"):
        text = text[1:]
    if not text.startswith(_STARTS):
        return None
    size = _read_decimal(text)
    if size is None:
        size = _read_fraction(text)
    return -size if size is not None and is_negative else size


def _read_decimal(text: str) -> Fraction | None:
    if match := _DECIMAL.fullmatch(text):
        digits, exponent = match.group(1), int(match.group(2) or 0)
    elif match := _SCIENTIFIC.fullmatch(text):
        digits, exponent = match.group(1) or "1", int(match.group(2) or match.group(3))
    elif _SPACED.fullmatch(text):
        digits, exponent = text.replace(" ", ""), 0
    else:
        return _read_repeating(text)
    if abs(exponent) > MAX_EXPONENT:
        return None
    return _decimal(digits) * Fraction(10) ** exponent if exponent else _decimal(digits)


def _read_repeating(text: str) -> Fraction | None:
    r"""`0.1\overline{6}` is 1/6."""
    match = _REPEATING.fullmatch(text)
    if match is None:
        return None
    whole, fixed, *periods = match.groups()
    period = next(filter(None, periods))
    repeated = Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(fixed))
    return Fraction(int(f"0{whole}{fixed}"), 10 ** len(fixed)) + repeated


def _read_fraction(text: str) -> Fraction | None:
    if match := _FRACTION.fullmatch(text):
        signs_and_digits = [part for part in match.groups() if part is not None]
        top_sign, top, bottom_sign, bottom = signs_and_digits
        sign = -1 if (top_sign == "-") != (bottom_sign == "-") else 1
        divisor = _decimal(bottom)
        return sign * _decimal(top) / divisor if divisor else None
    if match := _MIXED.fullmatch(text):
        whole, top, bottom = (int(part) for part in match.groups() if part is not None)
        # 3\frac52 may as well be a product, so only proper fractions make a mixed number.
        return whole + Fraction(top, bottom) if top < bottom else None
    return None


def _decimal(digits: str) -> Fraction:
    """Exact value of unsigned digits that matched _UNSIGNED (at most MAX_ANSWER_CHARS of them)."""
    whole, _, part = digits.replace(",", "").partition(".")
    return Fraction(int(whole + part), 10 ** len(part)) if part else Fraction(int(whole))
