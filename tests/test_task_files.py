"""Tasks from files: the formats understood, and one clear sentence for each that is broken."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from forethought.errors import TaskError
from forethought.tasks.files import jsonl_task, parquet_task
from forethought.types import Task


def write(folder: Path, *rows: object) -> Path:
    path = folder / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def row(number: int = 0, **more: Any) -> dict[str, Any]:
    return {"id": f"q{number}", "question": f"What is {number} + 1?", "answer": "1"} | more


def test_a_file_is_a_task(tmp_path: Path) -> None:
    task = jsonl_task(write(tmp_path, row(0), row(1, answer="2")), {})
    assert isinstance(task, Task)
    assert (task.name, len(task)) == ("jsonl:problems.jsonl", 2)
    assert task[1].id == "q1"
    assert task[1].messages == ({"role": "user", "content": "What is 1 + 1?"},)
    assert task.grade(task[1], "so it is \\boxed{2}").score == 1.0
    assert task.grade(task[1], "so it is \\boxed{3}").score == 0.0


@pytest.mark.parametrize(
    "given",
    [
        {"question": "Why?", "answer": "42"},
        {"problem": "Why?", "ground_truth": "42"},
        {"prompt": "Why?", "solution": "Six sevens.\n#### 42"},
        {"problem": "Why?", "solution": "six sevens", "answer": 42},
        {"question": "Why?", "answer": "6 * 7 = <<6*7=42>>42\n#### 42"},
        {"prompt": [{"role": "user", "content": "Why?"}], "reward_model": {"ground_truth": "42"}},
    ],
)
def test_other_conventions_are_understood(tmp_path: Path, given: dict[str, Any]) -> None:
    task = jsonl_task(write(tmp_path, given), {})
    assert task[0].messages == ({"role": "user", "content": "Why?"},)
    assert task[0].answer == "42"
    assert task[0].id == "1"


def test_a_worked_solution_counts_by_its_boxed_answer(tmp_path: Path) -> None:
    task = jsonl_task(write(tmp_path, {"problem": "Why?", "solution": "So \\boxed{42}."}), {})
    assert task.grade(task[0], "\\boxed{42}").score == 1.0
    assert task.grade(task[0], "\\boxed{41}").score == 0.0


def test_a_system_message_is_kept(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    task = jsonl_task(write(tmp_path, {"prompt": messages, "answer": "1"}), {})
    assert list(task[0].messages) == messages


def test_ids_default_to_line_numbers_and_blank_lines_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"question": "a", "answer": 1}\r\n\n{"question":"b","answer":2}')
    assert [example.id for example in jsonl_task(path, {}).examples] == ["1", "3"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"question": "a"', "line 2: is not JSON"),
        (b"[1, 2]", "line 2: is a JSON list"),
        (b'{"question": "a"}', 'line 2: has no "answer"'),
        (b'{"answer": "a"}', 'line 2: has no "question"'),
        (b'{"question": "a", "answer": null}', 'line 2: has no "answer"'),
        (b'{"question": "a", "answer": " "}', "line 2: the answer is empty"),
        (b'{"question": "a", "answer": "x ####"}', "line 2: the answer is empty"),
        (b'{"question": "a", "answer": "so \\\\boxed{4"}', "line 2: the answer is empty"),
        (b'{"question": "a", "answer": [1]}', 'line 2: "answer" must be text or a number'),
        (b'{"question": 5, "answer": "1"}', 'line 2: "question" must be text'),
        (b'{"question": " ", "answer": "1"}', 'line 2: "question" must hold text'),
        (b'{"question": [], "answer": "1"}', 'line 2: "question" must be text'),
        (b'{"prompt": [{"role": "x"}], "answer": "1"}', "line 2: every message needs a role"),
        (
            b'{"prompt": [{"role": "assistant", "content": "a"}], "answer": "1"}',
            "line 2: the last message must come from the user",
        ),
        (b'{"question": "a\\u0000b", "answer": "1"}', 'line 2: "question" holds a character'),
        (b'{"question": "a", "answer": "\\ud800"}', 'line 2: "answer" holds a character'),
        (b'{"question": "a\0b", "answer": "1"}', "line 2: contains a NUL byte"),
        (b'{"question": "\xff", "answer": "1"}', "line 2: is not UTF-8"),
        (b'{"question": "a", "answer": ' + b"9" * 5000 + b"}", "line 2: is not usable JSON"),
        (b"[" * 200_000, "line 2: is not usable JSON"),
        (b'{"id": "q0", "question": "a", "answer": "1"}', "line 2: id 'q0' was used on line 1"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(json.dumps(row()).encode() + b"\n" + line + b"\n")
    with pytest.raises(TaskError, match=message) as caught:
        jsonl_task(path, {})
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(TaskError, match="is empty"):
        jsonl_task(tmp_path / "empty.jsonl", {})
    with pytest.raises(TaskError, match="does not exist"):
        jsonl_task(tmp_path / "missing.jsonl", {})
    with pytest.raises(TaskError, match="is a folder"):
        jsonl_task(tmp_path, {})


def test_limit_keeps_the_first(tmp_path: Path) -> None:
    path = write(tmp_path, *(row(i) for i in range(5)))
    assert [e.id for e in jsonl_task(path, {"limit": "2"}).examples] == ["q0", "q1"]


def test_boxed_asks_for_a_box(tmp_path: Path) -> None:
    task = jsonl_task(write(tmp_path, row()), {"boxed": "true"})
    assert task[0].messages[0]["content"].startswith("What is 0 + 1?\n")
    assert "\\boxed{}" in task[0].messages[0]["content"]


def test_a_file_is_used_whole_for_every_split(tmp_path: Path) -> None:
    path = write(tmp_path, *(row(i) for i in range(5)))
    assert jsonl_task(path, {}, split="train") == jsonl_task(path, {}, split="test")


def test_holdout_splits_by_question_whatever_the_order(tmp_path: Path) -> None:
    rows = [row(i) for i in range(300)] + [row(300, question="What is 0 + 1?")]
    path = write(tmp_path, *rows)
    test, train = (
        jsonl_task(path, {"holdout": "0.2"}, split=s).examples for s in ("test", "train")
    )
    asked = [{example.messages[0]["content"] for example in part} for part in (test, train)]
    assert len(test) + len(train) == 301
    assert not asked[0] & asked[1]
    assert 30 < len(test) < 90
    again = jsonl_task(write(tmp_path, *reversed(rows)), {"holdout": "0.2"}).examples
    assert {example.id for example in again} == {example.id for example in test}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": "0"}, "limit=0"),
        ({"limit": "many"}, "limit=many"),
        ({"holdout": "1.5"}, "holdout=1.5"),
        ({"holdout": "nan"}, "holdout=nan"),
        ({"boxed": "yes"}, "boxed=yes"),
        ({"colour": "red"}, "unknown option 'colour'"),
        ({"holdout": "0.000001"}, "leaves no test rows"),
    ],
)
def test_wrong_options_are_named(tmp_path: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        jsonl_task(write(tmp_path, row()), options)


def test_an_unknown_split_of_a_holdout(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="use train or test"):
        jsonl_task(write(tmp_path, row()), {"holdout": "0.5"}, split="dev")


def test_parquet_without_pyarrow_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)  # as if it were not installed
    with pytest.raises(TaskError, match="pip install pyarrow"):
        parquet_task(tmp_path / "p.parquet", {})


def test_parquet_reads_the_same_rows(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    prompt = [{"role": "user", "content": "Why?"}]
    rows = [{"prompt": prompt, "reward_model": {"ground_truth": "42", "style": "rule"}}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "p.parquet")
    task = parquet_task(tmp_path / "p.parquet", {})
    assert (task.name, task[0].id, task[0].answer) == ("parquet:p.parquet", "1", "42")
    (tmp_path / "bad.parquet").write_bytes(b"not parquet")
    with pytest.raises(TaskError, match="not a readable Parquet file"):
        parquet_task(tmp_path / "bad.parquet", {})
    with pytest.raises(TaskError, match=r"must end in \.parquet"):
        parquet_task(tmp_path / "p.jsonl", {})
