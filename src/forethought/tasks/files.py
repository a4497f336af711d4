"""Tasks from the user's own files: JSONL, and Parquet with the extra `parquet`.

A row is `{"id", "question", "answer"}`. Other conventions are understood: `problem` or `prompt`
for the question (a string or a list of chat messages), `solution` or `ground_truth` for the
answer, and verl's `reward_model.ground_truth`. Of a worked solution, "... #### 42" (GSM8K) or
"... \\boxed{42}" (MATH), the final answer counts. Without an id, the line number is the id. Every
field but the question is kept in the example's `meta`, where reward functions find it.

A file has no splits: every split is the whole file, unless the option `holdout=0.2` sets a fifth
of the questions apart as the test split, by a hash of their text, and leaves the rest to train.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forethought.errors import TaskError
from forethought.grading.answers import final_answer
from forethought.grading.jobs import Job, settle
from forethought.grading.math import begin_grade
from forethought.jsonl import decode_line
from forethought.types import Example, Grade, Message

_QUESTION_KEYS = ("question", "problem", "prompt")
_ANSWER_KEYS = ("answer", "ground_truth", "solution")
_ID_KEYS = ("id", "unique_id")
_OPTIONS = ("limit", "holdout", "boxed")
_ROLES = ("system", "user", "assistant")

_PACKAGE = Path(__file__).parent.parent
_SHIPPED = (_PACKAGE, _PACKAGE.parent.parent)  # where recipes/ is: installed, in a checkout

BOXED_INSTRUCTION = "Put the final answer in \\boxed{}."


@dataclass(frozen=True, slots=True, kw_only=True)
class FileTask:
    """Examples read from a file, graded by comparing the boxed answer with the reference."""

    name: str
    examples: tuple[Example, ...]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]

    def grade(self, example: Example, completion: str) -> Grade:
        return settle(self.begin_grade(example, completion))

    def begin_grade(self, example: Example, completion: str) -> Grade | Job:
        """The grade, or a job for the pool where algebra has to decide."""
        question = example.messages[-1]["content"]
        return begin_grade(example.answer, completion, question=question)


def jsonl_task(path: str | Path, options: Mapping[str, str], *, split: str = "test") -> FileTask:
    """The task in a JSONL file (Parquet when the name ends in .parquet).

    Options: `limit` (keep the first N), `holdout` (fraction of the questions that is the test
    split), `boxed=true` (ask for the final answer in a box). Raises TaskError naming the file,
    the line and what is wrong with it.
    """
    path = _shipped(Path(path))
    limit, holdout, boxed = _read_options(options)
    is_parquet = path.suffix == ".parquet"
    rows = _parquet_rows(path) if is_parquet else jsonl_rows(path)
    examples = _read_examples(rows, path, boxed)
    if holdout is not None:
        if split not in ("train", "test"):
            raise TaskError(f"split {split!r} is unknown for {path}: use train or test")
        chosen = [e for e in examples if (position(e) < holdout) == (split == "test")]
        if not chosen:
            raise TaskError(f"holdout={holdout} leaves no {split} rows in {path}: change it")
        examples = chosen
    kind = "parquet" if is_parquet else "jsonl"
    return FileTask(name=f"{kind}:{path.name}", examples=tuple(examples[:limit]))


def _shipped(path: Path) -> Path:
    """`recipes/data/NAME`, where no such file is, means one that comes with the package."""
    if path.is_file() or path.parts[:2] != ("recipes", "data"):
        return path
    return next((found for root in _SHIPPED if (found := root / path).is_file()), path)


def parquet_task(path: str | Path, options: Mapping[str, str], *, split: str = "test") -> FileTask:
    """`jsonl_task` for a Parquet file."""
    if Path(path).suffix != ".parquet":
        raise TaskError(f"{path} is not a Parquet file: its name must end in .parquet")
    return jsonl_task(path, options, split=split)


def _read_options(options: Mapping[str, str]) -> tuple[int | None, float | None, bool]:
    for key in options:
        if key not in _OPTIONS:
            raise TaskError(f"unknown option {key!r} of a task file: use {', '.join(_OPTIONS)}")
    limit, holdout, boxed = options.get("limit"), options.get("holdout"), options.get("boxed")
    if limit is not None and not (limit.isascii() and limit.isdecimal() and int(limit[:18]) > 0):
        raise TaskError(f"limit={limit} must be a whole number of at least 1")
    if boxed not in (None, "true", "false"):
        raise TaskError(f"boxed={boxed} must be true or false")
    share = None if holdout is None else fraction(holdout)
    return None if limit is None else int(limit[:18]), share, boxed == "true"


def fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1:
        raise TaskError(f"holdout={text} must be a fraction between 0 and 1, such as 0.2")
    return value


def position(example: Example) -> float:
    """Where the text of the messages falls in [0, 1), whatever the order or size of the file."""
    text = "\n".join(message["content"] for message in example.messages)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def jsonl_rows(path: Path) -> Iterator[tuple[str, object]]:
    """(place, decoded row) of every line that is not blank; place is "line N"."""
    for number, line in enumerate(_read_bytes(path).removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if line.strip():
            yield f"line {number}", _decode_line(line, f"{path}, line {number}")


def _read_bytes(path: Path) -> bytes:
    if path.is_dir():
        raise TaskError(f"{path} is a folder: give the path of a JSONL file inside it")
    if not path.is_file():
        raise TaskError(f"{path} does not exist: give the path of a JSONL file")
    try:
        return path.read_bytes()
    except OSError as error:
        raise TaskError(f"{path} cannot be read: {error.strerror}") from error


def _decode_line(line: bytes, place: str) -> object:
    try:
        return decode_line(line)
    except ValueError as error:
        raise TaskError(f"{place}: {error}") from error


def _parquet_rows(path: Path) -> Iterator[tuple[str, object]]:
    try:
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ModuleNotFoundError as error:
        raise TaskError(f"{path} needs pyarrow to be read: pip install pyarrow") from error
    if not path.is_file():
        raise TaskError(f"{path} is not a file: give the path of a Parquet file")
    try:
        rows = parquet.read_table(path).to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's own errors derive from these two
        raise TaskError(f"{path} is not a readable Parquet file") from error
    for number, row in enumerate(rows, 1):
        yield f"row {number}", row


def _read_examples(rows: Iterator[tuple[str, object]], path: Path, boxed: bool) -> list[Example]:
    examples: list[Example] = []
    seen: dict[str, str] = {}
    for place, row in rows:
        example = _read_example(row, f"{path}, {place}", place.split()[1], boxed)
        if example.id in seen:
            raise TaskError(
                f"{path}, {place}: id {example.id!r} was used on {seen[example.id]} already"
            )
        seen[example.id] = place
        examples.append(example)
    if not examples:
        raise TaskError(f"{path} is empty: it needs one JSON object a line")
    return examples


def _read_example(row: object, place: str, number: str, boxed: bool) -> Example:
    if not isinstance(row, dict):
        raise TaskError(f"{place}: is a JSON {type(row).__name__}, not an object with keys")
    messages = read_messages(_first(row, _QUESTION_KEYS), place)
    if boxed:
        asked = f"{messages[-1]['content']}\n{BOXED_INSTRUCTION}"
        messages = (*messages[:-1], {"role": "user", "content": asked})
    answer = read_scalar(_gold(row), "answer", place)
    final = final_answer(answer)
    if not final:
        raise TaskError(f"{place}: the answer is empty")
    identity = _first(row, _ID_KEYS)
    example_id = number if identity is None else read_scalar(identity, "id", place)
    others = {key: value for key, value in row.items() if key not in _QUESTION_KEYS}
    return Example(id=example_id, messages=messages, answer=final, meta=others)


def _first(row: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    return next((row[key] for key in keys if row.get(key) is not None), None)


def _gold(row: Mapping[str, Any]) -> Any:
    reward_model = row.get("reward_model")
    if isinstance(reward_model, dict) and reward_model.get("ground_truth") is not None:
        return reward_model["ground_truth"]
    return _first(row, _ANSWER_KEYS)


def read_scalar(value: object, key: str, place: str) -> str:
    if value is None:
        raise TaskError(f'{place}: has no "{key}"')
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise TaskError(f'{place}: "{key}" must be text or a number')
    return _checked_text(str(value).strip(), key, place)


def read_messages(value: object, place: str) -> tuple[Message, ...]:
    """The prompt: a question, or a list of chat messages whose last is the user's."""
    if value is None:
        raise TaskError(f'{place}: has no "question"')
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    if not isinstance(value, list) or not value:
        raise TaskError(f'{place}: "question" must be text or a list of messages')
    messages = tuple(_read_message(message, place) for message in value)
    if messages[-1]["role"] != "user":
        raise TaskError(f"{place}: the last message must come from the user")
    return messages


def _read_message(message: object, place: str) -> Message:
    if not isinstance(message, dict) or message.get("role") not in _ROLES:
        raise TaskError(f"{place}: every message needs a role: {', '.join(_ROLES)}")
    content = message.get("content")
    if not isinstance(content, str) or not content.strip():
        raise TaskError(f'{place}: "question" must hold text')
    return {"role": message["role"], "content": _checked_text(content, "question", place)}


def _checked_text(text: str, key: str, place: str) -> str:
    """JSON can smuggle in NUL and lone surrogates, which nothing downstream can write."""
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise TaskError(f'{place}: "{key}" holds a character that is not text')
    return text
