r"""Decide whether two answers are the same: exact comparison by type, no algebra.

An answer is read once into an `_Answer`: a number (exact, as a Fraction), a group (tuple,
interval, set, list, union, matrix) compared item by item, or normalised text. Nothing is
evaluated, so no answer is slow or dangerous; `2+2` is not 4, and `x+1` is not `1+x`.

What is forgiven, always decided by the type of the gold answer:
- LaTeX and spacing (`\dfrac12`, `\left(`, `\text{}`, `$`, thousands separators, a final full stop);
- a name before `=` or a unit after the value, when the other side has none (`x=5`, `5 \text{ cm}`);
- capitals in words, and the order of sets and of bare lists (`1, -2`); where order matters the
  gold answer wears brackets: `(1, -2)` or `[1, -2]`.

What is not: a rounded decimal (0.333 is not 1/3), other bracket kinds (`(1,2]` is not `(1,2)`),
digits outside ASCII, and percentages: gold `9\%` accepts `9%`, `9 percent` and its value 0.09, but
not 9, and gold 9 or 0.09 does not accept `9\%`.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache

from forethought.grading.answers import MAX_ANSWER_CHARS, MAX_NESTING, extract_answer
from forethought.grading.latex import normalise
from forethought.grading.numbers import read_number, split_unit
from forethought.types import Grade, GradeStatus

MAX_ITEMS = 64  # of a group: unordered comparison is quadratic


def is_equivalent(gold: str, answer: str) -> bool:
    """True when `answer` says the same as `gold`. Not symmetric: the gold answer sets the type.

    Empty answers, and those longer than MAX_ANSWER_CHARS or nested deeper than MAX_NESTING, equal
    nothing. Never raises.
    """
    expected, given = _read(gold), _read(answer)
    return expected is not None and given is not None and _same(expected, given)


def grade_answer(gold: str, completion: str, *, opened: bool = False) -> Grade:
    """Grade the boxed answer of a completion against the gold answer: 1.0, 0.0 or None.

    None (UNPARSABLE_GOLD) means that the problem is unusable, whatever the completion says.
    `opened` says that the prompt ended inside a think block.
    """
    start = time.perf_counter()
    extracted = extract_answer(completion, opened=opened)
    status = extracted.status
    if _read(gold) is None:
        status = GradeStatus.UNPARSABLE_GOLD
    elif extracted.answer is not None:
        correct = is_equivalent(gold, extracted.answer)
        status = GradeStatus.CORRECT if correct else GradeStatus.WRONG
    assert status is not None
    score = None if status is GradeStatus.UNPARSABLE_GOLD else float(status is GradeStatus.CORRECT)
    seconds = time.perf_counter() - start
    return Grade(score=score, status=status, extracted=extracted.answer, seconds=seconds)


# --- Compare ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """What an answer says. Either `number`, or `kind` with `items`, or `text` is what counts."""

    text: str = ""
    number: Fraction | None = None  # as typed: 9 for "9%"
    kind: str = ""  # "()", "(]", "{}", "list", "union", "matrix", ...
    items: tuple[_Answer, ...] = ()
    unit: str = ""  # "cm", "%", ...
    name: str = ""  # "x" for "x=5"


def _same(gold: _Answer, answer: _Answer) -> bool:
    if gold.name and answer.name and gold.name != answer.name:
        return False
    if "%" in (gold.unit, answer.unit):
        return _same_percentage(gold, answer)
    if gold.unit and answer.unit and gold.unit != answer.unit:
        return False
    if gold.number is not None or answer.number is not None:
        return gold.number == answer.number
    if gold.kind or answer.kind:
        return _same_group(gold, answer)
    return gold.text == answer.text


def _same_percentage(gold: _Answer, answer: _Answer) -> bool:
    if gold.unit != "%" or gold.number is None or answer.number is None:
        return False
    if answer.unit == "%":
        return gold.number == answer.number
    return not answer.unit and gold.number == 100 * answer.number


def _same_group(gold: _Answer, answer: _Answer) -> bool:
    unordered = ("list", "{}", "union")
    both_collections = gold.kind in unordered[:2] and answer.kind in unordered[:2]
    if gold.kind != answer.kind and not both_collections:
        return False
    if len(gold.items) != len(answer.items):
        return False
    if gold.kind not in unordered:
        return all(map(_same, gold.items, answer.items))
    left = list(answer.items)
    for item in gold.items:
        found = next((index for index, other in enumerate(left) if _same(item, other)), None)
        if found is None:
            return False
        del left[found]
    return True


# --- Read ---------------------------------------------------------------------------------------

_NAME = re.compile(
    r"((?:[A-Za-z]|\\[A-Za-z]+)(?:_[0-9A-Za-z])?(?:\([A-Za-z]\))?)(?:=|\\in(?![a-z]) ?)"
)
_MATRIX = re.compile(r"\\begin\{[pbvBV]?matrix\}(.*)\\end\{[pbvBV]?matrix\}")
_WORDS = re.compile(r"[^\W\d_]+(?:[ -][^\W\d_]+)*")
_LOOSE_SPACE = re.compile(r"(?<![A-Za-z]) | (?![A-Za-z])")
_SLASH = re.compile(r"([+-]?)([0-9]*(?:[a-zA-Z]|\\[a-z]+|\\sqrt\{[0-9]+\}))/([0-9]+)")
_BRACKET = re.compile(r"[()\[\]{}]")
_BRACKETS = ("()", "(]", "[)", "[]", "{}")


@lru_cache(maxsize=8192)
def _read(raw: str) -> _Answer | None:
    """Read an answer; None when it is empty, too long or nested too deep."""
    if len(raw) > MAX_ANSWER_CHARS or _nesting(raw) > MAX_NESTING:
        return None
    number = read_number(raw)  # nearly all answers end here, five times as fast
    if number is not None:
        return _Answer(number=number)
    text = normalise(raw)
    return _read_value(text) if text else None


def _read_value(text: str) -> _Answer:
    name = ""
    if (match := _NAME.match(text)) and "=" not in text[match.end() :]:
        name, text = match.group(1), text[match.end() :].strip()
    core, unit = split_unit(text)
    number = read_number(core)
    if number is not None:
        return _Answer(number=number, unit=unit, name=name)
    if unit == "%":  # only numbers are percentages
        core, unit = text, ""
    group = _read_group(text, core)
    if group is None:
        return _Answer(text=_text_key(core), unit=unit, name=name)
    kind, items = group
    if len(items) == 1 and kind in ("()", "{}"):  # (5) is 5, and (C) is C
        inner = _read_value(items[0])
        return replace(inner, unit=unit or inner.unit, name=name or inner.name)
    return _Answer(kind=kind, items=tuple(map(_read_value, items)), unit=unit, name=name)


def _read_group(text: str, core: str) -> tuple[str, list[str]] | None:
    """Split into (kind, items), or None when the text is no group that we know."""
    if core.startswith("\\{") and core.endswith("\\}"):
        core = "{" + core[2:-2] + "}"
    kind = core[:1] + core[-1:]
    if kind in _BRACKETS and _encloses(core):
        return _checked(kind, _split_top(core[1:-1], ","))
    if match := _MATRIX.fullmatch(core):
        rows = [f"({row.replace('&', ',')})" for row in match.group(1).split("\\\\") if row.strip()]
        return _checked("matrix", rows)
    for separator, kind in (("\\cup", "union"), (",", "list")):
        items = _split_top(text, separator)
        if len(items) > 1:
            return _checked(kind, items)
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


def _encloses(text: str) -> bool:
    """True when the first bracket closes at the last character: (a)(b) is no group."""
    depth = 0
    for match in _BRACKET.finditer(text):
        depth += 1 if match.group() in "([{" else -1
        if depth <= 0:
            return match.end() == len(text)
    return False


def _split_top(text: str, separator: str) -> list[str]:
    """Split at the separators outside every bracket; items stripped of spaces."""
    items, depth = [""], 0
    for part in text.split(separator):
        items[-1] += part if not depth else separator + part
        depth += sum(1 if bracket in "([{" else -1 for bracket in _BRACKET.findall(part))
        if depth == 0:
            items.append("")
    if items[-1] == "":
        items.pop()
    return [item.strip() for item in items]
