"""A look ahead: it says what training is in for, and training is the same without it."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from forethought.cli.app import main
from forethought.cli.preflight import preflight_lines
from forethought.config import parse_recipe
from forethought.evaluation.report import build_report
from forethought.run import Run
from forethought.schema import RlRecipe
from forethought.tasks.base import load_task
from forethought.toml import to_toml
from forethought.training import preflight, rl
from forethought.training.footprint import Footprint
from forethought.training.learner import build_learner
from forethought.training.preflight import (
    Preflight,
    fly,
    preflight_examples,
    preflight_warnings,
    quantile,
    suggest_max_tokens,
    useful_lengths,
)
from forethought.training.rl_metrics import describe_rollouts
from forethought.training.stages import run_stage, start_run
from forethought.training.text import shuffled_index
from forethought.types import Example, FinishReason, Grade, GradeStatus, Rollout, RolloutGroup
from tiny_runs import EVEN_REWARD, rl_tables, sft_tables

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def tables(model: Path, tmp_path: Path) -> dict[str, Any]:
    """A recipe with a preflight, and with differences between siblings."""
    (tmp_path / "even.py").write_text(EVEN_REWARD)
    reward = {"parts": {f"{tmp_path}/even.py:even": 1.0, "accuracy": 0.0}}
    return rl_tables(model, tmp_path / "run", reward=reward, preflight_problems=3)


def rl_recipe(tables: dict[str, Any]) -> RlRecipe:
    recipe = parse_recipe(tables)
    assert isinstance(recipe, RlRecipe)
    return recipe


def rollout(
    *,
    right: bool,
    length: int,
    reason: FinishReason = FinishReason.EOS,
    reward: float | None = None,
) -> Rollout:
    status = GradeStatus.CORRECT if right else GradeStatus.WRONG
    return Rollout(
        example_id="1",
        token_ids=(1,) * (2 + length),
        sampled_mask=(False,) * 2 + (True,) * length,
        logprobs=(0.0,) * 2 + (-0.5,) * length,
        text="x",
        finish_reason=reason,
        grade=Grade(score=float(right), status=status),
        reward=float(right) if reward is None else reward,
    )


def metrics_of(*groups: list[Rollout]) -> dict[str, float]:
    example = Example(id="1", messages=({"role": "user", "content": "?"},), answer="1")
    return describe_rollouts(
        [RolloutGroup(example=example, rollouts=tuple(g)) for g in groups], 0, 1
    )


# --- what it says of rollouts -------------------------------------------------------------------

RIGHT, WRONG = rollout(right=True, length=5), rollout(right=False, length=5)


@pytest.mark.parametrize(
    ("groups", "names"),
    [
        ([[RIGHT, WRONG], [WRONG, WRONG]], []),
        ([[RIGHT, RIGHT], [RIGHT, RIGHT]], ["TooEasy"]),
        ([[WRONG, WRONG], [WRONG, WRONG]], ["TooHard"]),
        ([[WRONG, replace(WRONG, reward=0.1)]], ["TooHard"]),  # the format alone can be learned
        ([[RIGHT, RIGHT], [WRONG, WRONG]], ["NoSignal"]),
        ([[RIGHT, replace(WRONG, finish_reason=FinishReason.LENGTH)]], ["Truncation"]),
    ],
)
def test_a_task_that_can_teach_nothing_is_named(
    groups: list[list[Rollout]], names: list[str]
) -> None:
    recipe = rl_recipe(rl_tables(Path("m"), Path("r")))
    found = preflight_warnings(metrics_of(*groups), recipe)
    assert [w.name for w in found] == names
    assert all(w.step == 0 and "; likely " in w.text for w in found)


def test_references_that_cannot_be_read_are_not_called_a_hard_task() -> None:
    unknown = Grade(score=None, status=GradeStatus.UNPARSABLE_GOLD)
    group = [replace(WRONG, grade=unknown, reward=None)] * 4
    found = preflight_warnings(metrics_of(group), rl_recipe(rl_tables(Path("m"), Path("r"))))
    assert [w.name for w in found if w.name != "TooHard"] == ["UnreadableReferences"]


@pytest.mark.parametrize(
    ("truncated", "p95", "room", "expected"),
    [
        (0.02, 95, None, None),  # hardly anything is cut off
        (0.30, 40, None, None),  # right ones are short: the others ramble
        (0.30, 90, None, 200),
        (0.30, None, None, 200),  # not one ended
        (0.30, 90, 150, 150),
        (0.30, 90, 100, None),  # the context is full
    ],
)
def test_more_tokens_are_suggested_where_right_answers_would_use_them(
    truncated: float, p95: int | None, room: int | None, expected: int | None
) -> None:
    found = suggest_max_tokens(100, truncated_frac=truncated, length_p95=p95, room=room)
    assert found == expected


def test_lengths_are_those_of_right_answers_or_else_of_what_ended() -> None:
    cut = rollout(right=True, length=9, reason=FinishReason.LENGTH)
    long = rollout(right=False, length=8)
    assert useful_lengths([RIGHT, long, cut]) == [5]
    assert useful_lengths([long, cut]) == [8]
    assert useful_lengths([cut]) == []


@given(st.lists(st.integers(1, 500), min_size=1), st.floats(0.01, 1.0))
def test_a_quantile_is_a_value_that_the_share_does_not_exceed(
    values: list[int], share: float
) -> None:
    values = sorted(values)
    found = quantile(values, share)
    assert sum(v <= found for v in values) >= share * len(values) - 1e-9
    smaller = [v for v in values if v < found]
    assert len(smaller) < share * len(values) + 1e-9


# --- what it does -------------------------------------------------------------------------------


def flight(tables: dict[str, Any], folder: Path) -> Preflight:
    recipe = rl_recipe(tables | {"run_dir": str(folder)})
    with start_run(recipe, ["test"]) as run:
        learner = build_learner(recipe, run)
        learner.engine.update_weights(learner.policy, 0)
        before = [p.clone() for p in learner.policy.parameters()]
        found = fly(learner)
        assert all(p.grad is None for p in learner.policy.parameters())
        assert all(map(torch.equal, before, learner.policy.parameters()))
        assert not any(optimizer.state for optimizer in learner.optimizers)
        assert learner.state.held is None and not learner.watch._statuses
    return found


def test_it_is_the_same_every_time_but_for_the_clock(
    tables: dict[str, Any], tmp_path: Path
) -> None:
    first, second = (flight(tables, tmp_path / name) for name in ("a", "b"))
    clock = {"seconds": second.seconds, "memory": second.memory}
    assert replace(first, **clock) == second  # type: ignore[arg-type]
    assert first.signal_frac == 1.0 and first.sampler_gap is not None
    assert first.pass_at.keys() == {1, 2, 4} and first.pass_at[1] == first.accuracy
    assert first.seconds.total > first.seconds.sample > 0 and first.seconds.step > 0
    assert first.memory.update_bytes > 0


def test_its_problems_are_different_ones_of_the_whole_task(tables: dict[str, Any]) -> None:
    task = load_task("sum:size=50", split="train")
    recipe = rl_recipe(tables | {"preflight_problems": 20, "prompts_per_step": 30})
    ids = [e.id for e in preflight_examples(task, recipe)]
    assert len(set(ids)) == 20
    assert ids != [task[shuffled_index(50, recipe.seed, i)].id for i in range(20)]
    few = rl_recipe(tables | {"preflight_problems": 20})
    assert len(preflight_examples(task, few)) == few.prompts_per_step  # never more than a step
    small = load_task("sum:size=2", split="train")
    assert [e.id for e in preflight_examples(small, recipe)].count(small[0].id) == 10


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize(
    "changes", [{}, {"num_iterations": 2}, {"kl_coefficient": 0.1}, {"estimator": "ppo"}]
)
def test_training_is_the_same_bits_with_and_without_it(
    changes: dict[str, Any], tables: dict[str, Any], tmp_path: Path
) -> None:
    left = []
    for problems in (0, 3):
        folder = tmp_path / str(problems)
        named = {"run_dir": str(folder), "preflight_problems": problems, "eval_problems": 2}
        recipe = parse_recipe(tables | changes | named)
        with start_run(recipe, ["test"]) as run:
            run_stage(recipe, run)
            rows = [
                {n: v for n, v in row.items() if "time/" not in n and "_per_second" not in n}
                for row in run.metrics()
            ]
        assert (folder / "preflight.json").exists() is bool(problems)
        texts = (folder / "transcripts.jsonl").read_bytes()
        left.append((rows, texts, (folder / "model" / "model.safetensors").read_bytes()))
    assert left[0] == left[1]


def test_a_batch_that_is_not_finite_is_a_warning(
    tables: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise preflight.LossNotFinite(rl.Fault(cause="loss"))

    monkeypatch.setattr(preflight, "backward", refuse)
    found = flight(tables, tmp_path / "run")
    assert "NonFinite" in [w.name for w in found.warnings]


def test_too_little_memory_is_a_warning_that_names_the_knob(
    tables: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forethought.training.footprint.free_bytes", lambda device: 1000)
    found = flight(tables, tmp_path / "run")
    [short] = [w for w in found.warnings if w.name == "MemoryShort"]
    assert "lower max_batch_tokens" in short.text


def test_a_step_shares_its_sampling_among_the_updates_of_a_batch(tables: dict[str, Any]) -> None:
    """3 of 4 groups; every part takes a second, and warming up two."""
    for changes, expected in (
        ({}, 4 / 3 * (1 + 1 + 1)),
        ({"num_iterations": 2}, 4 / 3 * (1 / 2 + 1 / 2 + 1)),
        ({"minibatches": 2}, 4 / 3 * (1 / 2 + 1 / 2 + 1 / 2)),
    ):
        recipe = rl_recipe(tables | changes)
        found = preflight._seconds(recipe, 3, -2.0, [0.0, 1.0, 2.0, 3.0])
        assert found.step == pytest.approx(expected)
        assert (found.sample, found.grade, found.update, found.total) == (1, 1, 1, 5)


# --- what is shown ------------------------------------------------------------------------------


def recipe_file(folder: Path, tables: dict[str, Any]) -> str:
    path = folder / "recipe.toml"
    path.write_text(to_toml(tables))
    return str(path)


def test_train_shows_it_keeps_it_and_warns(
    tables: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = recipe_file(tmp_path, tables)
    assert main(["train", path]) == 0
    out, err = capfd.readouterr()
    assert err.startswith("Preflight: 3 groups of sum:difficulty=1, 4 samples each")
    assert "warning: Truncation: " in err and "trained in" in out
    content = json.loads((tmp_path / "run" / "preflight.json").read_text())
    assert content["num_groups"] == 3
    assert content["memory"]["update_bytes"] > 0
    assert "Truncation" in [w["name"] for w in content["warnings"]]
    page = build_report(tmp_path / "run").read_text()
    assert "Truncation (step 0): " in page


def test_json_has_it_as_a_key_and_a_resumed_run_keeps_its_own(
    tables: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = recipe_file(tmp_path, tables)
    assert main(["train", path, "--json"]) == 0
    found = json.loads(capfd.readouterr().out)["preflight"]
    assert found == json.loads((tmp_path / "run" / "preflight.json").read_text())
    assert main(["train", "--resume", str(tmp_path / "run"), "--json"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["preflight"] == found and "Preflight" not in err


def test_check_prints_it_and_leaves_nothing(
    tables: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = recipe_file(tmp_path, tables)
    before = sorted(p.name for p in tmp_path.iterdir())
    assert main(["train", path, "--check"]) == 0
    out, err = capfd.readouterr()
    assert out.splitlines()[0].startswith("Preflight: 3 groups") and "Truncation" in err
    assert main(["train", path, "--check", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["preflight"]["group_size"] == 4
    left = {p.name for p in tmp_path.iterdir()} - {"__pycache__"}  # of the reward's file
    assert sorted(left) == before


def test_check_of_another_stage_says_that_the_recipe_is_sound(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = recipe_file(tmp_path, sft_tables(model, tmp_path / "run"))
    assert main(["train", path, "--check"]) == 0
    assert capfd.readouterr().out == "the recipe is sound; stage='sft' has nothing to sample\n"
    assert main(["train", path, "--check", "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == {"preflight": None}
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{recipe}", "--check", "--set", "preflight_problems=0"], "preflight_problems=0 leaves"),
        (["{recipe}", "--check", "--set", "task=summ"], "did you mean sum?"),
        (["--resume", "{recipe}", "--check"], "--check is for a recipe"),
    ],
)
def test_mistakes_with_check_end_in_one_sentence(
    arguments: list[str],
    words: str,
    tables: dict[str, Any],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = recipe_file(tmp_path, tables)
    assert main(["train", *[a.replace("{recipe}", path) for a in arguments]]) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and words in err


def test_the_stage_of_a_pipeline_has_its_own(
    model: Path, tmp_path: Path, tables: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    shared = ("run_dir", "model")
    stages = {
        "sft": {
            k: v for k, v in sft_tables(model, tmp_path, num_steps=2).items() if k not in shared
        },
        "rl": {k: v for k, v in tables.items() if k not in shared} | {"num_steps": 2},
    }
    whole = {"stage": "pipeline", "run_dir": str(tmp_path / "run"), "model": str(model)}
    path = recipe_file(tmp_path, whole | {"order": ["sft", "rl"]} | stages)
    assert main(["train", path, "--json"]) == 0
    found = json.loads(capfd.readouterr().out)["preflight"]
    assert found == json.loads((tmp_path / "run" / "2-rl" / "preflight.json").read_text())
    assert main(["train", path, "--check"]) == 0
    assert "stage='sft' has nothing to sample" in capfd.readouterr().out


def test_every_line_says_what_is_known_and_no_more(tables: dict[str, Any], tmp_path: Path) -> None:
    found = flight(tables, tmp_path / "run")
    memory = Footprint(
        gradient_bytes=1 << 30, optimizer_bytes=2 << 30, activation_bytes=0, free_bytes=None
    )
    found = replace(
        found,
        accuracy=0.25,
        pass_at={1: 0.25, 4: 2 / 3},
        unread_frac=0.0,
        length_p95=7,
        suggested_max_tokens=16,
        truncated_frac=0.5,
        memory=memory,
    )
    lines = dict(line.split(maxsplit=1) for line in preflight_lines(found)[1:])
    assert lines["right"] == "25% of samples, pass@4 67%"
    assert lines["length"].endswith("50% cut off, 95% of right ones within 7, try max_tokens=16")
    assert lines["memory"] == "3.0 GiB for an update, unknown free"
    blank = preflight_lines(
        replace(found, accuracy=None, length_p95=None, suggested_max_tokens=None)
    )
    assert "unknown: nothing could be graded" in blank[1] and blank[3].endswith("50% cut off")


def test_the_quickstart_leaves_it_out_and_its_recipe_has_it() -> None:
    from forethought.cli.quickstart import _new_recipe
    from forethought.cli.recipes import find_recipe
    from forethought.config import load_recipe

    recipe = load_recipe(find_recipe("quickstart"), [])
    assert isinstance(recipe, RlRecipe) and recipe.preflight_problems == 8
    new = _new_recipe(0, Path("nowhere"), [])
    assert isinstance(new, RlRecipe) and new.preflight_problems == 0
    with_it = _new_recipe(0, Path("nowhere"), ["preflight_problems=2"])
    assert isinstance(with_it, RlRecipe) and with_it.preflight_problems == 2


def test_a_killed_run_of_no_steps_looks_ahead_again(tables: dict[str, Any], tmp_path: Path) -> None:
    recipe = parse_recipe(tables)
    with start_run(recipe, ["test"]) as run:
        run.write_json("preflight.json", {"num_groups": 99})
    with Run.open(tmp_path / "run") as run:
        assert parse_recipe(tomllib.loads(run.recipe_text)) == recipe
        heard: list[Preflight] = []
        run_stage(recipe, run, None, heard.append)
    assert [p.num_groups for p in heard] == [3]
    assert json.loads((tmp_path / "run" / "preflight.json").read_text())["num_groups"] == 3
