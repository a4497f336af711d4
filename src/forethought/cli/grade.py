"""`forethought grade`: hold answers to their references, as training and evaluation do."""

from __future__ import annotations

import sys
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer

from forethought.cli.console import console, format_seconds, print_json, printable
from forethought.errors import TaskError
from forethought.grading.jobs import begin
from forethought.grading.math import answer_type
from forethought.grading.pairs import begin_pair, read_pair
from forethought.grading.workers import GradingPool
from forethought.types import Grade, GradeStatus

_MAX_AHEAD = 512  # rows read before the oldest is graded: a file of any size is held in part
_MALFORMED = "malformed"
_SHOWN_CHARS = 32
_MAX_NAMED = 20


@dataclass(frozen=True, slots=True)
class _Row:
    """A line of the file: what its grade, which is under way, belongs to; or what is wrong."""

    line: int
    gold: str = ""
    id: str | int | None = None
    grade: Future[Grade] | None = None
    error: str = ""


def grade_command(
    pairs: Annotated[Path, typer.Argument(help="JSONL of gold and completion; - reads stdin.")],
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes for algebra [default: the cores but one].")
    ] = None,
    deadline: Annotated[
        float, typer.Option(min=0.01, max=3600, help="Seconds for one pair's algebra.")
    ] = 5.0,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a row, then one.")] = False,
) -> None:
    """Grade every row of a file, in its order. Malformed rows are named, the others still graded.

    A row is {"gold", "completion"}, or {"gold", "answer"} for an answer without a box. Exit code 2
    when a row was malformed.
    """
    began = time.perf_counter()
    counts: Counter[str] = Counter()
    scores: list[float] = []
    malformed: list[_Row] = []
    with (
        _open(pairs) as file,
        GradingPool(num_workers=workers, deadline_seconds=deadline) as pool,
    ):
        if not json:
            console().print(_columns("line", "score", "status", "gold", "answer"), style="bold")
        for row in _in_order(_begun(file, pool)):
            shown = _describe(row)
            counts[shown["status"]] += 1
            if shown["score"] is not None:
                scores.append(shown["score"])
            if row.error:
                malformed.append(row)
            print_json(shown) if json else console().print(_line(row, shown))
    seconds = time.perf_counter() - began
    summary = {
        "num_rows": counts.total(),
        "num_graded": len(scores),
        "accuracy": sum(scores) / len(scores) if scores else None,
        "counts": {status: counts[status] for status in [*GradeStatus, _MALFORMED]},
        "seconds": seconds,
    }
    if json:
        print_json(summary)
    else:
        _print_summary(summary)
    if malformed:
        raise TaskError(f"{pairs}: {_name(malformed)}; correct them and grade the file again")
    if not counts:
        raise TaskError(f"{pairs} is empty: it needs one JSON object a line")


def _open(path: Path) -> BinaryIO:
    if str(path) == "-":
        return sys.stdin.buffer
    if path.is_dir():
        raise TaskError(f"{path} is a folder: give the path of a JSONL file")
    try:
        return path.open("rb")
    except OSError as error:
        raise TaskError(f"{path} cannot be read: {error.strerror}; give a JSONL file") from error


def _begun(file: BinaryIO, pool: GradingPool) -> Iterator[_Row]:
    """Every row that is not blank, its grading begun."""
    for number, line in enumerate(file, 1):
        line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if not line.strip():
            continue
        try:
            pair = read_pair(line)
        except ValueError as error:
            yield _Row(number, error=str(error))
        else:
            yield _Row(number, pair.gold, pair.id, begin(begin_pair(pair), pool))


def _in_order(rows: Iterable[_Row]) -> Iterator[_Row]:
    """The rows in their order, the first as soon as it is graded, while later ones are begun."""
    waiting: deque[_Row] = deque()
    for row in rows:
        waiting.append(row)
        while waiting and (len(waiting) > _MAX_AHEAD or _is_done(waiting[0])):
            yield waiting.popleft()
    yield from waiting


def _is_done(row: _Row) -> bool:
    return row.grade is None or row.grade.done()


def _describe(row: _Row) -> dict[str, Any]:
    if row.grade is None:
        return {"line": row.line, "score": None, "status": _MALFORMED, "error": row.error}
    grade = row.grade.result()
    shown: dict[str, Any] = {"line": row.line}
    if row.id is not None:
        shown["id"] = row.id
    return shown | {
        "score": grade.score,
        "status": str(grade.status),
        "extracted": grade.extracted,
        "seconds": grade.seconds,
        "gold_type": answer_type(row.gold),
    }


def _line(row: _Row, shown: dict[str, Any]) -> str:
    score = "-" if shown["score"] is None else f"{shown['score']:g}"
    answer = shown.get("extracted") or shown.get("error") or ""
    return _columns(str(row.line), score, shown["status"], row.gold, answer)


def _name(malformed: list[_Row]) -> str:
    first, *others = malformed
    named = ", ".join(str(row.line) for row in others[:_MAX_NAMED])
    more = " and more" if len(others) > _MAX_NAMED else ""
    also = f" (also malformed: line {named}{more})" if others else ""
    return f"line {first.line} {first.error}{also}"


def _columns(line: str, score: str, status: str, gold: str, answer: str) -> str:
    return f"{line:>6}  {score:<5}  {status:<15}  {_cell(gold):<{_SHOWN_CHARS}}  {_cell(answer)}"


def _cell(text: str) -> str:
    text = " ".join(printable(text[: 4 * _SHOWN_CHARS]).split())
    return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 3] + "..."


def _print_summary(summary: dict[str, Any]) -> None:
    counts = ", ".join(f"{count} {name}" for name, count in summary["counts"].items() if count)
    right = "none could be graded"
    if summary["accuracy"] is not None:
        right = f"{100 * summary['accuracy']:.1f}% right"
    spent = format_seconds(summary["seconds"])
    console().print(f"\n{summary['num_rows']} rows in {spent}: {right} ({counts})", style="bold")
