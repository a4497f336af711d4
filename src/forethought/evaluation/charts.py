"""Inline SVG charts: lines with confidence bands, and one stacked bar.

Ours because no small library draws bands into one self-contained, script-free file. Colours are
the page's CSS custom properties (`--c0` to `--c5`), so one drawing serves light and dark. Every
string that reaches the markup is escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from markupsafe import Markup

from forethought.evaluation.units import DASH, MINUS, Unit, write_value

NUM_COLORS = 6
MAX_POINTS = 400  # a line drawn on 500 pixels shows no more
_WIDTH, _HEIGHT = 480.0, 228.0
_LEFT, _TOP, _BOTTOM = 46.0, 12.0, 26.0
_LABEL_GAP = 15.0
_CHAR_WIDTH = 7.6
_SUFFIXES = ((1e9, "B"), (1e6, "M"), (1e3, "k"))
_MAX_DOTS, _MAX_HOVERS, _MAX_NAME = 12, 80, 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One value at one step; `low` and `high` bound its confidence interval where known."""

    step: float
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A named series in rising order of step. `color` indexes the page's palette."""

    name: str
    points: tuple[Point, ...]
    color: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Frame:
    """The plotting area: data ranges, the right edge in pixels, the ticks of the y axis."""

    x_low: float
    x_high: float
    y_ticks: tuple[float, ...]
    right: float

    def x(self, step: float) -> float:
        if self.x_high == self.x_low:
            return (_LEFT + self.right) / 2
        return _LEFT + (step - self.x_low) / (self.x_high - self.x_low) * (self.right - _LEFT)

    def y(self, value: float) -> float:
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _BOTTOM - _TOP)


def nice_ticks(low: float, high: float, max_steps: int = 6) -> tuple[float, ...]:
    """Evenly spaced round numbers that cover [low, high], at least two of them.

    The spacing is 1, 2 or 5 times a power of ten: the smallest that needs at most `max_steps`
    intervals, give or take the rounding outwards at both ends.
    """
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    step = _nice_step((high - low) / max_steps)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return tuple(index * step for index in range(first, max(last, first + 1) + 1))


def _nice_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in (1, 2, 5, 10, 20) if m * power >= rough * (1 - 1e-9))


def _write_tick(value: float, step: float, unit: Unit) -> str:
    """At most about six characters: 40%, 0.25, 2.5e-4, 20M. `step` is the distance of ticks."""
    if abs(value) < step / 2:
        return "0%" if unit is Unit.FRACTION else "0"
    if unit is Unit.FRACTION:
        value, step = value * 100, step * 100
    sign, size = MINUS if value < 0 else "", abs(value)
    scale, suffix = next((pair for pair in _SUFFIXES if step >= pair[0]), (1.0, ""))
    if step < 0.01 or size >= 1e12:
        mantissa, exponent = f"{size:.1e}".split("e")
        text = f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    else:
        decimals = max(0, -math.floor(math.log10(step / scale) + 1e-9))
        text = f"{size / scale:,.{decimals}f}{suffix}"
    return sign + text + ("%" if unit is Unit.FRACTION else "")


def downsample(points: Sequence[Point], max_points: int = MAX_POINTS) -> tuple[Point, ...]:
    """At most `max_points` of the given points, first and last among them, spikes kept.

    Largest-triangle-three-buckets (Steinarsson 2013): of each bucket, keep the point that spans
    the largest triangle with the point kept before it and the mean of the next bucket.
    """
    if len(points) <= max_points or max_points < 3:
        return tuple(points)
    edges = [1 + round(i * (len(points) - 2) / (max_points - 2)) for i in range(max_points - 1)]
    kept = [points[0]]
    for index, (start, stop) in enumerate(pairwise(edges)):
        after = points[stop : edges[index + 2]] if index + 2 < len(edges) else points[-1:]
        step = sum(p.step for p in after) / len(after)
        value = sum(p.value for p in after) / len(after)
        kept.append(_farthest(points[start:stop], kept[-1], step, value))
    return (*kept, points[-1])


