"""`forethought eval --strategy`: accuracy over all tokens, paired tests, and a page with curves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forethought.cli.console import Progress, console, print_json
from forethought.errors import UserError

if TYPE_CHECKING:
    from forethought.budget import Budget
    from forethought.cli.backend import Source
    from forethought.types import SamplingParams, Task


def eval_strategies(
    source: Source,
    task: Task,
    specs: Sequence[str],
    budget: Sequence[str],
    params: SamplingParams,
    *,
    limit: int | None,
    prices: Path | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Measure every strategy under every budget and show the table. Raises UserError."""
    from forethought.budget import FREE, parse_budgets
    from forethought.cli.backend import open_engine
    from forethought.evaluation.curves import summarize, sweep
    from forethought.prices import load_prices
    from forethought.strategies.registry import parse_strategy

    for spec in specs:
        parse_strategy(spec)  # mistakes fail before torch is imported
    if len(set(specs)) < len(specs):
        raise UserError("--strategy names one strategy twice: name each once")
    budgets: list[Budget | None] = [*parse_budgets(budget)] or [None]
    table = FREE if prices is None else load_prices(prices, source.model)
    total = len(specs) * len(budgets)
    with (
        open_engine(source) as engine,
        Progress(f"eval {source.model}", total=total, quiet=as_json) as bar,
    ):
        cells = sweep(
            engine,
            task,
            specs,
            budgets,
            params,
            limit=limit,
            prices=table,
            progress=lambda done, _total: bar.update(done, {}),
        )
    summary = {"model": source.model, **summarize(task, cells)}
    if out is not None:
        _write(task, cells, summary, out)
    if as_json:
        print_json(summary)
    else:
        _show(summary, out)


def _write(task: Task, cells: Any, summary: dict[str, Any], out: Path) -> None:
    from forethought.durable import write_atomic
    from forethought.evaluation.curves import write_cells
    from forethought.evaluation.report import build_report

    try:
        write_cells(task, cells, out / "results.jsonl")
        write_atomic(out / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror}") from error
    build_report(out)


def _show(summary: dict[str, Any], out: Path | None) -> None:
    from rich.table import Table

    table = Table(title=f"{summary['task']}, {summary['num_problems']} problems")
    for name in (
        "strategy",
        "budget",
        "right (95% interval)",
        "tokens",
        "completions",
        "cut short",
    ):
        table.add_column(name, justify="left" if name == "strategy" else "right", overflow="fold")
    for row in summary["curves"]:
        table.add_row(
            row["strategy"],
            "-" if row["budget"] is None else str(row["budget"]),
            _interval(row, "accuracy", "%"),
            f"{row['total_tokens']:.1f}",
            f"{row['completions']:.1f}",
            f"{100 * row['budget_frac']:.1f}%",
        )
    screen = console()
    screen.print(table)
    for pair in summary["pairs"]:
        difference = _interval(pair, "mean", " points", sign="+")
        screen.print(
            f"{pair['second']} minus {pair['first']}: {difference}, McNemar p = {pair['p']:.3g}"
        )
    if out is not None:
        screen.print(f"written: {out} (report.html shows the curves)")


def _interval(row: dict[str, Any], key: str, unit: str, sign: str = "") -> str:
    shown = [
        "-" if v is None else f"{100 * v:{sign}.1f}" for v in (row[key], row["low"], row["high"])
    ]
    return f"{shown[0]}{unit} [{shown[1]}, {shown[2]}]"
