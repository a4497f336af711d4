"""What a report can read of a run or evaluation folder, however it ended.

A damaged file or a half-written line (a killed run) becomes a notice, never an error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forethought.errors import UserError

Series = Mapping[str, Mapping[int, float]]
Row = Mapping[str, Any]
_SIGNS_OF_A_RUN = ("run.json", "metrics.jsonl", "summary.json", "results.jsonl")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFolder:
    """What could be read of a run folder. `series` maps a metric's name to {step: value}."""

    path: Path
    info: Row
    recipe: str
    series: Series
    summary: Row
    results: Sequence[Row]
    transcripts: Sequence[Row]
    warnings: Sequence[Row]
    notices: Sequence[str]


def read_run_folder(run_dir: Path) -> RunFolder:
    """Read what is there; a damaged file becomes a notice. Raises UserError for another folder."""
    if not run_dir.is_dir():
        raise UserError(f'"{run_dir}" is not a folder; give the folder of a run or an evaluation')
    if not any((run_dir / name).is_file() for name in _SIGNS_OF_A_RUN):
        wanted = ", ".join(_SIGNS_OF_A_RUN)
        raise UserError(f'"{run_dir}" is not a run folder: it holds none of {wanted}')
    notices: list[str] = []
    transcripts = [run_dir / "transcripts.jsonl", *sorted(run_dir.glob("transcripts/*.jsonl"))]
    return RunFolder(
        path=run_dir,
        info=_read_object(run_dir / "run.json", notices),
        recipe=_read_text(run_dir / "recipe.toml", notices),
        series=_collect_series(_read_rows(run_dir / "metrics.jsonl", notices)),
        summary=_read_object(run_dir / "summary.json", notices),
        results=_read_rows(run_dir / "results.jsonl", notices),
        transcripts=[row for path in transcripts for row in _read_rows(path, notices)],
        warnings=[
            *mappings(_read_object(run_dir / "preflight.json", notices).get("warnings")),
            *_read_rows(run_dir / "warnings.jsonl", notices),
        ],
        notices=notices,
    )


def _read_text(path: Path, notices: list[str]) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    except OSError as error:
        notices.append(f"{path.name} could not be read ({error.strerror}).")
        return ""


def _read_object(path: Path, notices: list[str]) -> Row:
    text = _read_text(path, notices)
    value = _parse(text)
    if isinstance(value, dict):
        return value
    if path.exists():
        notices.append(f"{path.name} is not a JSON object and is left out.")
    return {}


def _read_rows(path: Path, notices: list[str]) -> list[Row]:
    lines = [line for line in _read_text(path, notices).split("\n") if line.strip()]
    values = [_parse(line) for line in lines]
    rows: list[Row] = [value for value in values if isinstance(value, dict)]
    if len(rows) < len(lines):
        count = len(lines) - len(rows)
        what = "1 line is" if count == 1 else f"{count} lines are"
        notices.append(f"{path.name}: {what} not a whole JSON object and left out.")
    return rows


def _parse(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def number(value: object) -> float | None:
    """The finite number this is, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def mappings(value: object) -> list[Row]:
    """The objects of a JSON list, or nothing when it is not a list."""
    items: Sequence[object] = value if isinstance(value, list) else ()
    return [item for item in items if isinstance(item, Mapping)]


def _collect_series(rows: Iterable[Row]) -> Series:
    """{metric: {step: value}} in rising order of step; of rows with one step the last counts."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        step = number(row.get("step"))
        for name, raw in row.items() if step is not None else ():
            value = number(raw)
            if name != "step" and value is not None:
                found.setdefault(name, {})[int(step or 0)] = value
    return {name: dict(sorted(values.items())) for name, values in sorted(found.items())}
