r"""Read a formula into a tree that gives its value at a point.

The grammar is that of answers to school and contest problems: numbers, letters, + - * / ^, roots,
fractions, absolute values, factorials, binomials and the common functions. What is beyond it,
ambiguous (3\frac{1}{2} within a product) or long is refused. No formula is slow: the tree has at
most one node a character, and `formula_values` bounds the work of each.
"""

from __future__ import annotations

import cmath
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import TypeAlias

from forethought.grading import formula_values as values
from forethought.grading.formula_values import Value

MAX_FORMULA_CHARS = 200

Point: TypeAlias = Mapping[str, Value]
Node: TypeAlias = Callable[[Point], Value]

_TOKEN = re.compile(
    r"\\[A-Za-z]+|[0-9]+(?:\.[0-9]*)?|\.[0-9]+|[A-Za-z](?![A-Za-z]{3})|[-+*/^_!()\[\]{}|]"
)
_FUNCTIONS: Mapping[str, Callable[[complex], complex]] = {
    "\\sin": cmath.sin,
    "\\cos": cmath.cos,
    "\\tan": cmath.tan,
    "\\cot": lambda x: 1 / cmath.tan(x),
    "\\sec": lambda x: 1 / cmath.cos(x),
    "\\csc": lambda x: 1 / cmath.sin(x),
    "\\arcsin": cmath.asin,
    "\\arccos": cmath.acos,
    "\\arctan": cmath.atan,
    "\\sinh": cmath.sinh,
    "\\cosh": cmath.cosh,
    "\\tanh": cmath.tanh,
    "\\exp": cmath.exp,
    "\\ln": cmath.log,
    "\\log": cmath.log10,
}
_INVERSES = {"\\sin": "\\arcsin", "\\cos": "\\arccos", "\\tan": "\\arctan"}
_CONSTANTS: Mapping[str, Value] = {"\\pi": complex(cmath.pi), "e": complex(cmath.e), "i": 1j}
_GREEK = re.compile(
    r"\\(?:alpha|beta|gamma|delta|(?:var)?epsilon|zeta|eta|theta|lambda|mu|nu|xi|rho|sigma|tau"
    r"|(?:var)?phi|chi|psi|omega|Gamma|Delta|Omega)"
)
_TIMES, _OVER = ("*", "\\cdot", "\\times"), ("/", "\\div")
_CLOSING = {"(": ")", "[": "]", "{": "}", "|": "|"}


@dataclass(frozen=True, slots=True)
class Formula:
    """`node(point)` is the value where each of `letters` has that of the point.

    It raises an ArithmeticError or ValueError where there is none.
    """

    node: Node
    letters: frozenset[str]
    has_decimals: bool
    is_complex: bool


def read_formula(text: str) -> Formula | None:
    """Read a normalised formula without a relation sign; None when it is beyond the grammar."""
    if len(text) > MAX_FORMULA_CHARS:
        return None
    parser = _Parser(text)
    try:
        node = parser.whole()
    except (ValueError, RecursionError):
        return None
    return Formula(
        node=node,
        letters=frozenset(parser.letters),
        has_decimals="." in text,
        is_complex="i" in parser.constants,
    )


