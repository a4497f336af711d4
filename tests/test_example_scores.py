"""Which examples teach: what a run writes of them, how they are scored, and the command."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forethought.cli.app import main
from forethought.config import parse_recipe
from forethought.durable import append_lines, read_lines
from forethought.errors import RecipeError
from forethought.run import EXAMPLES
from forethought.schema import RlRecipe
from forethought.tasks.base import load_task
from forethought.training.example_scores import (
    example_accuracies,
    historical_variance,
    loses_its_grader,
    score_run,
)
from forethought.training.stages import start_run
from forethought.types import Example, FinishReason, Grade, GradeStatus, Rollout, RolloutGroup
from tiny_runs import rl_tables, save_tiny, sft_tables

ACCURACIES = st.lists(st.floats(0, 1), min_size=2, max_size=20)
NAMES = ["sum:difficulty=1/train/0/" + str(index) for index in range(4)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny")


@given(ACCURACIES)
def test_historical_variance_is_the_mean_square_distance_from_the_mean(values: list[float]) -> None:
    mean = fmean(values)
    expected = fmean((value - mean) ** 2 for value in values)
    assert historical_variance(values) == pytest.approx(expected, abs=1e-12)


@given(ACCURACIES, st.randoms())
def test_historical_variance_forgets_the_order_and_ends_at_a_quarter(
    values: list[float], rng: Any
) -> None:
    mixed = rng.sample(values, len(values))
    assert historical_variance(mixed) == pytest.approx(historical_variance(values), abs=1e-12)
    assert 0 <= historical_variance(values) <= 0.25 + 1e-12


def group(name: str, *scores: float | None) -> RolloutGroup:
    def rollout(score: float | None) -> Rollout:
        return Rollout(
            example_id=name,
            token_ids=(1, 2),
            sampled_mask=(False, True),
            logprobs=(0.0, -1.0),
            text="x",
            finish_reason=FinishReason.EOS,
            grade=Grade(score=score, status=GradeStatus.WRONG),
        )

    example = Example(id=name, messages=({"role": "user", "content": "1 + 1?"},), answer="2")
    return RolloutGroup(example=example, rollouts=tuple(map(rollout, scores)))


def test_accuracies_of_a_step_join_copies_and_know_what_is_unknown() -> None:
    groups = [group("a", 1.0, 0.0), group("b", None, None), group("a", 1.0, 1.0)]
    groups.append(group("c", None, 0.5))
    assert example_accuracies(groups) == {"a": 0.75, "b": None, "c": 0.5}


def run_of(folder: Path, lines: list[dict[str, Any]], **changes: Any) -> Path:
    """The folder of an RL run whose examples.jsonl is `lines`."""
    tables = rl_tables(Path("bundled:seedling"), folder, **changes)
    with start_run(parse_recipe(tables), ["test"]):
        append_lines(folder / EXAMPLES, lines)
    return folder


def test_a_run_is_ranked_by_how_far_accuracies_moved(tmp_path: Path) -> None:
    lines = [
        {"step": 1, "ids": [NAMES[3], NAMES[1], NAMES[0]], "accuracies": [0.5, 0.0, 0.25]},
        {"step": 2, "ids": [NAMES[0], NAMES[3]], "accuracies": [0.75, 1.0]},
        {"step": 3, "ids": [NAMES[2], NAMES[1], NAMES[3]], "accuracies": [0.0, 1.0, None]},
    ]
    found = score_run(run_of(tmp_path / "run", lines), "historical-variance")
    assert [scored.example.id for scored in found] == [NAMES[1], NAMES[0], NAMES[3]]
    assert [scored.score for scored in found] == [0.25, 0.0625, 0.0625]  # a tie: as in the task
    assert [scored.accuracies for scored in found] == [(0.0, 1.0), (0.25, 0.75), (0.5, 1.0)]
    task = load_task("sum:difficulty=1", split="train")
    assert found[0].example == task[1]


@pytest.mark.parametrize(
    "lines", [[], [{"step": 1, "ids": [NAMES[0]], "accuracies": [0.5]}]], ids=["none", "once"]
)
def test_a_run_without_two_visits_says_what_to_do(
    tmp_path: Path, lines: list[dict[str, Any]]
) -> None:
    with pytest.raises(RecipeError, match=r"no example 2 times or more.*train for more steps"):
        score_run(run_of(tmp_path / "run", lines), "historical-variance")


@pytest.mark.parametrize(
    ("task", "expected"),
    [("sum", False), ("sum+story", False), ("countdown", True), ("sum+countdown", True)],
)
def test_a_task_with_a_grader_of_its_own_is_known(task: str, expected: bool) -> None:
    recipe = parse_recipe(rl_tables(Path("bundled:seedling"), Path("run"), task=task))
    assert isinstance(recipe, RlRecipe)
    assert loses_its_grader(recipe) is expected


def write_recipe(path: Path, tables: dict[str, Any]) -> Path:
    from forethought.toml import to_toml

    path.write_text(to_toml(tables), encoding="utf-8")
    return path


def test_select_trains_scores_and_writes_a_task(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = rl_tables(model, tmp_path / "run", task="sum:difficulty=1,size=6", num_steps=3)
    recipe = write_recipe(tmp_path / "few.toml", tables)
    out = tmp_path / "ranked.jsonl"
    assert main(["data", "select", str(recipe), "--out", str(out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    written = read_lines(tmp_path / "run" / EXAMPLES)
    assert [row["step"] for row in written] == [1, 2, 3]
    assert all(len(row["ids"]) == len(row["accuracies"]) == 4 for row in written)
    assert (said["num_scored"], said["num_kept"]) == (6, 6)
    ranked = read_lines(out)
    assert ranked[0] == said["best"]
    task = load_task("sum:difficulty=1,size=6", split="train")
    questions = {task[i].messages[0]["content"]: task[i].answer for i in range(6)}
    assert {row["question"]: row["answer"] for row in ranked} == questions
    top = tmp_path / "one.jsonl"
    assert main(["data", "select", "--run", str(tmp_path / "run"), "--top=1", f"--out={top}"]) == 0
    assert read_lines(top) == ranked[:1]
    learn = rl_tables(model, tmp_path / "one", task=f"jsonl:{top}", num_steps=2)
    assert main(["train", str(write_recipe(tmp_path / "one.toml", learn)), "--json"]) == 0
    (name,) = {name for row in read_lines(tmp_path / "one" / EXAMPLES) for name in row["ids"]}
    assert name == ranked[0]["id"]


def test_columns_of_a_data_file_are_kept(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "2 + 2?"}]
    row = {"id": "a", "question": messages, "solution": "It is 4. #### 4", "level": 3}
    (tmp_path / "own.jsonl").write_text(json.dumps(row), encoding="utf-8")
    lines = [{"step": step, "ids": ["a"], "accuracies": [0.5 * step]} for step in (1, 2)]
    run = run_of(tmp_path / "run", lines, task=f"jsonl:{tmp_path}/own.jsonl")
    (scored,) = score_run(run, "historical-variance")
    found = scored.row()
    assert (found["question"], found["level"], found["answer"]) == (messages, 3, "4")


MISTAKES = {
    "nothing": ([], "give a recipe to run, or --run"),
    "both": (["few.toml", "--run", "run"], "not both"),
    "by": (["--run", "run", "--by", "luck"], "by='luck' is unknown"),
    "set": (["--run", "run", "--set", "seed=1"], "--set cannot change a run"),
    "out": (["--run", "run", "--out", "nowhere/a.jsonl"], "out='nowhere/a.jsonl'"),
    "no run": (["--run", "."], "is not a run folder"),
    "sft run": (["--run", "sft"], "is of stage 'sft'"),
    "sft recipe": (["sft.toml"], "stage='sft' samples no examples"),
    "too few steps": (["few.toml"], "see the 100 problems of task='sum:size=100' less than 2"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence(
    name: str,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    run_of(Path("run"), [])
    with start_run(parse_recipe(sft_tables(model, Path("sft"))), ["test"]):
        pass
    write_recipe(Path("few.toml"), rl_tables(model, Path("new"), task="sum:size=100"))
    write_recipe(Path("sft.toml"), sft_tables(model, Path("new")))
    arguments, said = MISTAKES[name]
    assert main(["data", "select", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not Path("new").exists()
