"""The same model before and after training, on the same held-out problems."""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from forethought.evaluation.evaluate import Evaluation, ProblemResult, compare, evaluate
from forethought.evaluation.metrics import Interval, paired_difference
from forethought.types import Engine, Task

VOTERS = 16  # samples of a majority vote
AVERAGED = 8  # samples whose mean is a problem's accuracy
_MAX_TRACES = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """Greedy decoding, and 16 samples at temperature 1, of every problem."""

    greedy: Evaluation
    votes: Evaluation

    @property
    def samples(self) -> Evaluation:
        """The first 8 samples of each problem."""
        return keep_samples(self.votes, AVERAGED)

    @property
    def majority(self) -> float:
        """Accuracy of the majority vote at 16."""
        return self.votes.majority_at[VOTERS]

    @property
    def seconds(self) -> float:
        return self.greedy.seconds + self.votes.seconds


def measure(
    engine: Engine, task: Task, *, num_problems: int, max_tokens: int, stop_at_boxed: bool
) -> Measurement:
    """Measure a model on the first `num_problems` of a task, with the same draws every time."""

    def run(num_samples: int, temperature: float) -> Evaluation:
        return evaluate(
            engine,
            task,
            num_samples=num_samples,
            temperature=temperature,
            max_tokens=max_tokens,
            limit=num_problems,
            stop_at_boxed=stop_at_boxed,
        )

    return Measurement(greedy=run(1, 0.0), votes=run(VOTERS, 1.0))


def keep_samples(evaluation: Evaluation, count: int) -> Evaluation:
    """The evaluation with only the first `count` samples of each problem."""
    fields = ("scores", "statuses", "extracted", "votes", "texts", "num_tokens", "finish_reasons")
    results = tuple(
        replace(result, **{name: getattr(result, name)[:count] for name in fields})
        for result in evaluation.results
    )
    return replace(evaluation, num_samples=count, results=results)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What training changed. Gains are paired by problem, with 95% intervals."""

    before: Measurement
    after: Measurement

    @property
    def gain(self) -> Interval:
        return compare(self.before.samples, self.after.samples)

    @property
    def greedy_gain(self) -> Interval:
        return compare(self.before.greedy, self.after.greedy)

    @property
    def length_gain(self) -> Interval:
        """Tokens a completion, after minus before."""
        pairs = (self.before.samples, self.after.samples)
        old, new = ([fmean(r.num_tokens) for r in side.results] for side in pairs)
        return paired_difference(old, new)

    def figures(self) -> dict[str, float]:
        """The figures that `forethought quickstart --json` prints; shares are fractions."""
        gain, greedy = self.gain, self.greedy_gain
        before, after = self.before.samples, self.after.samples
        return {
            "accuracy_before": before.accuracy,
            "accuracy_after": after.accuracy,
            "gain": gain.mean,
            "gain_low": gain.low,
            "gain_high": gain.high,
            "greedy_before": self.before.greedy.accuracy,
            "greedy_after": self.after.greedy.accuracy,
            "greedy_gain": greedy.mean,
            "greedy_gain_low": greedy.low,
            "greedy_gain_high": greedy.high,
            "majority_before": self.before.majority,
            "majority_after": self.after.majority,
            "length_before": before.mean_tokens,
            "length_after": after.mean_tokens,
        }

    def summary(self) -> dict[str, Any]:
        """The tables and traces of the report."""
        return {
            "table": self._table(),
            "strategies": self._strategies(),
            "families": self._families(),
            "traces": self._traces(),
        }

    def _table(self) -> list[dict[str, Any]]:
        figures = self.figures()
        rows = (
            (f"Samples right (mean of {AVERAGED})", "accuracy", self.gain, "fraction"),
            ("Greedy right", "greedy", self.greedy_gain, "fraction"),
            ("Completion length", "length", self.length_gain, "tokens"),
        )
        return [
            {
                "name": name,
                "before": figures[f"{key}_before"],
                "after": figures[f"{key}_after"],
                "diff": gain.mean,
                "low": gain.low,
                "high": gain.high,
                "kind": kind,
            }
            for name, key, gain, kind in rows
        ]

    def _strategies(self) -> list[dict[str, Any]]:
        """Accuracy and tokens a problem of three ways to spend compute."""
        sides = {"before": self.before, "after": self.after}
        return [
            {"name": name}
            | {side: _spending(name, found)[0] for side, found in sides.items()}
            | {f"tokens_{side}": _spending(name, found)[1] for side, found in sides.items()}
            for name in ("greedy", "sample", f"majority@{VOTERS}")
        ]

    def _families(self) -> list[dict[str, Any]]:
        """Accuracy of samples by family: the part of an example's id before the first slash."""
        sides = (_by_family(self.before.samples), _by_family(self.after.samples))
        return [
            {"name": name, "before": sides[0][name], "after": sides[1][name]} for name in sides[0]
        ]

    def _traces(self) -> list[dict[str, Any]]:
        """The first sample of some problems, first those that turned from wrong to right."""
        pairs = list(zip(self.before.votes.results, self.after.votes.results, strict=True))
        pairs.sort(key=lambda pair: (pair[0].scores[0] or 0.0) - (pair[1].scores[0] or 0.0))
        by_family: dict[str, list[dict[str, Any]]] = {}
        for old, new in pairs:
            by_family.setdefault(_family(old), []).append(_trace(old, new))
        families = by_family.values()
        dealt = [rows[i] for i in range(_MAX_TRACES) for rows in families if i < len(rows)]
        return dealt[:_MAX_TRACES]


def _spending(strategy: str, found: Measurement) -> tuple[float, float]:
    """Accuracy, and sampled tokens a problem."""
    if strategy == "greedy":
        return found.greedy.accuracy, found.greedy.mean_tokens
    if strategy == "sample":
        return found.samples.accuracy, found.samples.mean_tokens
    return found.majority, VOTERS * found.votes.mean_tokens


def _family(result: ProblemResult) -> str:
    return result.example_id.split("/")[0].split(":")[0]


def _by_family(evaluation: Evaluation) -> dict[str, float]:
    scores: dict[str, list[float]] = {}
    for result in evaluation.graded:
        scores.setdefault(_family(result), []).append(result.score)
    return {name: fmean(values) for name, values in scores.items()}


def _trace(old: ProblemResult, new: ProblemResult) -> dict[str, Any]:
    return {
        "question": old.question,
        "gold": old.answer,
        "before": old.texts[0],
        "before_status": old.statuses[0],
        "after": new.texts[0],
        "after_status": new.statuses[0],
    }
