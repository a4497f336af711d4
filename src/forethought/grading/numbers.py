"""Read exact numbers and units from normalised text. No float, no evaluation, no huge integer."""

from __future__ import annotations

import re
from fractions import Fraction

MAX_EXPONENT = 400  # of ten: larger powers are not read as numbers

_UNSIGNED = r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)"
_POWER = r"10\^(?:\{([+-]?[0-9]{1,4})\}|([0-9]{1,4}))"
_DECIMAL = re.compile(rf"({_UNSIGNED})(?:[eE]([+-]?[0-9]{{1,4}}))?")
_SCIENTIFIC = re.compile(rf"(?:({_UNSIGNED}) ?(?:\\times|\\cdot|\*) ?)?{_POWER}")
_FRACTION = re.compile(
    rf"\\[dt]?frac\{{([+-]?)({_UNSIGNED})\}}\{{([+-]?)({_UNSIGNED})\}}"
    rf"|()({_UNSIGNED}) ?/ ?()({_UNSIGNED})"
)
_MIXED = re.compile(r"([0-9]+) ?(?:\\frac\{([0-9]+)\}\{([0-9]+)\}|(?<= )([0-9]+)/([0-9]+))")


def read_number(text: str) -> Fraction | None:
    """Read an integer, decimal, fraction, mixed number or power of ten; None for all else."""
    sign = -1 if text.startswith("-") else 1
    if text[:1] in ("-", "+"):
        text = text[1:]
    size = _read_decimal(text)
    if size is None:
        size = _read_fraction(text)
    return None if size is None else sign * size


def _read_decimal(text: str) -> Fraction | None:
    if match := _DECIMAL.fullmatch(text):
        digits, exponent = match.group(1), int(match.group(2) or 0)
    elif match := _SCIENTIFIC.fullmatch(text):
        digits, exponent = match.group(1) or "1", int(match.group(2) or match.group(3))
    else:
        return None
    if abs(exponent) > MAX_EXPONENT:
        return None
    return _decimal(digits) * Fraction(10) ** exponent if exponent else _decimal(digits)


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


_UNIT_NAMES = {
    "cm": "centimeter centimetre",
    "mm": "millimeter millimetre",
    "km": "kilometer kilometre",
    "meter": "metre",
    "kg": "kilogram",
    "mg": "milligram",
    "gram": "gm",
    "ml": "milliliter millilitre",
    "liter": "litre",
    "ft": "foot feet",
    "in": "inch inches",
    "yd": "yard",
    "mi": "mile",
    "lb": "pound",
    "oz": "ounce",
    "hr": "hour",
    "min": "minute",
    "sec": "second",
    "degree": "deg",
    "mph": "",
}
_CANONICAL = {word: unit for unit, words in _UNIT_NAMES.items() for word in [unit, *words.split()]}
# Words after a number that change its value, or do not belong to it.
_NOT_UNITS = frozenset(
    word
    for words in (
        "and but equals else factorial less maybe minus mod modulo more not nor over percent",
        "percentage plus point root squared cubed sin cos tan log half halves third quarter",
        "fourth fifth sixth seventh eighth ninth tenth hundredth thousandth pair dozen score",
        "hundred thousand million billion trillion one two three four five six seven eight nine",
        "ten eleven twelve twenty thirty forty fifty sixty seventy eighty ninety",
    )
    for word in words.split()
)
_UNIT = re.compile(
    r"(?<=[0-9})])( ?)([A-Za-z]+(?:\^[23])?(?:(?: ?/ ?| )[A-Za-z]+(?:\^[23])?){0,3})\Z"
)


def split_unit(text: str) -> tuple[str, str]:
    """Split "5 cm" into ("5", "cm"); the unit is "" when the end of the text is no unit."""
    if text.endswith(("%", " percent")):
        return text.removesuffix("%").removesuffix("percent").rstrip(), "%"
    may_end_a_unit = text[-1:].isalpha() or text[-2:-1] == "^"
    match = _UNIT.search(text) if may_end_a_unit else None
    if match is None:
        return text, ""
    words = re.findall(r"[A-Za-z]+", match.group(2))
    known = all(_singular(word) in _CANONICAL for word in words)
    if not known and not (match.group(1) and all(map(_may_be_unit, words))):
        return text, ""
    unit = re.sub("[A-Za-z]+", lambda word: _singular(word.group()), match.group(2))
    return text[: match.start()], unit.replace(" ", "")


def _singular(word: str) -> str:
    word = word.lower()
    short = word.removesuffix("s")
    return _CANONICAL.get(word) or _CANONICAL.get(short) or (short if len(short) > 2 else word)


def _may_be_unit(word: str) -> bool:
    word = word.lower()
    if _singular(word) in _CANONICAL:
        return True
    return len(word) > 2 and _NOT_UNITS.isdisjoint((word, word.removesuffix("s")))
