"""Which metrics a report draws, and how each chart is called and explained."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup

from forethought.evaluation.charts import Line, Point, line_chart
from forethought.evaluation.report_input import Series
from forethought.evaluation.units import Unit


@dataclass(frozen=True, slots=True)
class Curve:
    """One metric as a line; `low` and `high` name the metrics of its confidence band."""

    label: str
    metric: str
    low: str = ""
    high: str = ""


@dataclass(frozen=True, slots=True)
class ChartSpec:
    """One chart of a report. `note` says what its values are."""

    title: str
    note: str
    unit: Unit
    curves: tuple[Curve, ...]
    from_zero: bool = True


@dataclass(frozen=True, slots=True)
class Figure:
    """A drawn chart with its title and explanation."""

    title: str
    note: str
    svg: Markup


LEARNING = (
    ChartSpec(
        "Loss",
        "Cross-entropy in nats per token, mean over the tokens of a step.",
        Unit.NUMBER,
        (Curve("training", "loss/mean"),),
        from_zero=False,
    ),
    ChartSpec(
        "Accuracy on held-out problems",
        "Share of answers that are right. The band is the 95% interval of the sampled answers.",
        Unit.FRACTION,
        (Curve("sampled", "eval/accuracy", "eval/accuracy_low", "eval/accuracy_high"),),
    ),
    ChartSpec(
        "Completion length",
        "Tokens in a completion, mean. The band is the 95% interval on held-out problems.",
        Unit.TOKENS,
        (
            Curve("held out", "eval/length_mean", "eval/length_low", "eval/length_high"),
            Curve("training", "rollout/length_mean"),
        ),
    ),
)
SIGNAL = (
    ChartSpec(
        "Reward and its parts",
        "Mean over the rollouts of a step.",
        Unit.NUMBER,
        (
            Curve("reward", "reward/mean"),
            Curve("accuracy", "reward/accuracy"),
            Curve("format", "reward/format"),
        ),
    ),
    ChartSpec(
        "What carries signal",
        "Groups whose rewards differ, and rollouts kept after filtering.",
        Unit.FRACTION,
        (Curve("groups", "rollout/signal_frac"), Curve("rollouts", "rollout/kept_frac")),
    ),
    ChartSpec(
        "Thinking and truncation",
        "Completions that think before they answer, and completions cut off at the limit.",
        Unit.FRACTION,
        (Curve("think", "rollout/think_frac"), Curve("truncated", "rollout/truncated_frac")),
    ),
    ChartSpec(
        "Spread of rewards",
        "Standard deviation of the reward over the rollouts of a step.",
        Unit.NUMBER,
        (Curve("", "reward/std"),),
    ),
)
STATUSES = (
    ChartSpec(
        "What the grader found",
        "Share of the rollouts of a step.",
        Unit.FRACTION,
        (
            Curve("correct", "grade/correct_frac"),
            Curve("wrong", "grade/wrong_frac"),
            Curve("no answer", "grade/no_answer_frac"),
            Curve("unclosed think", "grade/unclosed_think_frac"),
        ),
    ),
)
# In the table beside that chart: all of them are 0 as long as grading works.
GRADE_FAILURES = (
    Curve("grader out of time", "grade/timeout_frac"),
    Curve("grader failed", "grade/error_frac"),
    Curve("reference unreadable", "grade/unparsable_gold_frac"),
)
MORE = (
    ChartSpec("Learning rate", "", Unit.NUMBER, (Curve("", "optim/learning_rate"),)),
    ChartSpec("Gradient norm", "Before clipping.", Unit.NUMBER, (Curve("", "optim/grad_norm"),)),
    ChartSpec(
        "Entropy",
        "Mean of -log p over the sampled tokens, in nats.",
        Unit.NUMBER,
        (Curve("", "policy/entropy"),),
    ),
    ChartSpec(
        "Sampling speed",
        "Tokens per second.",
        Unit.TOKENS,
        (Curve("", "rollout/tokens_per_second"),),
    ),
    ChartSpec("Tokens seen", "", Unit.TOKENS, (Curve("", "total/tokens"),)),
)


def draw(specs: Iterable[ChartSpec], series: Series) -> list[Figure]:
    """The charts that have something to show, in order."""
    figures = []
    for spec in specs:
        lines = [_line(curve, color, series) for color, curve in enumerate(spec.curves)]
        svg = line_chart(spec.title, lines, spec.unit, from_zero=spec.from_zero)
        if svg:
            figures.append(Figure(spec.title, spec.note, svg))
    return figures


def _line(curve: Curve, color: int, series: Series) -> Line:
    lows, highs = series.get(curve.low, {}), series.get(curve.high, {})
    points = tuple(
        Point(step=step, value=value, low=lows.get(step), high=highs.get(step))
        for step, value in series.get(curve.metric, {}).items()
    )
    return Line(name=curve.label, points=points, color=color)
