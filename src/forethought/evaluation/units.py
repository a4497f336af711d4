"""How values are written for a reader: 86.2%, 1,234, 3 min 20 s, 0.00031."""

from __future__ import annotations

from enum import StrEnum

MINUS, DASH = "\u2212", "\u2013"


class Unit(StrEnum):
    """What a value is, and so how it is written."""

    FRACTION = "fraction"  # in [0, 1], written as a percentage
    TOKENS = "tokens"
    SECONDS = "seconds"
    NUMBER = "number"


def write_value(value: float, unit: Unit) -> str:
    """The value as a reader wants it: 86.2%, 1,234, 3 min 20 s, 0.00031."""
    text = {
        Unit.FRACTION: _write_fraction,
        Unit.TOKENS: _write_tokens,
        Unit.SECONDS: _write_seconds,
        Unit.NUMBER: _write_number,
    }[unit](abs(value))
    return MINUS + text if value < 0 and any(c in "123456789" for c in text) else text


def write_difference(value: float, unit: Unit) -> str:
    """The value with its sign; a difference of fractions is in percentage points, without %."""
    text = f"{abs(value) * 100:.1f}" if unit is Unit.FRACTION else write_value(abs(value), unit)
    if not any(c in "123456789" for c in text):
        return text
    return (MINUS if value < 0 else "+") + text


def _write_fraction(value: float) -> str:
    return f"{value * 100:.1f}%"


def _write_tokens(value: float) -> str:
    return f"{value:,.1f}" if value < 1000 and value != int(value) else f"{value:,.0f}"


def _write_seconds(value: float) -> str:
    if value < 100:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _write_number(value: float) -> str:
    if value == 0:
        return "0"
    if 1000 <= value < 1e12:
        return f"{value:,.0f}"
    if 0.01 <= value < 1000:
        return f"{value:#.3g}".removesuffix(".")  # 5.20 beside 1.25: aligned in a column
    return f"{value:.3g}"
