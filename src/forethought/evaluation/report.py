"""One self-contained HTML page that explains a run folder: no script, no external resource.

Model text, data and metric names are untrusted: the template escapes all of it, and the page's
own content policy forbids scripts and requests.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from forethought.durable import write_atomic
from forethought.errors import UserError
from forethought.evaluation import charts, report_curves
from forethought.evaluation.report_input import (
    Row,
    RunFolder,
    Series,
    mappings,
    number,
    read_run_folder,
)
from forethought.evaluation.report_sweep import sweep_of
from forethought.evaluation.report_traces import clean, printable, split_thinking, traces_of
from forethought.evaluation.units import DASH, Unit, write_difference, write_value
from forethought.models.resolve import stage_folders

MAX_RESULT_ROWS = 50
MAX_RESULT_COLUMNS = 8
_LONG_COLUMNS = ("texts", "votes")
_LAID_OUT_KEYS = ("title", "note", "table", "strategies", "families", "traces", "curves", "pairs")
_SHARE_NAMES = ("accuracy", "low", "high", "pass at", "majority at", "truncated", "statuses")
_TIME_NAMES = {
    "sample": "sampling",
    "grade": "grading",
    "update": "updating",
    "publish": "publishing weights",
    "eval": "evaluating",
    "checkpoint": "checkpointing",
    "other": "everything else",
}


def build_report(run_dir: Path, *, out: Path | None = None) -> Path:
    """Write the report of a run or evaluation folder and return its path.

    `out` is a file, or a folder to put report.html in; by default the run folder itself. The file
    appears whole or not at all. Raises UserError when `run_dir` is no such folder or the report
    cannot be written.
    """
    stages = stage_folders(run_dir)  # a pipeline is shown by its last stage
    run = read_run_folder(stages[-1] if stages else run_dir)
    out = run_dir if out is None else out
    target = out / "report.html" if out.is_dir() else out
    _write_whole(target, render_report(run))
    return target


def render_report(run: RunFolder) -> str:
    """The page as one string of HTML."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["split_thinking"] = split_thinking
    source = files("forethought.evaluation").joinpath("report.html.jinja")
    return environment.from_string(source.read_text(encoding="utf-8")).render(_page(run))


def _page(run: RunFolder) -> dict[str, object]:
    summary, info = run.summary, run.info
    stage = str(info.get("stage") or ("evaluation" if run.results else "run"))
    title = summary.get("title") or info.get("name") or run.path.resolve().name
    return {
        "title": str(title),
        "stage": stage,
        "note": str(summary.get("note") or ""),
        "facts": _facts(info),
        "notices": [*run.notices, *_grading_notices(run.series), *_warnings(run)],
        "is_empty": not (run.series or summary or run.results),
        "headline": _headline(run),
        "figures": _figures(summary),
        "strategies": [_compared(row) for row in mappings(summary.get("strategies"))],
        "families": [_compared(row) for row in mappings(summary.get("families"))],
        "sweep": sweep_of(summary),
        "learning": report_curves.draw(report_curves.LEARNING, run.series),
        "signal": report_curves.draw(report_curves.SIGNAL, run.series),
        "times": _time_bars(run),
        "status_chart": report_curves.draw(report_curves.STATUSES, run.series),
        "status_rows": _status_rows(run.series),
        "traces": traces_of(run),
        "results": _result_table(run.results),
        "recipe": printable(run.recipe or str(info.get("recipe") or "")),
        "made_with": _flatten({k: info[k] for k in ("commit", "versions", "machine") if k in info}),
        "more": report_curves.draw(report_curves.MORE, run.series),
        "metrics": _last_values(run.series),
    }


def _unit(value: object) -> Unit:
    return next((unit for unit in Unit if unit == value), Unit.NUMBER)


def _write(value: object, unit: Unit) -> str:
    known = number(value)
    return DASH if known is None else write_value(known, unit)