class _Parser:
    """Recursive descent over the tokens of one formula. Every method raises ValueError."""

    def __init__(self, text: str) -> None:
        self._tokens = _TOKEN.findall(text)[::-1]
        self._is_covered = len("".join(self._tokens)) == len(text.replace(" ", ""))
        self.letters: set[str] = set()
        self.constants: set[str] = set()

    def whole(self) -> Node:
        if not self._is_covered:
            raise ValueError("other characters")
        node = self._sum()
        if self._tokens:
            raise ValueError("something is left over")
        return node

    @property
    def _next(self) -> str:
        return self._tokens[-1] if self._tokens else ""

    def _take(self, *wanted: str) -> str:
        """The next token if it is one of those wanted, else ""."""
        return self._tokens.pop() if self._next and self._next in wanted else ""

    def _expect(self, wanted: str) -> None:
        if not self._take(wanted):
            raise ValueError(f"no {wanted}")

    def _sum(self) -> Node:
        node = self._product()
        while sign := self._take("+", "-"):
            node = _binary(values.add, node, _signed(sign, self._product()))
        return node

    def _product(self) -> Node:
        node = self._signed_power()
        while True:
            if self._take(*_TIMES):
                node = _binary(values.multiply, node, self._signed_power())
            elif self._take(*_OVER):
                node = _binary(values.divide, node, self._signed_power())
            elif self._starts_factor():
                node = _binary(values.multiply, node, self._power())
            else:
                return node

    def _signed_power(self) -> Node:
        if sign := self._take("+", "-"):
            return _signed(sign, self._signed_power())
        return self._power()

    def _starts_factor(self) -> bool:
        token = self._next
        return bool(token) and token not in "+-/!^_)]}|" and token not in (*_TIMES, *_OVER)

    def _power(self) -> Node:
        is_number = self._next[:1].isdigit() or self._next[:1] == "."
        node = self._atom()
        if is_number and (self._next == "\\frac" or self._next[:1].isdigit()):
            raise ValueError("a mixed number or a product")
        while self._take("!"):
            node = partial(_apply, values.factorial, node)
        if self._take("^"):
            node = _binary(values.power, node, self._exponent())
            if self._next in ("^", "!"):
                raise ValueError("a tower")
        return node

    def _exponent(self) -> Node:
        if self._next == "{":
            return self._group()
        if sign := self._take("+", "-"):
            return _signed(sign, self._atom())
        return self._atom()

    def _group(self) -> Node:
        closing = _CLOSING[self._tokens.pop()]
        node = self._sum()
        self._expect(closing)
        return node

    def _atom(self) -> Node:
        token = self._next
        if token == "|":
            return partial(_apply, values.absolute, self._group())
        if token in ("(", "[", "{"):
            return self._group()
        if token in _FUNCTIONS:
            return self._function()
        if not token:
            raise ValueError("something is missing")
        self._tokens.pop()
        if token[0].isdigit() or token[0] == ".":
            return _constant(Fraction(token.rstrip(".")))
        if token == "\\frac":
            return _binary(values.divide, self._braced(), self._braced())
        if token == "\\binom":
            return _binary(_binomial, self._braced(), self._braced())
        if token == "\\sqrt":
            degree = self._degree() if self._next == "[" else 2
            return partial(_apply, partial(_root, degree), self._braced())
        if token in _CONSTANTS:
            self.constants.add(token)
            return _constant(_CONSTANTS[token])
        if token.isalpha() or _GREEK.fullmatch(token):
            name = token + self._subscript()
            self.letters.add(name)
            return partial(_look_up, name)
        raise ValueError(f"an unknown {token}")

    def _braced(self) -> Node:
        if self._next != "{":
            raise ValueError("no argument")
        return self._group()

    def _degree(self) -> int:
        self._expect("[")
        token = self._tokens.pop() if self._tokens else ""
        self._expect("]")
        if not re.fullmatch("[0-9]{1,3}", token):
            raise ValueError("no degree of a root")
        return int(token)

    def _subscript(self) -> str:
        if not self._take("_"):
            return ""
        token = self._tokens.pop() if self._tokens else ""
        if token == "{" and len(self._tokens) >= 2:
            token = self._tokens.pop()
            self._expect("}")
        if not re.fullmatch(r"[0-9A-Za-z]{1,3}|\\[a-z]+", token):
            raise ValueError("no subscript")
        return f"_{token}"

    def _function(self) -> Node:
        r"""`\sin x`, `\sin(x)`, `\sin^2 x`, `\sin^{-1} x`, `\log_2 8`, `\sin 2x`."""
        name = self._tokens.pop()
        base = None
        if name == "\\log" and self._take("_"):
            base = self._group() if self._next == "{" else self._atom()
        exponent = self._exponent() if self._take("^") else None
        if exponent is not None and name in _INVERSES and _is_minus_one(exponent):
            name, exponent = _INVERSES[name], None
        node: Node = partial(_apply, partial(_call, name), self._argument())
        if base is not None:
            node = _binary(values.divide, node, partial(_apply, partial(_call, name), base))
        return node if exponent is None else _binary(values.power, node, exponent)

    def _argument(self) -> Node:
        """A bracket, or a product up to the next sign or function."""
        if self._next in ("(", "[", "{", "|"):
            return self._atom()
        node = self._power()
        while self._starts_factor() and self._next not in _FUNCTIONS and self._next not in "([{":
            node = _binary(values.multiply, node, self._power())
        return node


def _constant(value: Value) -> Node:
    return lambda point: value


def _look_up(name: str, point: Point) -> Value:
    return point[name]


def _apply(function: Callable[[Value], Value], node: Node, point: Point) -> Value:
    return function(node(point))


def _binary(function: Callable[[Value, Value], Value], left: Node, right: Node) -> Node:
    return lambda point: function(left(point), right(point))


def _signed(sign: str, node: Node) -> Node:
    return node if sign == "+" else _binary(values.multiply, _constant(Fraction(-1)), node)


def _root(degree: int, value: Value) -> Value:
    return values.root(value, degree)


def _call(name: str, value: Value) -> Value:
    return _FUNCTIONS[name](complex(value))


def _binomial(top: Value, bottom: Value) -> Value:
    if not isinstance(top, Fraction) or not isinstance(bottom, Fraction):
        raise ValueError("no whole numbers")
    rest = values.factorial(top - bottom)
    return values.divide(values.factorial(top), values.multiply(rest, values.factorial(bottom)))


def _is_minus_one(node: Node) -> bool:
    try:
        return node({}) == -1
    except (ArithmeticError, KeyError, ValueError):
        return False