def _farthest(bucket: Sequence[Point], last: Point, step: float, value: float) -> Point:
    def area(point: Point) -> float:
        across = (last.step - step) * (point.value - last.value)
        return abs(across - (last.step - point.step) * (value - last.value))

    return max(bucket, key=area)


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions moved as little as a single sweep allows so that neighbours are `gap` apart.

    Order is kept, and all lie in [low, high] as long as they fit there.
    """
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    placed = [0.0] * len(positions)
    floor = low
    for index in order:
        placed[index] = floor = max(positions[index], floor)
        floor += gap
    ceiling = high
    for index in reversed(order):
        placed[index] = ceiling = min(placed[index], ceiling)
        ceiling -= gap
    return placed


def line_chart(
    title: str,
    lines: Iterable[Line],
    unit: Unit,
    *,
    from_zero: bool = True,
    axis: str = "step",
) -> Markup:
    """An SVG of the lines over steps, or what else `axis` names, each labelled with its last value
    at its right end.

    Fractions are drawn on 0 to 100%; other units from zero unless `from_zero` is False. Lines
    without points are left out; "" when none has any.
    """
    drawn = [_thinned(line) for line in lines if line.points]
    if not drawn:
        return Markup("")
    labels = _label_texts(drawn, unit)
    longest = max(len(" ".join(label).strip()) for label in labels)
    right = max(_WIDTH - 14 - _CHAR_WIDTH * longest, _WIDTH / 2)
    frame = _make_frame(drawn, unit, from_zero, right)
    on_top = drawn[::-1]  # the first line matters most and is drawn last
    name = "chart-" + "".join(c if c.isascii() and c.isalnum() else "-" for c in title.lower())
    parts = [
        f'<svg class="chart" viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img"'
        f' aria-labelledby="{name}-t {name}-d">',
        f'<title id="{name}-t">{escape(title)}</title>',
        f'<desc id="{name}-d">{escape(_describe(drawn, unit, axis))}</desc>',
        *_draw_axes(frame, unit, axis),
        *(_draw_band(line, frame) for line in on_top),
        *(_draw_line(line, frame) for line in on_top),
        *(_draw_dots(line, frame, unit, axis) for line in on_top),
        *_draw_labels(drawn, labels, frame),
        "</svg>",
    ]
    return Markup("".join(parts))


def _thinned(line: Line) -> Line:
    return Line(name=line.name, points=downsample(line.points), color=line.color % NUM_COLORS)


def _make_frame(lines: Sequence[Line], unit: Unit, from_zero: bool, right: float) -> _Frame:
    points = [point for line in lines for point in line.points]
    values = [v for p in points for v in (p.value, p.low, p.high) if v is not None]
    low, high = min(values), max(values)
    if unit is Unit.FRACTION:
        low, high = min(low, 0.0), max(high, 1.0)
    elif from_zero:
        low, high = min(low, 0.0), max(high, 0.0)
    steps = [point.step for point in points]
    first, last = min(steps), max(steps)
    return _Frame(
        x_low=0.0 if 0 < first < last / 10 else first,
        x_high=last,
        y_ticks=nice_ticks(low, high),
        right=right,
    )


def _describe(lines: Sequence[Line], unit: Unit, axis: str) -> str:
    def one(line: Line) -> str:
        first, last = line.points[0], line.points[-1]
        return (
            f"{line.name}: {write_value(first.value, unit)} at {axis} {first.step:g},"
            f" {write_value(last.value, unit)} at {axis} {last.step:g}."
        )

    return " ".join(one(line) for line in lines)


def _draw_axes(frame: _Frame, unit: Unit, axis: str) -> list[str]:
    gap, below = frame.y_ticks[1] - frame.y_ticks[0], _HEIGHT - _BOTTOM + 17
    parts = []
    for index, tick in enumerate(frame.y_ticks):
        y = frame.y(tick)
        parts.append(
            f'<line class="{"grid" if index else "axis"}" x1="{_LEFT:g}" x2="{frame.right:.1f}"'
            f' y1="{y:.1f}" y2="{y:.1f}"/><text class="tick" text-anchor="end"'
            f' x="{_LEFT - 7:g}" y="{y + 4:.1f}">{_write_tick(tick, gap, unit)}</text>'
        )
    for step in _step_ticks(frame):
        parts.append(
            f'<text class="tick" text-anchor="middle" x="{frame.x(step):.1f}"'
            f' y="{below:.1f}">{step:,.0f}</text>'
        )
    parts.append(
        f'<text class="tick" x="{frame.right + 24:.1f}" y="{below:.1f}">{escape(axis)}</text>'
    )
    return parts


def _step_ticks(frame: _Frame) -> list[float]:
    """Round steps inside the drawn range; steps are whole numbers."""
    if frame.x_high == frame.x_low:
        return [frame.x_low]
    ticks = nice_ticks(frame.x_low, frame.x_high)
    return [t for t in ticks if frame.x_low <= t <= frame.x_high and abs(t - round(t)) < 1e-6]


def _draw_band(line: Line, frame: _Frame) -> str:
    bounds = [(p.step, p.low, p.high) for p in line.points if p.low is not None]
    known = [(step, low, high) for step, low, high in bounds if high is not None]
    if not known:
        return ""
    if len(known) == 1:
        step, low, high = known[0]
        x = frame.x(step)
        return (
            f'<line class="whisker s{line.color}" x1="{x:.1f}" x2="{x:.1f}"'
            f' y1="{frame.y(low):.1f}" y2="{frame.y(high):.1f}"/>'
        )
    upper = [f"{frame.x(step):.1f},{frame.y(high):.1f}" for step, _, high in known]
    lower = [f"{frame.x(step):.1f},{frame.y(low):.1f}" for step, low, _ in reversed(known)]
    return f'<polygon class="band f{line.color}" points="{" ".join(upper + lower)}"/>'


def _draw_line(line: Line, frame: _Frame) -> str:
    path = " ".join(f"{frame.x(p.step):.1f},{frame.y(p.value):.1f}" for p in line.points)
    dense = " dense" if len(line.points) > _MAX_HOVERS else ""
    return f'<polyline class="line{dense} s{line.color}" points="{path}"/>'


def _draw_dots(line: Line, frame: _Frame, unit: Unit, axis: str) -> str:
    """Visible dots where points are few; invisible ones that carry a tooltip up to a limit."""
    points = line.points if len(line.points) <= _MAX_HOVERS else line.points[-1:]
    parts = []
    for point in points:
        seen = len(line.points) <= _MAX_DOTS or point is line.points[-1]
        look = f'class="f{line.color}" r="3"' if seen else 'class="hover" r="6"'
        hint = f"{line.name} at {axis} {point.step:g}: {write_value(point.value, unit)}"
        if point.low is not None and point.high is not None:
            hint += f" ({write_value(point.low, unit)} {DASH} {write_value(point.high, unit)})"
        parts.append(
            f'<circle {look} cx="{frame.x(point.step):.1f}" cy="{frame.y(point.value):.1f}">'
            f"<title>{escape(hint)}</title></circle>"
        )
    return "".join(parts)


def _label_texts(lines: Sequence[Line], unit: Unit) -> list[tuple[str, str]]:
    """(name, last value) of each line; a line alone needs no name, its title says it."""
    alone = len(lines) == 1
    last = [write_value(line.points[-1].value, unit) for line in lines]
    names = ["" if alone else _shorten(line.name) for line in lines]
    return list(zip(names, last, strict=True))


def _shorten(name: str) -> str:
    return name if len(name) <= _MAX_NAME else name[: _MAX_NAME - 3] + "..."


def _draw_labels(
    lines: Sequence[Line], labels: Sequence[tuple[str, str]], frame: _Frame
) -> list[str]:
    ends = [frame.y(line.points[-1].value) for line in lines]
    places = spread(ends, _LABEL_GAP, _TOP, _HEIGHT - _BOTTOM)
    return [
        f'<text class="label f{line.color}" x="{frame.right + 10:.1f}" y="{y + 4:.1f}">'
        f'{escape(name)} <tspan class="last">{escape(value)}</tspan></text>'
        for line, (name, value), y in zip(lines, labels, places, strict=True)
    ]


def stacked_bar(title: str, parts: Sequence[tuple[str, float, int]]) -> Markup:
    """One bar split by share. `parts` are (name, amount >= 0, colour); "" when all are zero."""
    total = sum(amount for _, amount, _ in parts)
    if total <= 0:
        return Markup("")
    x, drawn = 0.0, [f"<title>{escape(title)}</title>"]
    for name, amount, color in parts:
        width = amount / total * 1000
        hint = escape(f"{name}: {amount / total:.0%}")
        drawn.append(
            f'<rect class="f{color}" x="{x:.2f}" y="0" width="{max(width - 1.5, 0.5):.2f}"'
            f' height="20"><title>{hint}</title></rect>'
        )
        x += width
    return Markup(
        '<svg class="bar" viewBox="0 0 1000 20" preserveAspectRatio="none" role="img"'
        f' aria-label="{escape(title)}">{"".join(drawn)}</svg>'
    )