def _headline(run: RunFolder) -> list[dict[str, str]]:
    """Rows of before, after and difference: the summary's, else first and last of the metrics."""
    rows = mappings(run.summary.get("table"))
    if rows:
        return [_headline_row(row) for row in rows]
    first_and_last = (
        ("Right on held-out problems, sampled", "eval/accuracy", Unit.FRACTION),
        ("Completion length (tokens)", "eval/length_mean", Unit.TOKENS),
        ("Loss on training text", "loss/mean", Unit.NUMBER),
    )
    found = []
    for name, metric, unit in first_and_last:
        values = list(run.series.get(metric, {}).values())
        if len(values) > 1:
            before, after = values[0], values[-1]
            row = {"name": name, "before": before, "after": after, "diff": after - before}
            found.append(_headline_row({**row, "kind": unit.value}))
    return found


def _headline_row(row: Row) -> dict[str, str]:
    unit = _unit(row.get("kind"))
    diff, low, high = (number(row.get(key)) for key in ("diff", "low", "high"))
    interval, verdict = "", ""
    if low is not None and high is not None:
        low_text, high_text = (write_difference(v, unit) for v in (low, high))
        interval = f"{low_text} to {high_text}"
        verdict = "clear" if low > 0 or high < 0 else "open"
    points = " points" if unit is Unit.FRACTION else ""
    return {
        "name": str(row.get("name", "")),
        "before": _write(row.get("before"), unit),
        "after": _write(row.get("after"), unit),
        "diff": DASH if diff is None else write_difference(diff, unit) + points,
        "interval": interval,
        "verdict": verdict,
    }


def _compared(row: Row) -> dict[str, object]:
    """A strategy or a family: shares before and after with bar widths, and tokens if given."""

    def bar(key: str) -> dict[str, object]:
        value = number(row.get(key))
        width = 0.0 if value is None else 100 * min(max(value, 0.0), 1.0)
        return {"text": _write(value, Unit.FRACTION), "width": f"{width:.1f}"}

    tokens = [_write(row.get(key), Unit.TOKENS) for key in ("tokens_before", "tokens_after")]
    known = any(number(row.get(key)) is not None for key in ("tokens_before", "tokens_after"))
    return {
        "name": str(row.get("name", "")),
        "before": bar("before"),
        "after": bar("after"),
        "tokens": tokens if known else [],
    }


def _time_bars(run: RunFolder) -> list[dict[str, object]]:
    bars = []
    whole = run.summary.get("seconds")
    if isinstance(whole, dict):
        bars.append(_time_bar("The whole command", whole))
    totals = {
        name.removeprefix("time/").removesuffix("_seconds"): math.fsum(values.values())
        for name, values in run.series.items()
        if name.startswith("time/")
    }
    steps = totals.pop("step", 0.0)
    rest = steps - math.fsum(totals.values())
    if rest > 0.005 * steps:
        totals["other" if totals else "training steps"] = rest
    bars.append(_time_bar("Training, step by step", totals))
    return [bar for bar in bars if bar["svg"]]


def _time_bar(title: str, seconds: Mapping[str, object]) -> dict[str, object]:
    """Largest part first; what exceeds the palette is added up in the last colour."""
    known = [(name, number(value) or 0.0) for name, value in seconds.items()]
    ranked = sorted(((n, v) for n, v in known if v > 0), key=lambda pair: -pair[1])
    top, rest = ranked[: charts.NUM_COLORS - 1], ranked[charts.NUM_COLORS - 1 :]
    if rest:
        name = rest[0][0] if len(rest) == 1 else "other"
        top.append((name, math.fsum(value for _, value in rest)))
    total = math.fsum(value for _, value in top)
    named = [(_TIME_NAMES.get(n, n.replace("_", " ")), v, i) for i, (n, v) in enumerate(top)]
    rows = [
        {"name": name, "color": i, "seconds": _write(v, Unit.SECONDS), "share": f"{v / total:.0%}"}
        for name, v, i in named
    ]
    bar = charts.stacked_bar(title, named)
    return {"title": title, "svg": bar, "rows": rows, "total": _write(total, Unit.SECONDS)}


