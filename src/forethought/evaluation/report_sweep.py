"""Strategies compared, as the report shows them: a chart, a table, and paired tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from forethought.evaluation.charts import NUM_COLORS, Line, Point, line_chart
from forethought.evaluation.report_input import Row, mappings, number
from forethought.evaluation.units import DASH, Unit, write_difference, write_value


@dataclass(frozen=True, slots=True)
class _Axis:
    """What accuracy is drawn over: the `key` of a row, by the `name` of its unit."""

    name: str
    key: str
    title: str


_AXES = (
    _Axis("tokens", "total_tokens", "total tokens a problem"),
    _Axis("calls", "calls", "calls a problem"),
    _Axis("seconds", "seconds", "seconds for all problems together"),
    _Axis("money", "money", "money a problem"),
)


def sweep_of(summary: Row) -> dict[str, Any] | None:
    """What the template shows of `summary["curves"]`, None where there is none."""
    rows = mappings(summary.get("curves"))
    if not rows:
        return None
    names = list(dict.fromkeys(str(row.get("strategy", "")) for row in rows))
    return {
        "svgs": [_chart(axis, names, rows) for axis in _axes(rows)],
        "rows": [_row(row) for row in rows],
        "pairs": [_pair(pair) for pair in mappings(summary.get("pairs"))],
    }


def _axes(rows: list[Row]) -> list[_Axis]:
    """Tokens, and the other units that a budget is in."""
    budgets = " ".join(str(row.get("budget")) for row in rows)
    return [axis for axis in _AXES if axis.name == "tokens" or f"{axis.name}=" in budgets]


def _chart(axis: _Axis, names: list[str], rows: list[Row]) -> Markup:
    lines = [
        Line(name=name, points=_points(axis.key, name, rows), color=index % NUM_COLORS)
        for index, name in enumerate(names)
    ]
    return line_chart(f"Accuracy over {axis.title}", lines, Unit.FRACTION, axis=axis.name)


def _points(key: str, name: str, rows: list[Row]) -> tuple[Point, ...]:
    points = []
    for row in rows:
        spent, value = number(row.get(key)), number(row.get("accuracy"))
        if row.get("strategy") == name and spent is not None and value is not None:
            bounds = {key: number(row.get(key)) for key in ("low", "high")}
            points.append(Point(step=spent, value=value, **bounds))
    return tuple(sorted(points, key=lambda point: point.step))


def _row(row: Row) -> list[str]:
    """Strategy, budget, accuracy with its interval, tokens, completions, share cut short."""
    low, high = _write(row, "low", Unit.FRACTION), _write(row, "high", Unit.FRACTION)
    return [
        str(row.get("strategy", "")),
        _write_budget(row.get("budget")),
        f"{_write(row, 'accuracy', Unit.FRACTION)} ({low} to {high})",
        _write(row, "total_tokens", Unit.TOKENS),
        _write(row, "sampled_tokens", Unit.TOKENS),
        _write(row, "completions", Unit.NUMBER),
        _write(row, "budget_frac", Unit.FRACTION),
    ]


def _write_budget(budget: object) -> str:
    return budget if isinstance(budget, str) else _write({"budget": budget}, "budget", Unit.TOKENS)


def _pair(pair: Row) -> list[str]:
    known = {key: number(pair.get(key)) for key in ("mean", "low", "high")}
    texts = [DASH if v is None else write_difference(v, Unit.FRACTION) for v in known.values()]
    p = number(pair.get("p"))
    return [
        str(pair.get("first", "")),
        str(pair.get("second", "")),
        f"{texts[0]} ({texts[1]} to {texts[2]})",
        DASH if p is None else f"{p:.3g}",
    ]


def _write(row: Mapping[str, Any], key: str, unit: Unit) -> str:
    value = number(row.get(key))
    return DASH if value is None else write_value(value, unit)
