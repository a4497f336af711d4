"""Numbers as formulas need them: exact fractions while small and rational, else complex floats.

Work is bounded: no power is computed whose digits would not fit, no number grows past some bits.
Every function raises an ArithmeticError or ValueError where there is no value.
"""

from __future__ import annotations

import cmath
import math
from fractions import Fraction
from typing import TypeAlias

MAX_EXPONENT = 1000
MAX_FACTORIAL = 100
_MAX_BITS = 4096  # of a numerator or denominator: beyond, a value goes on as a float
_TOLERANCE, _DOUBT = 1e-12, 1e-7  # relative; a difference in between may be rounding

Value: TypeAlias = Fraction | complex


def is_equal(one: Value, other: Value) -> bool:
    """Equal as fractions, or as floats but for their last digits."""
    if isinstance(one, Fraction) and isinstance(other, Fraction):
        return one == other
    return _distance(one, other) <= _TOLERANCE


def is_different(one: Value, other: Value) -> bool:
    """Not equal, and by more than rounding on the way could explain."""
    if isinstance(one, Fraction) and isinstance(other, Fraction):
        return one != other
    return _distance(one, other) > _DOUBT


def _distance(one: Value, other: Value) -> float:
    left, right = complex(one), complex(other)
    return abs(left - right) / max(abs(left), abs(right), 0.1)


def is_real(value: Value) -> bool:
    return isinstance(value, Fraction) or abs(value.imag) <= _TOLERANCE * max(abs(value), 0.1)


def is_finite(value: Value) -> bool:
    return isinstance(value, Fraction) or cmath.isfinite(value)


def add(left: Value, right: Value) -> Value:
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        return _settle(left + right)
    return complex(left) + complex(right)


def multiply(left: Value, right: Value) -> Value:
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        return _settle(left * right)
    return complex(left) * complex(right)


def divide(top: Value, bottom: Value) -> Value:
    if isinstance(top, Fraction) and isinstance(bottom, Fraction):
        return _settle(top / bottom)
    return complex(top) / complex(bottom)


def power(base: Value, exponent: Value) -> Value:
    if isinstance(exponent, Fraction):
        if max(abs(exponent.numerator), exponent.denominator) > MAX_EXPONENT:
            raise ValueError("an exponent out of proportion")
        if isinstance(base, Fraction):
            base = root(base, exponent.denominator)
            exponent = Fraction(exponent.numerator)
        if isinstance(base, Fraction):
            return _whole_power(base, exponent.numerator)
        if exponent.denominator == 1:
            return base**exponent.numerator
    return complex(base) ** complex(exponent)


def root(value: Value, degree: int) -> Value:
    """The root, exact where there is one; real and negative of a negative for an odd degree."""
    if not 1 <= degree <= MAX_EXPONENT:
        raise ValueError("a root out of proportion")
    if degree == 1:
        return value
    if isinstance(value, Fraction):
        if value < 0 and degree % 2:
            return multiply(Fraction(-1), root(-value, degree))
        if value >= 0:
            top, bottom = (_whole_root(n, degree) for n in (value.numerator, value.denominator))
            if top is not None and bottom is not None:
                return Fraction(top, bottom)
    return cmath.sqrt(complex(value)) if degree == 2 else complex(value) ** (1 / degree)


def factorial(value: Value) -> Value:
    if not isinstance(value, Fraction) or value.denominator != 1 or not 0 <= value <= MAX_FACTORIAL:
        raise ValueError("no small whole number")
    return Fraction(math.factorial(value.numerator))


def absolute(value: Value) -> Value:
    return abs(value) if isinstance(value, Fraction) else complex(abs(value))


def _settle(value: Fraction) -> Value:
    size = max(value.numerator.bit_length(), value.denominator.bit_length())
    return value if size <= _MAX_BITS else complex(float(value))


def _whole_power(base: Fraction, exponent: int) -> Value:
    size = max(base.numerator.bit_length(), base.denominator.bit_length())
    if size * abs(exponent) <= _MAX_BITS:
        return base**exponent
    return complex(float(base)) ** exponent


def _whole_root(number: int, degree: int) -> int | None:
    if degree == 2:
        near = math.isqrt(number)
    elif number.bit_length() < 1000:
        near = round(float(number) ** (1 / degree))
    else:
        return None
    return near if near**degree == number else None
