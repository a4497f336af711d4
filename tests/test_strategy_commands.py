"""`ask` and `eval` by strategy: what they print, write and refuse; prices, budgets and curves."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forethought.budget import Budget, Prices, parse_budget, parse_budgets
from forethought.cli import app
from forethought.cli.ask_strategy import cost_line
from forethought.errors import StrategyError, UserError
from forethought.evaluation.curves import compare, ledger_of, summarize, sweep, write_cells
from forethought.evaluation.metrics import mcnemar_p
from forethought.evaluation.report import build_report
from forethought.prices import load_prices
from forethought.sampling.scripted import ScriptedEngine
from forethought.types import (
    Example,
    FinishReason,
    Grade,
    GradeStatus,
    Message,
    SamplingParams,
    Usage,
)
from strategy_bench import RIGHT, voters
from tiny_models import make_folder

LEDGER = set(Usage.__dataclass_fields__) | {
    "total_tokens", "computed_tokens", "visible_tokens", "peak_context_share",
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_folder(tmp_path_factory.mktemp("model") / "tiny"))


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = app.main(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


# --- ask ----------------------------------------------------------------------------------------


def test_ask_by_strategy_prints_the_whole_ledger(
    tiny: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    table = tmp_path / "prices.toml"
    table.write_text("[default]\nprompt_per_million = 1e6\nsampled_per_million = 2e6\n")
    code, out, _ = run(
        capsys, "ask", "1+1?", "--model", tiny, "--strategy", "majority:n=3", "--budget", "40",
        "--prices", str(table), "--json",
    )  # fmt: skip
    found = json.loads(out)
    assert code == 0
    assert found.keys() == {
        "strategy", "answer", "text", "finish_reason", "score", "usage", "votes", "trace",
    }  # fmt: skip
    usage = found["usage"]
    assert usage.keys() == LEDGER and usage["total_tokens"] <= 40
    assert usage["sampled_tokens"] == sum(
        c["sampled_tokens"] for call in found["trace"] for c in call["completions"]
    )
    assert usage["total_tokens"] == sum(call["total_tokens"] for call in found["trace"])
    assert usage["money"] == pytest.approx(
        usage["prompt_tokens"] + 2 * usage["sampled_tokens"], rel=1e-6
    )
    assert 0 < usage["peak_context_share"] <= 1
    assert found["finish_reason"] == "budget"


def test_ask_shows_the_trace_as_it_comes_and_the_cost(
    tiny: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(
        capsys, "ask", "1+1?", "--model", tiny, "--strategy", "majority:n=2", "--max-tokens", "4"
    )
    assert code == 0
    assert "[1] answer, 4 tokens" in out and "[2] answer, 4 tokens" in out
    assert "no answer to be read" in out
    assert "(5 cached)" in out
    assert "2 calls" not in out and "1 calls" in out


def test_ask_with_a_budget_alone_is_greedy(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "ask", "1+1?", "--model", tiny, "--budget", "12", "--json")
    found = json.loads(out)
    assert code == 0 and found["strategy"] == "greedy" and found["usage"]["total_tokens"] <= 12


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--strategy", "magic"], "strategy='magic' is unknown; known are greedy"),
        (["--budget", "much"], "budget=much: 'much' is not a number"),
        (["--budget", "coins=3"], "'coins' is no limit; known are tokens, calls, seconds, money"),
        (["--budget", "tokens=-1"], "tokens must be at least 0, got -1"),
        (["--prices", "nowhere.toml"], "prices=nowhere.toml cannot be read as TOML"),
    ],
)
def test_a_mistake_of_ask_is_one_sentence(
    tiny: str, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    code, out, err = run(capsys, "ask", "1+1?", "--model", tiny, *arguments)
    assert (code, out) == (2, "") and sentence in err and err.count("\n") == 1


def test_the_cost_line_says_what_was_spent() -> None:
    usage = Usage(prompt_tokens=10, sampled_tokens=5, num_calls=2, num_retries=1, money=0.5)
    line = cost_line(ledger_of(usage))
    assert line.startswith("15 tokens: 10 prompt (0 cached) + 5 sampled (0 reasoning, 0 discarded)")
    assert "2 calls, 1 retries" in line and line.endswith("0.500000 money")


# --- eval ---------------------------------------------------------------------------------------


def test_eval_compares_strategies_and_draws_the_curves(
    tiny: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out_folder = tmp_path / "out"
    command = [
        "eval", "--model", tiny, "--task", "sum:difficulty=1", "--limit", "3", "--max-tokens", "4",
        "--strategy", "greedy", "--strategy", "majority:n=2", "--budget", "38,64",
        "--out", str(out_folder),
    ]  # fmt: skip
    code, out, _ = run(capsys, *command, "--json")
    found = json.loads(out)
    assert code == 0 and found["num_problems"] == 3
    cells = [(row["strategy"], row["budget"]) for row in found["curves"]]
    assert cells == [("greedy", 38), ("greedy", 64), ("majority:n=2", 38), ("majority:n=2", 64)]
    assert all(row["total_tokens"] <= row["budget"] for row in found["curves"])
    assert [(p["first"], p["second"]) for p in found["pairs"]] == [
        ("greedy @ 38", "majority:n=2 @ 38"), ("greedy @ 64", "majority:n=2 @ 64"),
    ]  # fmt: skip
    rows = [json.loads(line) for line in (out_folder / "results.jsonl").read_text().splitlines()]
    assert len(rows) == 12 and rows[0]["usage"].keys() == LEDGER
    assert json.loads((out_folder / "summary.json").read_text()) == found
    page = (out_folder / "report.html").read_text()
    assert "<svg" in page and "McNemar" in page and "majority:n=2" in page
    assert run(capsys, *command)[0] == 2, "the folder holds results already"
    code, out, _ = run(capsys, *command, "--force")
    assert code == 0 and "majority:n=2 @ 64 minus greedy @ 64" in out and "McNemar p = " in out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--strategy", "greedy", "--strategy", "greedy"], "names one strategy twice"),
        (["--strategy", "greedy", "--samples", "4"], "--samples does not go with --strategy"),
        (["--strategy", "greedy", "--against", "x"], "--against does not go with --strategy"),
        (["--strategy", "greedy", "--budget", "a"], "'a' is not a number"),
        (["--strategy", "greedy", "--budget", "8,8"], "budget=8 is named twice"),
        (["--strategy", "greedy", "--budget", "calls=0"], "budget=calls=0 allows nothing"),
        (["--strategy", "greedy", "--budget", "8,16,calls=2"], "mixes several budgets"),
        (["--strategy", "greedy", "--budget", "coins=2"], "'coins' is no limit; known are tokens"),
        (["--budget", "8"], "go with --strategy"),
    ],
)
def test_a_mistake_of_eval_is_one_sentence(
    tiny: str, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    names = [tiny if argument == "x" else argument for argument in arguments]
    code, out, err = run(capsys, "eval", "--model", tiny, "--task", "sum", *names)
    assert (code, out) == (2, "") and sentence in err and err.count("\n") == 1


@dataclass(frozen=True)
class Sevens:
    """Problems whose answer is 7; every fourth cannot be graded."""

    size: int = 40
    name: str = "sevens"

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Example:
        message = Message(role="user", content=f"Ask {index}?")
        return Example(id=str(index), messages=(message,), answer=RIGHT)

    def grade(self, example: Example, completion: str) -> Grade:
        if int(example.id) % 4 == 0:
            return Grade(score=None, status=GradeStatus.UNPARSABLE_GOLD)
        right = RIGHT in completion
        return Grade(score=float(right), status=GradeStatus.CORRECT if right else GradeStatus.WRONG)


def cells_of(*specs: str) -> Any:
    engine = ScriptedEngine(voters({RIGHT: 0.6, "8": 0.4}))
    return sweep(engine, Sevens(), list(specs), [None], SamplingParams(max_tokens=9))


def test_a_cell_counts_what_its_solutions_do() -> None:
    [cell] = cells_of("majority:n=4")
    row = cell.summary()
    assert (row["num_problems"], row["num_ungraded"], row["completions"]) == (40, 10, 4)
    assert row["total_tokens"] == cell.usage.total_tokens / 40
    right = [s.answer == RIGHT for i, s in enumerate(cell.solutions) if i % 4]
    assert row["accuracy"] == sum(right) / 30 and list(cell.correct.values()) == right


def test_pairs_are_tested_on_the_same_problems() -> None:
    first, second = cells_of("sample", "majority:n=9")
    pair = compare(first, second)
    old, new = list(first.correct.values()), list(second.correct.values())
    assert pair.p == mcnemar_p(old, new)
    assert pair.difference.mean == pytest.approx((sum(new) - sum(old)) / 30)


def test_ungraded_everywhere_is_said() -> None:
    engine = ScriptedEngine(voters({RIGHT: 1.0}))
    cells = sweep(engine, Sevens(1), ["sample", "greedy"], [None], SamplingParams(max_tokens=9))
    assert cells[0].summary()["accuracy"] is None
    assert summarize(Sevens(1), cells)["pairs"] == []
    with pytest.raises(UserError, match="no problem is graded"):
        compare(*cells)
    with pytest.raises(UserError, match="no problems to evaluate"):
        sweep(engine, Sevens(0), ["sample"], [None], SamplingParams())


def test_the_report_of_a_hostile_summary_is_escaped(tmp_path: Path) -> None:
    [cell] = cells_of("sample")
    row = cell.summary() | {"strategy": "<script>alert(1)</script>", "accuracy": 0.5}
    (tmp_path / "summary.json").write_text(json.dumps({"curves": [row], "pairs": [{"p": "x"}]}))
    page = build_report(tmp_path).read_text()
    assert "<script>" not in page and "&lt;script&gt;" in page
    write_cells(Sevens(), [cell], tmp_path / "rows.jsonl")
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 40
    assert cell.solutions[0].finish_reason is FinishReason.BOXED


# --- Budgets and prices -------------------------------------------------------------------------


def test_budgets_are_read() -> None:
    assert parse_budget("1024") == Budget(tokens=1024)
    assert parse_budget("tokens=10, calls=2,seconds=1.5,money=0.01") == Budget(
        tokens=10, calls=2, seconds=1.5, money=0.01
    )
    assert parse_budgets(["256, 1024"]) == [Budget(tokens=256), Budget(tokens=1024)]
    assert parse_budgets(["calls=4,8", "seconds=0.5"]) == [
        Budget(calls=4), Budget(calls=8), Budget(seconds=0.5),
    ]  # fmt: skip
    assert parse_budgets(["tokens=9,calls=2"]) == [Budget(tokens=9, calls=2)]
    assert parse_budgets([]) == []


LIMITS = {
    "tokens": st.integers(0, 10**9),
    "calls": st.integers(0, 10**6),
    "seconds": st.sampled_from([0.0, 0.25, 30.0, 1e6]),
    "money": st.sampled_from([0.0, 0.01, 1.5e-7]),
}


@given(st.fixed_dictionaries({}, optional=LIMITS))
def test_a_budget_is_spelled_as_it_is_read(limits: dict[str, Any]) -> None:
    budget = Budget(**limits)
    if limits:
        assert parse_budget(budget.spec) == budget


def test_curves_over_calls(tiny: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = run(
        capsys, "eval", "--model", tiny, "--task", "sum:difficulty=1", "--limit", "2",
        "--max-tokens", "4", "--strategy", "esc:window=1,n=4", "--budget", "calls=1,2", "--json",
        "--budget", "tokens=99,calls=3", "--out", str(tmp_path / "out"),
    )  # fmt: skip
    rows = json.loads(out)["curves"]
    assert code == 0
    assert [row["budget"] for row in rows] == ["calls=1", "calls=2", "tokens=99,calls=3"]
    assert [row["calls"] for row in rows][:2] == [1, 2] and rows[2]["calls"] <= 3
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Accuracy over calls a problem" in page and "over total tokens" in page
    assert "over money" not in page and "tokens=99,calls=3" in page


def test_prices_are_those_of_the_model_or_the_default(tmp_path: Path) -> None:
    table = tmp_path / "prices.toml"
    table.write_text('[default]\nprompt_per_million = 1\n["a/b"]\nsampled_per_million = 2.5\n')
    assert load_prices(table, "a/b") == Prices(sampled_per_million=2.5)
    assert load_prices(table, "other") == Prices(prompt_per_million=1)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[a]\n", "has no table for m and no default: it has a"),
        ("[m]\nprice = 1\n", "price in prices="),
        ("[m]\nprompt_per_million = 'x'\n", "prompt_per_million='x'"),
        ("[m]\nprompt_per_million = -1\n", "at least 0"),
        ("m = 3\n", "has no table for m"),
        ("[m", "cannot be read as TOML"),
    ],
)
def test_a_wrong_price_table_is_told(tmp_path: Path, text: str, sentence: str) -> None:
    table = tmp_path / "prices.toml"
    table.write_text(text)
    with pytest.raises(StrategyError) as caught:
        load_prices(table, "m")
    assert sentence in str(caught.value)
