r"""What an answer says: a number, a group of answers, a time or date, words, or a formula.

An answer is normalised and read once, into an `Answer`; nothing is worked out. `AnswerType` names
what the author of a gold answer meant, and `math` compares by it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import StrEnum
from fractions import Fraction
from functools import lru_cache

from forethought.grading.answers import MAX_ANSWER_CHARS, MAX_NESTING
from forethought.grading.calendar import read_moment
from forethought.grading.latex import normalise
from forethought.grading.numbers import read_number
from forethought.grading.units import split_unit

MAX_ITEMS = 64  # of a group: unordered comparison is quadratic


class AnswerType(StrEnum):
    """What kind of thing an answer is."""

    INTEGER = "integer"
    FRACTION = "fraction"
    DECIMAL = "decimal"
    PERCENTAGE = "percentage"
    TUPLE = "tuple"
    SET = "set"  # also a bare list: 1, -2
    INTERVAL = "interval"  # also a union of intervals
    MATRIX = "matrix"
    TIME = "time"  # of day, or a date
    TEXT = "text"
    EXPRESSION = "expression"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What an answer says. Either `number`, or `kind` with `items`, or `text` is what counts."""

    text: str = ""
    number: Fraction | None = None  # as typed: 9 for "9%"
    kind: str = ""  # "()", "(]", "{}", "list", "union", "matrix", "determinant", "moment"
    items: tuple[Answer, ...] = ()
    unit: str = ""  # "cm", "%", ...
    name: str = ""  # "x" for "x=5"

    @property
    def type(self) -> AnswerType:
        if self.number is not None:
            return _number_type(self)
        if self.kind in ("{}", "list"):
            return AnswerType.SET
        if self.kind:
            return _group_type(self)
        is_words = _WORDS.fullmatch(self.text) is not None
        return AnswerType.TEXT if is_words else AnswerType.EXPRESSION


def _number_type(answer: Answer) -> AnswerType:
    if answer.unit == "%":
        return AnswerType.PERCENTAGE
    if "." in answer.text or "e" in answer.text.lower():
        return AnswerType.DECIMAL
    is_ratio = "/" in answer.text or "frac" in answer.text
    return AnswerType.FRACTION if is_ratio else AnswerType.INTEGER


def _group_type(answer: Answer) -> AnswerType:
    if answer.kind in ("matrix", "determinant"):
        return AnswerType.MATRIX
    if answer.kind == "moment":
        return AnswerType.TIME
    is_pair = len(answer.items) == 2
    is_endless = any("\\infty" in item.text for item in answer.items)
    if answer.kind == "union" or (is_pair and (answer.kind != "()" or is_endless)):
        return AnswerType.INTERVAL
    return AnswerType.TUPLE


@lru_cache(maxsize=8192)
def read_answer(raw: str) -> Answer | None:
    """Read an answer; None when it is empty, too long, nested too deep or not closed."""
    if len(raw) > MAX_ANSWER_CHARS or _nesting(raw) > MAX_NESTING:
        return None
    number = read_number(raw)  # nearly all answers end here, five times as fast
    if number is not None:
        return Answer(number=number, text=raw)
    text = normalise(raw)
    return _read_value(text) if text and _is_balanced(text) else None


# --- Values -------------------------------------------------------------------------------------

_NAME = re.compile(
    r"((?:[A-Za-z]|\\[A-Za-z]+)(?:_[0-9A-Za-z])?(?:\([A-Za-z]\))?"
    r"|\([A-Za-z](?:, ?[A-Za-z])+\))(?:=|\\in(?![a-z]) ?)"
)
_MATRIX = re.compile(r"\\begin\{([pbvBV]?)(?:matrix)\}(.*)\\end\{\1matrix\}")
_ROW_END = re.compile(r"\\\\(?:\[[^\]]*\])?")
# Words, but not a difference of single letters: p-q is a formula.
_WORDS = re.compile(r"(?!\w(?:-\w)+$)[^\W\d_]+(?:[ -][^\W\d_]+)*")
# Not within words, nor between digits: \log_2 3 is not \log_23.
_LOOSE_SPACE = re.compile(
    r"(?<![A-Za-z0-9]) | (?![A-Za-z0-9])|(?<=[a-z]) (?=[0-9])|(?<=[0-9]) (?=[a-z])"
)
_SLASH = re.compile(r"([+-]?)([0-9]*(?:[a-zA-Z]|\\[a-z]+|\\sqrt\{[0-9]+\}))/([0-9]+)")
_EITHER = re.compile(r"\\pm ?")
_NEGATED = re.compile(r"-\(([^()]*)\)")
_BRACKET = re.compile(r"\\?[()\[\]{}]")
_BRACKETS = ("()", "(]", "[)", "[]", "{}")


def _read_value(text: str) -> Answer:
    if (number := read_number(text)) is not None:  # most items of groups
        return Answer(number=number, text=text)
    if text[:1] in ("(", "[") and text[-1:] in (")", "]") and _encloses(text):
        return _read_core(text, text, unit="", name="")  # neither name nor unit
    name = ""
    if (match := _NAME.match(text)) and "=" not in text[match.end() :]:
        name, text = match.group(1), text[match.end() :].strip()
    if moment := read_moment(text):
        return Answer(kind="moment", text=moment, name=name)
    core, unit = split_unit(text)
    number = read_number(core)
    if number is None and (match := _NEGATED.fullmatch(core)):
        inner = read_number(match.group(1))
        number = None if inner is None else -inner
    if number is not None:
        return Answer(number=number, text=core, unit=unit, name=name)
    if unit == "%":  # only numbers are percentages
        core, unit = text, ""
    return _read_core(text, core, unit=unit, name=name)


