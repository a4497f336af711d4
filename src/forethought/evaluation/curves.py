"""Strategies against each other: accuracy over all the tokens they cost, on the same problems."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

from forethought.budget import FREE, Budget, Prices
from forethought.durable import write_atomic
from forethought.errors import UserError
from forethought.evaluation.evaluate import finite
from forethought.evaluation.metrics import Interval, mcnemar_p, mean_interval, paired_difference
from forethought.strategies.base import problem_of
from forethought.strategies.driver import solve_all
from forethought.strategies.registry import parse_strategy
from forethought.types import Engine, FinishReason, Grade, SamplingParams, Solution, Task, Usage

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One strategy under one budget a problem (None: without): one solution and grade a problem,
    in the order of the task."""

    strategy: str
    budget: Budget | None
    example_ids: tuple[str, ...]
    solutions: tuple[Solution, ...]
    grades: tuple[Grade, ...]
    seconds: float

    @property
    def name(self) -> str:
        return self.strategy if self.budget is None else f"{self.strategy} @ {self.budget.spec}"

    @property
    def limit(self) -> int | str | None:
        """The budget as results name it: a number of tokens, or limits by name."""
        spec = None if self.budget is None else self.budget.spec
        return int(spec) if spec is not None and spec.isdigit() else spec

    @property
    def correct(self) -> dict[str, bool]:
        """Of each graded problem, whether its answer is right."""
        pairs = zip(self.example_ids, self.grades, strict=True)
        return {id: grade.score == 1.0 for id, grade in pairs if grade.score is not None}

    @property
    def usage(self) -> Usage:
        """Of all problems together."""
        return sum((solution.usage for solution in self.solutions), start=Usage())

    def summary(self) -> dict[str, Any]:
        """A row of the table, ready for JSON; tokens, calls and completions are means a problem."""
        count, usage = len(self.solutions), self.usage
        right = [float(value) for value in self.correct.values()]
        found = mean_interval(right) if right else Interval(mean=math.nan, low=math.nan, high=1)
        cut = [s.finish_reason is FinishReason.BUDGET for s in self.solutions]
        drawn = [sum(len(call.completions) for call in s.trace) for s in self.solutions]
        return {
            "strategy": self.strategy,
            "budget": self.limit,
            "accuracy": finite(found.mean),
            "low": finite(found.low),
            "high": finite(found.high) if right else None,
            "num_problems": count,
            "num_ungraded": count - len(right),
            "total_tokens": usage.total_tokens / count,
            "computed_tokens": usage.computed_tokens / count,
            "sampled_tokens": usage.sampled_tokens / count,
            "completions": fmean(drawn),
            "calls": usage.num_calls / count,
            "money": usage.money / count,
            "budget_frac": fmean(cut),
            "seconds": self.seconds,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two cells on the same problems: accuracy of `second` minus that of `first`, and McNemar's p
    of the problems where they disagree."""

    first: str
    second: str
    difference: Interval
    p: float

    def summary(self) -> dict[str, Any]:
        found = self.difference
        bounds = {"low": finite(found.low), "high": finite(found.high)}
        return {
            "first": self.first,
            "second": self.second,
            "mean": found.mean,
            **bounds,
            "p": self.p,
        }


def sweep(
    engine: Engine,
    task: Task,
    strategies: Sequence[str],
    budgets: Sequence[Budget | None],
    params: SamplingParams,
    *,
    limit: int | None = None,
    prices: Prices = FREE,
    progress: Progress | None = None,
) -> list[Cell]:
    """Every strategy under every budget on the same problems, all problems of a cell at once.

    `progress(cells done, cells)` is called after each. Raises UserError without problems.
    """
    size = len(task) if limit is None else min(limit, len(task))
    if size == 0:
        raise UserError(f"task {task.name} has no problems to evaluate")
    examples = [task[index] for index in range(size)]
    able = engine.capabilities
    cells: list[Cell] = []
    for spec in strategies:
        for budget in budgets:
            began = time.perf_counter()
            solutions = solve_all(
                engine,
                parse_strategy(spec),
                [problem_of(example, params, able) for example in examples],
                budget=budget,
                prices=prices,
            )
            pairs = zip(examples, solutions, strict=True)
            cell = Cell(
                strategy=spec,
                budget=budget,
                example_ids=tuple(example.id for example in examples),
                solutions=tuple(solutions),
                grades=tuple(task.grade(example, s.text) for example, s in pairs),
                seconds=time.perf_counter() - began,
            )
            cells.append(cell)
            if progress is not None:
                progress(len(cells), len(strategies) * len(budgets))
    return cells


def compare_cells(cells: Sequence[Cell]) -> list[Pair]:
    """Every two strategies under the same budget that have graded problems in common."""
    return [
        compare(first, second)
        for first, second in combinations(cells, 2)
        if first.budget == second.budget and first.correct.keys() & second.correct.keys()
    ]


def compare(first: Cell, second: Cell) -> Pair:
    """Paired over the problems graded in both. Raises UserError when there is none."""
    before, after = first.correct, second.correct
    shared = [id for id in before if id in after]
    if not shared:
        raise UserError("no problem is graded under both strategies: check the reference answers")
    old, new = [before[id] for id in shared], [after[id] for id in shared]
    return Pair(
        first=first.name,
        second=second.name,
        difference=paired_difference(old, new),
        p=mcnemar_p(old, new),
    )


def summarize(task: Task, cells: Sequence[Cell]) -> dict[str, Any]:
    """The table and the tests, ready for JSON."""
    return {
        "task": task.name,
        "num_problems": len(cells[0].solutions),
        "curves": [cell.summary() for cell in cells],
        "pairs": [pair.summary() for pair in compare_cells(cells)],
    }


def write_cells(task: Task, cells: Sequence[Cell], path: Path) -> None:
    """One JSON object a problem and cell; the file appears whole or not at all. Raises OSError."""
    rows = []
    for cell in cells:
        for index, (solution, grade) in enumerate(zip(cell.solutions, cell.grades, strict=True)):
            example = task[index]
            row = {
                "example_id": example.id,
                "question": example.messages[-1]["content"],
                "answer": example.answer,
                "strategy": cell.strategy,
                "budget": cell.limit,
                "score": grade.score,
                "status": grade.status,
                "extracted": grade.extracted,
                "finish_reason": solution.finish_reason,
                "votes": [asdict(vote) for vote in solution.votes],
                "usage": ledger_of(solution.usage),
                "text": solution.text,
            }
            rows.append(json.dumps(row, allow_nan=False) + "\n")
    write_atomic(path, "".join(rows))


def ledger_of(usage: Usage, context: int | None = None) -> dict[str, Any]:
    """Every field of the ledger and what follows from them; `context` is the model's window."""
    share = usage.peak_context / context if context else None
    return asdict(usage) | {
        "total_tokens": usage.total_tokens,
        "computed_tokens": usage.computed_tokens,
        "visible_tokens": usage.visible_tokens,
        "peak_context_share": share,
    }
