"""Units: what stands behind a value and is no part of it, written one way."""

from __future__ import annotations

import re

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
    "oz": "ounce",
    "hr": "hour",
    "min": "minute",
    "sec": "second",
    "degree": "deg",
    "mph": "",
    "kph": "kmh",
    "dollar": "usd buck",
    "cent": "",
    "euro": "eur",
    "pound": "lb gbp",
    "yen": "",
    "rupee": "",
}
_POWERS = {"square": "^2", "sq": "^2", "cubic": "^3", "cu": "^3"}
_PHRASES = {"mph": "mi/hr", "kph": "km/hr"}
_CURRENCIES = {
    "\\$": "dollar",
    "\u20ac": "euro",
    "\u00a3": "pound",
    "\u00a5": "yen",
    "\u20b9": "rupee",
    "\u00a2": "cent",
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
        "zero either otherwise unless about almost nearly roughly perhaps probably possibly approx",
        "approximately wrong power divided multiplied sine cosine tangent minimum maximum",
        "ten eleven twelve twenty thirty forty fifty sixty seventy eighty ninety",
    )
    for word in words.split()
)
_MONEY = re.compile(r"([+-]?) ?(\\\$|[\u20ac\u00a3\u00a5\u20b9]) ?(.+)")
_CHANGE = re.compile(r"(.*[0-9}]) ?(\\\$|[\u20ac\u00a3\u00a5\u20b9\u00a2])")
_LETTERS = {"h": "hr", "s": "sec", "m": "meter", "L": "liter"}
_PER_LETTER = re.compile(r"(?<=[A-Za-z]{2}) ?/ ?([hsmL])(?![A-Za-z])")  # km/h, but not x/h
_WORD = r"[A-Za-z]+(?:\^[23])?"
_UNIT = re.compile(rf"(?:(?<=[0-9}})])|(?<=\\pi))( ?)({_WORD}(?:(?: ?/ ?| ){_WORD}){{0,3}})\Z")


def split_unit(text: str) -> tuple[str, str]:
    """Split "5 cm" into ("5", "cm"); the unit is "" when the end of the text is no unit."""
    if text.endswith(("%", " percent")):
        return text.removesuffix("%").removesuffix("percent").rstrip(), "%"
    if match := _MONEY.fullmatch(text):
        sign, currency, rest = match.groups()
        core, unit = split_unit(sign + rest)
        return core, unit or _CURRENCIES[currency]
    if match := _CHANGE.fullmatch(text):
        return match.group(1), _CURRENCIES[match.group(2)]
    may_end_a_unit = text[-1:].isalpha() or text[-2:-1] == "^"
    match = _UNIT.search(text) if may_end_a_unit else None
    if match is None:
        return text, ""
    found = _PER_LETTER.sub(lambda letter: f"/{_LETTERS[letter.group(1)]}", match.group(2))
    words = re.findall(r"[A-Za-z]+", found)
    known = all(_singular(word) in _CANONICAL for word in words)
    if not known and not (match.group(1) and all(map(_may_be_unit, words))):
        return text, ""
    return text[: match.start()], _canonical(found)


def _canonical(text: str) -> str:
    """`square feet` is ft^2, `miles per hour` and mph are mi/hr, and units of any kind are ""."""
    words: list[str] = []
    power = ""
    for word, exponent in re.findall(r"([A-Za-z]+|/)(\^[23])?", text):
        name = "/" if word.lower() == "per" else _singular(word) if word != "/" else word
        if name in _POWERS:
            power = _POWERS[name]
        else:
            words.append(_PHRASES.get(name, name) + (exponent or power))
            power = ""
    unit = "".join(words)
    return "" if unit.split("^")[0] == "unit" else unit


def _singular(word: str) -> str:
    word = word.lower()
    short = word.removesuffix("s")
    return _CANONICAL.get(word) or _CANONICAL.get(short) or (short if len(short) > 2 else word)


def _may_be_unit(word: str) -> bool:
    word = word.lower()
    if _singular(word) in _CANONICAL or word in _POWERS:
        return True
    return len(word) > 2 and _NOT_UNITS.isdisjoint((word, word.removesuffix("s")))
