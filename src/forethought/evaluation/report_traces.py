"""Traces for a report: what the model wrote, made safe to lay out, before and after."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from forethought.evaluation.report_input import Row, RunFolder, mappings, number

MAX_TRACES = 6
MAX_TRACE_CHARS = 4000
_JOINERS = "\u200c\u200d"  # invisible, but letters of some scripts need them


def traces_of(run: RunFolder) -> list[dict[str, object]]:
    """Traces of the summary, else samples of the results, else of the transcripts."""
    rows = mappings(run.summary.get("traces"))[:MAX_TRACES]
    if rows:
        return [_summary_trace(row) for row in rows]
    if run.results:
        return [_result_trace(row) for row in run.results[:MAX_TRACES]]
    by_example: dict[str, list[Row]] = {}
    for row in sorted(run.transcripts, key=lambda row: number(row.get("step")) or 0):
        by_example.setdefault(str(row.get("example_id", row.get("question"))), []).append(row)
    # Problems seen at more than one step come first: they show a change.
    ordered = sorted(by_example.values(), key=_num_steps, reverse=True)
    return [_transcript_trace(seen) for seen in ordered[:MAX_TRACES]]


def _items(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _num_steps(rows: Sequence[Row]) -> int:
    return len({str(row.get("step")) for row in rows})


def _summary_trace(row: Row) -> dict[str, object]:
    panels = [
        _panel(key, row.get(f"{key}_status"), row[key]) for key in ("before", "after") if key in row
    ]
    return _trace(row.get("question"), row.get("gold"), panels)


def _result_trace(row: Row) -> dict[str, object]:
    """One right and one wrong sample of a problem, as far as it has both."""
    samples = list(zip(_items(row.get("statuses")), _items(row.get("texts")), strict=False))
    first = {status == "correct": (status, text) for status, text in reversed(samples)}
    panels = [_panel("sample", *first[right]) for right in (True, False) if right in first]
    return _trace(row.get("question"), row.get("answer"), panels)


def _transcript_trace(rows: Sequence[Row]) -> dict[str, object]:
    shown = [rows[0], rows[-1]] if _num_steps(rows) > 1 else [rows[-1]]
    panels = [
        _panel(f"step {row.get('step')}", row.get("status"), row.get("completion")) for row in shown
    ]
    return _trace(shown[-1].get("question"), shown[-1].get("answer"), panels)


def _trace(question: object, gold: object, panels: list[dict[str, str]]) -> dict[str, object]:
    return {"question": clean(question), "gold": clean(gold), "panels": panels}


def _panel(label: str, status: object, text: object) -> dict[str, str]:
    return {
        "label": label,
        "status": clean(status).replace("_", " "),
        "text": clean(text),
    }


def split_thinking(text: str) -> tuple[str, str]:
    """(thought, answer): all up to the last closed think block, or all when it never closes."""
    end = text.rfind("</think>")
    if end >= 0:
        return text[: end + len("</think>")], text[end + len("</think>") :]
    return (text, "") if "<think>" in text else ("", text)


def clean(value: object, limit: int = MAX_TRACE_CHARS) -> str:
    """The value as printable text of at most `limit` characters, and how many were left out."""
    text = "" if value is None else str(value)
    left = len(text) - limit
    shown = printable(text[:limit])
    return f"{shown}\n[{left:,} more characters]" if left > 0 else shown


def printable(text: str) -> str:
    """The text without control, direction and surrogate characters: they break or mislead."""

    def is_harmful(char: str) -> bool:
        return unicodedata.category(char) in ("Cc", "Cf", "Cs") and char not in _JOINERS

    lines = text.replace("\r\n", "\n")
    return "".join("\ufffd" if c not in "\n\t" and is_harmful(c) else c for c in lines)
