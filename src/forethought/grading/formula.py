r"""Do two formulas have one value, wherever one looks? Nothing symbolic, and bounded work.

Both are read into trees (`formula_reader`) and compared at points chosen by the names of their
letters, half of them all positive, half of mixed signs. Formulas of such a size that agree there
are the same function (Schwartz-Zippel).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from random import Random

from forethought.grading import formula_values as values
from forethought.grading.formula_reader import Formula, Point, read_formula
from forethought.grading.formula_values import Value, is_different, is_equal, is_real

_NUM_POINTS, _NUM_NEEDED = 8, 3
_RELATION = re.compile(r"\\(?:le|ge|ne)(?![a-z])|[=<>]")
_FLIPPED = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le", "=": "=", "\\ne": "\\ne"}


@lru_cache(maxsize=4096)
def same_value(gold: str, answer: str) -> bool | None:
    """Whether two normalised formulas, equations or inequalities agree; None when unknown.

    None means that one of them is beyond the grammar, or has no value at too many points. Never
    raises.
    """
    expected, given = _read(gold), _read(answer)
    if expected is None or given is None:
        return None
    if expected.relation or given.relation:
        return _same_relation(expected, given)
    return _agree(expected.formula, given.formula)


@dataclass(frozen=True, slots=True)
class _Statement:
    """A formula, or a relation: then `formula` is its left minus its right side."""

    formula: Formula
    relation: str = ""


@lru_cache(maxsize=4096)
def _read(text: str) -> _Statement | None:
    relations = _RELATION.findall(text)
    sides = [read_formula(side) for side in _RELATION.split(text)]
    if len(sides) > 2 or None in sides:
        return None
    left, *rest = [side for side in sides if side is not None]
    if not rest:
        return _Statement(left)
    return _Statement(_difference(left, rest[0]), relations[0])


def _difference(left: Formula, right: Formula) -> Formula:
    def node(point: Point) -> Value:
        return values.add(left.node(point), values.multiply(Fraction(-1), right.node(point)))

    return Formula(
        node=node,
        letters=left.letters | right.letters,
        has_decimals=left.has_decimals or right.has_decimals,
        is_complex=left.is_complex or right.is_complex,
    )


def _agree(gold: Formula, answer: Formula) -> bool | None:
    letters = gold.letters | answer.letters
    num_equal = 0
    for expected, given in _value_pairs(gold, answer):
        if is_equal(expected, given):
            if _is_rounded(gold, expected, given) or _is_rounded(answer, given, expected):
                return False
            num_equal += 1
        elif not letters or gold.is_complex or (is_real(expected) and is_real(given)):
            # Elsewhere, two branches of a root or logarithm may be meant.
            return False if is_different(expected, given) else None
    return True if num_equal >= (_NUM_NEEDED if letters else 1) else None


def _is_rounded(formula: Formula, value: Value, other: Value) -> bool:
    """A decimal is exact or wrong: 3.4641016151377544 is not 2 sqrt 3, however near."""
    is_decimal = formula.has_decimals and isinstance(value, Fraction)
    return is_decimal and not isinstance(other, Fraction)


def _same_relation(gold: _Statement, answer: _Statement) -> bool | None:
    """Two relations are one when the differences of their sides stand in one proportion."""
    if answer.relation not in (gold.relation, _FLIPPED.get(gold.relation)):
        return False
    one, other = gold.formula, answer.formula
    if one.letters != other.letters or not one.letters:
        return False
    pairs = [(a, b) for a, b in _value_pairs(one, other) if is_real(a) and is_real(b)]
    zeros = [(is_equal(a, Fraction(0)), is_equal(b, Fraction(0))) for a, b in pairs]
    ratios = [
        values.divide(a, b) for (a, b), zero in zip(pairs, zeros, strict=True) if not any(zero)
    ]
    if any(a is not b for a, b in zeros):
        return False
    if len(ratios) < _NUM_NEEDED:
        return None
    if not all(is_equal(ratios[0], ratio) for ratio in ratios):
        return False
    if gold.relation in ("=", "\\ne"):
        return True
    return (complex(ratios[0]).real < 0) == (gold.relation != answer.relation)


def _value_pairs(one: Formula, other: Formula) -> list[tuple[Value, Value]]:
    """Both values at every point where both exist."""
    found = []
    for point in _points(one.letters | other.letters):
        try:
            pair = one.node(point), other.node(point)
        except (ArithmeticError, ValueError):
            continue
        if all(map(values.is_finite, pair)):
            found.append(pair)
    return found


def _points(letters: frozenset[str]) -> list[dict[str, Value]]:
    """The same for every pair of formulas in the same letters."""
    return [
        {letter: _coordinate(number, letter) for letter in letters}
        for number in range(_NUM_POINTS if letters else 1)
    ]


@lru_cache(maxsize=1024)
def _coordinate(number: int, letter: str) -> Value:
    rng = Random(f"{number}/{letter}")
    sign = rng.choice((-1, 1)) if number % 2 else 1
    return Fraction(sign * rng.randint(5, 40), rng.choice((11, 13, 17)))