def _status_rows(series: Series) -> list[dict[str, str]]:
    rows = []
    for curve in (*report_curves.STATUSES[0].curves, *report_curves.GRADE_FAILURES):
        values = list(series.get(curve.metric, {}).values())
        if values:
            first, last = (_write(values[i], Unit.FRACTION) for i in (0, -1))
            rows.append({"name": curve.label, "first": first, "last": last})
    return rows


def _grading_notices(series: Series) -> list[str]:
    """What a run that could teach nothing should say first."""
    unread = series.get("grade/unparsable_gold_frac", {}).values()
    right = series.get("grade/correct_frac", {}).values()
    if unread and min(unread) == 1:
        return ["AllGoldsUnparsable: no reference answer could be read, so nothing was scored."]
    if right and max(right) == 0:
        return ["AllScoresZero: not one rollout was right; see Outcomes for what they were."]
    return []


def _warnings(run: RunFolder) -> list[str]:
    """What the run itself warned of, and updates that it had to skip."""
    found = [
        f"{clean(row.get('name'), 50)} (step {clean(row.get('step'), 20)}): "
        f"{clean(row.get('text'), 500)}."
        for row in run.warnings
    ]
    if skipped := sum(run.series.get("optim/skipped", {}).values()):
        found.append(
            f"NonFinite: {skipped:.0f} of the updates were skipped, as a loss or gradient was not "
            "finite; see bad_batches in the run folder."
        )
    return found


def _facts(info: Row) -> list[tuple[str, str]]:
    facts = {key: info[key] for key in ("command", "started", "created", "seed") if key in info}
    if isinstance(facts.get("command"), list):
        facts["command"] = shlex.join(str(part) for part in facts["command"])
    return [(key, clean(value, 500)) for key, value in facts.items()]


def _figures(summary: Row) -> list[tuple[str, str]]:
    """Scalars of a summary that have no section of their own."""
    rest = {key: value for key, value in summary.items() if key not in _LAID_OUT_KEYS}
    if isinstance(rest.get("seconds"), Mapping):
        del rest["seconds"]
    return _flatten(rest)


def _flatten(values: Row, prefix: str = "") -> list[tuple[str, str]]:
    """(name, text) of every scalar in nested mappings, names joined by a space."""
    found: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{prefix} {key}".strip().replace("_", " ")
        if isinstance(value, Mapping):
            found += _flatten(value, name)
        elif not isinstance(value, list):
            found.append((name, _scalar(name, value)))
        elif value and not any(isinstance(item, list | Mapping) for item in value):
            found.append((name, _cell(value)))
    return found


def _scalar(name: str, value: object) -> str:
    is_share = name.startswith(_SHARE_NAMES) and isinstance(value, float) and 0 <= value <= 1
    if is_share or isinstance(value, float):
        return _write(value, Unit.FRACTION if is_share else Unit.NUMBER)
    return clean(value, 500)


def _result_table(rows: Sequence[Row]) -> dict[str, object]:
    """The first rows of results.jsonl; a list with one entry a sample is joined by commas."""
    names = {name: None for row in rows for name in row if name not in _LONG_COLUMNS}
    columns = list(names)[:MAX_RESULT_COLUMNS]
    cells = [[_cell(row.get(name)) for name in columns] for row in rows[:MAX_RESULT_ROWS]]
    return {"columns": columns, "rows": cells, "total": len(rows)}


def _cell(value: object) -> str:
    parts = value if isinstance(value, list) else [value]
    return clean(", ".join(DASH if part is None else str(part) for part in parts), 300)


def _last_values(series: Series) -> list[tuple[str, str, int, int]]:
    """(metric, last value, its step, how many steps have one)."""
    found = []
    for name, values in series.items():
        step, value = list(values.items())[-1]
        found.append((clean(name, 200), f"{value:.6g}", step, len(values)))
    return found


def _write_whole(path: Path, text: str) -> None:
    try:
        write_atomic(path, text.encode("utf-8", "replace").decode())  # JSON can hold surrogates
    except OSError as error:
        raise UserError(
            f'cannot write the report to "{path}" ({error.strerror}); name another file with --out'
        ) from error
