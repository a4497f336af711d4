"""`forethought grade`: one object a row in the file's order, then the counts."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from forethought.cli.app import main
from forethought.types import GradeStatus


def grade(
    file: Path, capsys: pytest.CaptureFixture[str], *options: str
) -> tuple[int, list[dict[str, Any]], str]:
    code = main(["grade", str(file), "--json", *options])
    out, err = capsys.readouterr()
    return code, [json.loads(line) for line in out.splitlines()], err


def write(file: Path, rows: list[Any]) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return file


def test_every_convention_of_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = [
        ({"gold": "5", "completion": "<think>2+3</think> \\boxed{5}"}, "correct"),
        ({"gold": "5", "completion": "\\boxed{6}"}, "wrong"),
        (
            {"answer": "5", "completion": "\\boxed{5.0}"},
            "correct",
        ),  # the reference, as data sets name it
        ({"gold": "1/2", "answer": "0.5"}, "correct"),  # a bare answer
        ({"gold": "5", "answer": "\\boxed{5}"}, "correct"),
        ({"gold": 5, "answer": 5}, "correct"),
        ({"gold": "3+2=5 #### 5", "answer": "5"}, "correct"),
        ({"gold": "so \\boxed{5}", "answer": "5"}, "correct"),
        ({"ground_truth": "5", "completion": "\\boxed{5}"}, "correct"),
        ({"gold": "5", "completion": ""}, "no_answer"),
        ({"gold": "5", "answer": " "}, "no_answer"),
        ({"gold": "5", "completion": "<think>\\boxed{5}"}, "unclosed_think"),
        (
            {"gold": "5", "completion": "\\boxed{5}", "prompt": "What is 2+3? <think>\n"},
            "unclosed_think",
        ),
        ({"gold": "", "completion": "\\boxed{5}"}, "unparsable_gold"),
        (
            {"gold": "2\\sqrt{13}", "answer": "\\sqrt{52}", "question": "Simplify \\sqrt{52}."},
            "wrong",
        ),
        ({"gold": "2\\sqrt{13}", "answer": "\\sqrt{52}"}, "correct"),
        (
            {"gold": "\\max(a,b)", "completion": "\\boxed{\\max(b,a)}"},
            "correct",
        ),  # Math-Verify, in the pool
        ({"gold": "5", "completion": "\\boxed{5}", "id": "seven"}, "correct"),
    ]
    rows, expected = [row for row, _ in cases], [status for _, status in cases]
    code, found, _ = grade(write(tmp_path / "pairs.jsonl", rows), capsys)
    *shown, summary = found
    assert code == 0
    assert [row["status"] for row in shown] == expected
    assert [row["line"] for row in shown] == [*range(1, len(rows) + 1)]
    assert all(
        {"score", "status", "extracted", "seconds", "gold_type"} <= row.keys() for row in shown
    )
    scores = {"correct": 1.0, "unparsable_gold": None}
    assert [row["score"] for row in shown] == [scores.get(status, 0.0) for status in expected]
    assert (shown[0]["extracted"], shown[0]["gold_type"]) == ("5", "integer")
    assert shown[-1]["id"] == "seven"
    assert summary["num_rows"] == len(rows)
    assert summary["num_graded"] == len(rows) - 1
    assert summary["counts"] == {
        status: expected.count(status) for status in [*GradeStatus, "malformed"]
    }
    assert summary["accuracy"] == expected.count("correct") / (len(rows) - 1)


MALFORMED = {
    "not json": "is not JSON",
    '"text"': "is not a JSON object",
    "[1]": "is not a JSON object",
    '{"gold": "5"}': 'has no "completion" and no "answer"',
    '{"answer": "5"}': 'has no "gold"',
    '{"completion": "5"}': 'has no "gold"',
    '{"gold": "5", "completion": 5}': '"completion" must be text',
    '{"gold": ["5"], "completion": "5"}': '"gold" must be text or a number',
    '{"gold": true, "completion": "5"}': '"gold" must be text or a number',
    '{"gold": "5", "answer": {}}': '"answer" must be text or a number',
    "[" * 100_000: "is not usable JSON",
    '{"gold": ' + "9" * 5000 + "}": "is not usable JSON",
}


def test_malformed_rows_are_named_and_the_others_graded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = {"gold": "5", "completion": "\\boxed{5}"}
    rows = [good, *MALFORMED, "", good]
    code, found, err = grade(write(tmp_path / "pairs.jsonl", rows), capsys)
    *shown, summary = found
    assert code == 2
    assert [row["status"] for row in shown] == [
        "correct",
        *["malformed"] * len(MALFORMED),
        "correct",
    ]
    for row, reason in zip(shown[1:-1], MALFORMED.values(), strict=True):
        assert (row["score"], reason in row["error"]) == (None, True)
    assert [row["line"] for row in shown] == [*range(1, len(MALFORMED) + 2), len(MALFORMED) + 3]
    assert summary["counts"]["malformed"] == len(MALFORMED)
    assert summary["accuracy"] == 1.0
    named = ", ".join(map(str, range(3, len(MALFORMED) + 2)))
    assert f"line 2 is not JSON: Expecting value at column 1 (also malformed: line {named})" in err
    assert len(err.splitlines()) == 1


def test_bytes_that_are_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"gold": "5", "answer": "5"}\r\n{"gold": "\xff"}\n\n')
    code, found, err = grade(file, capsys)
    assert code == 2
    assert [row["status"] for row in found[:-1]] == ["correct", "malformed"]
    assert "line 2 is not UTF-8 text (byte 11)" in err


@pytest.mark.parametrize("name", ["absent.jsonl", ".", "empty.jsonl"])
def test_a_file_that_cannot_be_graded(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.jsonl").touch()
    code, _, err = grade(tmp_path / name, capsys)
    assert code == 2
    assert str(tmp_path / name) in err


def test_a_table_for_people_keeps_the_terminal_safe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"gold": "5", "answer": "5"},
        {"gold": "\x1b[2J", "answer": "\x1b[2J" + "x" * 400},
        "no row",
    ]
    assert main(["grade", str(write(tmp_path / "pairs.jsonl", rows))]) == 2
    out = capsys.readouterr().out
    assert "\x1b[2J" not in out
    assert "3 rows in" in out
    assert "(1 correct, 1 wrong, 1 malformed)" in out
    assert max(map(len, out.splitlines())) < 110


def test_stdin_can_be_graded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Stdin:
        buffer = io.BytesIO(b'{"gold": "5", "answer": "5"}\n')

    monkeypatch.setattr("sys.stdin", Stdin)
    assert grade(Path("-"), capsys)[1][0]["status"] == "correct"


def test_rows_wait_for_the_pool_in_their_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = [{"gold": f"\\max(a,{n})", "answer": f"\\max({n},a)"} for n in range(4)]
    fast = [{"gold": "5", "answer": "5"}] * 4
    rows = [row for pair in zip(slow, fast, strict=True) for row in pair]
    file = write(tmp_path / "pairs.jsonl", rows)
    code, found, _ = grade(file, capsys, "--workers", "2", "--deadline", "30")
    assert code == 0
    assert [row["line"] for row in found[:-1]] == [*range(1, 9)]
    assert {row["status"] for row in found[:-1]} == {"correct"}
    assert all((row["seconds"] > 0.002) == (row["line"] % 2 == 1) for row in found[:-1])


def test_options_out_of_range(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--workers=0", "--deadline=0", "--deadline=-1"):
        code, _, err = grade(tmp_path / "pairs.jsonl", capsys, option)
        assert code == 2
        assert option.split("=")[0] in err