def _read_core(text: str, core: str, *, unit: str, name: str) -> Answer:
    """A group, or text; `core` is `text` without its unit."""
    group = _read_group(text, core)
    if group is None:
        return Answer(text=_text_key(core), unit=unit, name=name)
    kind, items = group
    if len(items) == 1 and kind in ("()", "{}"):  # (5) is 5, and (C) is C
        inner_answer = _read_value(items[0])
        return replace(inner_answer, unit=unit or inner_answer.unit, name=name or inner_answer.name)
    return Answer(kind=kind, items=tuple(map(_read_value, items)), unit=unit, name=name)


def _read_group(text: str, core: str) -> tuple[str, list[str]] | None:
    """Split into (kind, items), or None when the text is no group that we know."""
    if core.startswith("\\{") and core.endswith("\\}"):
        core = "{" + core[2:-2] + "}"
    kind = core[:1] + core[-1:]
    if kind in _BRACKETS and _encloses(core):
        return _checked(kind, _split_top(core[1:-1], ","))
    if match := _MATRIX.fullmatch(core):
        rows = [
            f"({row.strip().replace('&', ',')})"
            for row in _ROW_END.split(match.group(2))
            if row.strip()
        ]
        return _checked("determinant" if match.group(1) in ("v", "V") else "matrix", rows)
    for separator, kind in (("\\cup", "union"), (",", "list")):
        items = _split_top(text, separator)
        if len(items) > 1:
            return _checked(kind, items)
    if text.count("\\pm") == 1:
        return "list", [_EITHER.sub("+", text).removeprefix("+"), _EITHER.sub("-", text)]
    return None


def _checked(kind: str, items: list[str]) -> tuple[str, list[str]] | None:
    return (kind, items) if items and all(items) and len(items) <= MAX_ITEMS else None


def _text_key(text: str) -> str:
    """What two texts are compared by: words without capitals, formulas without spaces."""
    if _WORDS.fullmatch(text):
        return text.casefold()
    if match := _SLASH.fullmatch(text):
        text = "{}\\frac{{{}}}{{{}}}".format(*match.groups())
    return _LOOSE_SPACE.sub("", text).removeprefix("+")


# --- Inequalities -------------------------------------------------------------------------------

INTERVALS = frozenset(("()", "(]", "[)", "[]", "union"))
_SIGN = r" ?(<|>|\\(?:le|ge)(?![a-z])) ?"
_BOUND = re.compile(rf"([a-zA-Z]){_SIGN}([^<>=]+)")
_BETWEEN = re.compile(rf"([^<>=]+?){_SIGN}[a-zA-Z]{_SIGN}([^<>=]+)")
_TURNED = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le"}


def as_interval(answer: Answer) -> Answer | None:
    """x > 3 as (3, oo), 1 < x <= 2 as (1, 2], several with "or" as a union; None for others."""
    if answer.kind == "list":
        parts = [as_interval(item) for item in answer.items]
        found = tuple(part for part in parts if part is not None)
        return Answer(kind="union", items=found) if len(found) == len(parts) else None
    if answer.kind or answer.number is not None:
        return None
    if match := _BETWEEN.fullmatch(answer.text):
        left, first, second, right = match.groups()
        if first in (">", "\\ge"):
            left, first, second, right = right, _TURNED[second], _TURNED[first], left
        opening, closing = "(["[first == "\\le"], ")]"[second == "\\le"]
        is_ordered = first in ("<", "\\le") and second in ("<", "\\le")
        return _interval(opening, left, right, closing) if is_ordered else None
    if match := _BOUND.fullmatch(answer.text):
        _, sign, bound = match.groups()
        if sign in (">", "\\ge"):
            return _interval("(["[sign == "\\ge"], bound, "\\infty", ")")
        return _interval("(", "-\\infty", bound, ")]"[sign == "\\le"])
    return None


def _interval(opening: str, low: str, high: str, closing: str) -> Answer:
    return Answer(kind=opening + closing, items=(_read_value(low), _read_value(high)))


# --- Brackets -----------------------------------------------------------------------------------


def _nesting(text: str) -> int:
    """Depth of brackets of any kind (an upper bound when there are few of them)."""
    opening = text.count("(") + text.count("[") + text.count("{")
    if opening <= MAX_NESTING:
        return opening
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return deepest


def _is_balanced(text: str) -> bool:
    r"""False when a brace is missing, as in a reference that was cut off: \frac{1}{."""
    if "{" not in text and "}" not in text:
        return True
    depth = 0
    for match in _BRACKET.finditer(text):
        depth += {"{": 1, "}": -1}.get(match.group(), 0)
        if depth < 0:
            return False
    return depth == 0


def _encloses(text: str) -> bool:
    """True when the first bracket closes at the last character: (a)(b) is no group."""
    depth = 0
    for match in _BRACKET.finditer(text):
        depth += 1 if match.group()[-1] in "([{" else -1
        if depth <= 0:
            return match.end() == len(text)
    return False


def _split_top(text: str, separator: str) -> list[str]:
    """Split at the separators outside every bracket; items stripped of spaces."""
    if not _BRACKET.search(text):
        return [item.strip() for item in text.split(separator)]
    items, depth = [""], 0
    for part in text.split(separator):
        items[-1] += part if not depth else separator + part
        depth += sum(1 if bracket[-1] in "([{" else -1 for bracket in _BRACKET.findall(part))
        if depth == 0:
            items.append("")
    if items[-1] == "":
        items.pop()
    return [item.strip() for item in items]
