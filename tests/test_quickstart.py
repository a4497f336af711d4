"""The quickstart with a tiny model in place of the bundled one: what it prints and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from forethought.cli import quickstart
from forethought.cli.app import main
from forethought.config import parse_recipe
from forethought.training.stages import run_stage, start_run
from tiny_runs import sft_tables

# What the README promises of `forethought quickstart --json`.
PROMISED = {
    "accuracy_before", "accuracy_after", "greedy_before", "greedy_after", "gain_low", "gain_high",
    "length_before", "length_after", "seconds_total", "report",
}  # fmt: skip


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    monkeypatch.setattr(quickstart, "PROBLEMS", 4)


def arguments(model: Path, out: Path, *sets: str) -> list[str]:
    settings = [
        f"model={model}", "num_steps=2", "prompts_per_step=2", "group_size=2", "max_tokens=4",
        "eval_problems=2", "checkpoint_every=1", "optimizer.warmup_steps=1", *sets,
    ]  # fmt: skip
    flags = [flag for setting in settings for flag in ("--set", setting)]
    return ["quickstart", "--json", "--out", str(out), *flags]


def test_it_measures_trains_measures_again_and_reports(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(model, tmp_path)) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found.keys() >= PROMISED
    assert found["num_problems"] == 4 and found["seed"] == 0
    page = Path(found["report"]).read_text(encoding="utf-8")
    assert Path(found["report"]).parent == tmp_path / "quickstart" and "<svg" in page
    assert found["accuracy_before"] == 0.0 and found["gain_low"] <= 0.0  # a model of nothing
    # a second one goes into a folder of its own, with tables for a person
    command = [a for a in arguments(model, tmp_path, "seed=3") if a != "--json"]
    assert main(command) == 0
    shown = capsys.readouterr()
    assert "quickstart-2" in shown.out and "majority@16" in shown.out
    assert "signal" in shown.err and "tok/s" in shown.err and "length" in shown.err
    # a finished one measures again, to the same figures
    assert main(["quickstart", "--json", "--resume", str(tmp_path / "quickstart")]) == 0
    again: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {k: v for k, v in again.items() if k != "seconds_total"} == {
        k: v for k, v in found.items() if k != "seconds_total"
    }


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("task=smu", "did you mean sum?"),
        ("model=nowhere/at/all", "give a model folder"),
        ("num_step=3", "did you mean num_steps?"),
        ("stage=pipeline", "order"),
        ("reward.parts={'none.py:f' = 1.0}", "no file 'none.py'"),
        ("eval_task=jsonl:none.jsonl", "none.jsonl"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(
    setting: str, words: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(arguments(model, out, setting)) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and len(shown.err.splitlines()) == 1
    assert words in shown.err
    assert not out.exists()


def test_only_a_run_of_rl_is_resumed_and_nothing_of_it_is_changed(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = parse_recipe(sft_tables(model, tmp_path / "sft", num_steps=1))
    with start_run(recipe, ["forethought"]) as run:
        run_stage(recipe, run)
    assert main(["quickstart", "--resume", str(tmp_path / "sft")]) == 2
    assert "stage='sft'" in capsys.readouterr().err
    for flags in (["--seed", "1"], ["--out", "x"], ["--set", "num_steps=3"]):
        assert main(["quickstart", "--resume", str(tmp_path / "sft"), *flags]) == 2
        assert "--resume takes no" in capsys.readouterr().err
