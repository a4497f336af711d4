"""Rows of `forethought grade`: a reference answer, and what is held to it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from forethought.grading.answers import (
    BOX_OPEN,
    MAX_ANSWER_CHARS,
    THINK_OPEN,
    Extracted,
    extract_answer,
    final_answer,
)
from forethought.grading.jobs import Job
from forethought.grading.math import begin_extracted, begin_grade
from forethought.jsonl import decode_line
from forethought.types import Grade, GradeStatus

_GOLD_KEYS = ("gold", "ground_truth", "answer", "solution")
_QUESTION_KEYS = ("question", "problem", "prompt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """What is held to `gold`: a `completion`, whose answer is in a box, or the answer itself."""

    gold: str
    completion: str = ""
    answer: str | None = None
    question: str = ""
    opened: bool = False
    id: str | int | None = None


def read_pair(line: bytes) -> Pair:
    """Read one line of JSON. ValueError says what is wrong with it.

    `{"gold", "completion"}`; or `{"answer", "completion"}`, as data sets call the reference; or
    `{"gold", "answer"}`, where the answer needs no box. A `question` keeps an answer that only
    repeats it from being right by its value.
    """
    row = decode_line(line)
    if not isinstance(row, dict):
        raise ValueError("is not a JSON object with keys")
    completion, answer = row.get("completion"), None
    keys: tuple[str, ...] = _GOLD_KEYS
    if completion is None:
        keys, answer = ("gold", "ground_truth"), row.get("answer")
        if answer is None:
            raise ValueError('has no "completion" and no "answer"')
        answer = _text(answer, "answer")
    elif not isinstance(completion, str):
        raise ValueError('"completion" must be text')
    gold = next((row[key] for key in keys if row.get(key) is not None), None)
    if gold is None:
        raise ValueError('has no "gold"')
    question = _question(row)
    identity = row.get("id")
    return Pair(
        gold=final_answer(_text(gold, "gold")),
        completion=completion or "",
        answer=answer,
        question=question,
        opened=question.rstrip().endswith(THINK_OPEN),
        id=identity if isinstance(identity, str | int) else None,
    )


def begin_pair(pair: Pair) -> Grade | Job:
    """Grade a pair, or say what the pool has to decide."""
    if pair.answer is None:
        return begin_grade(pair.gold, pair.completion, question=pair.question, opened=pair.opened)
    found = extract_answer(pair.answer) if BOX_OPEN in pair.answer else _bare(pair.answer)
    return begin_extracted(pair.gold, found, time.perf_counter(), pair.question)


def _bare(answer: str) -> Extracted:
    if not answer.strip() or len(answer) > MAX_ANSWER_CHARS:
        return Extracted(status=GradeStatus.NO_ANSWER)
    return Extracted(answer=answer.strip())


def _text(value: object, key: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f'"{key}" must be text or a number')
    return str(value)


def _question(row: Mapping[str, Any]) -> str:
    """The question as text, the last message of a chat, or "" when there is none."""
    value = next((row[key] for key in _QUESTION_KEYS if row.get(key) is not None), "")
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        value = value[-1].get("content")
    return value if isinstance(value, str) else ""
