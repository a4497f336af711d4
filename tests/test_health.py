"""Named warnings: raised by what goes wrong, once, and by nothing else."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forethought.cli.console import show_warnings
from forethought.config import parse_recipe
from forethought.evaluation.report import build_report
from forethought.run import Run
from forethought.schema import RecipeBase
from forethought.training.health import warnings_of, watched
from forethought.training.history import WINDOW, History
from forethought.training.symptoms import symptoms_of
from tiny_runs import rl_tables, sft_tables

# What a step of a run that learns looks like.
HEALTHY = {
    "reward/mean": 0.5,
    "reward/std": 0.4,
    "rollout/signal_frac": 0.6,
    "rollout/ungraded_frac": 0.0,
    "rollout/length_mean": 40.0,
    "rollout/truncated_frac": 0.01,
    "grade/correct_frac": 0.5,
    "grade/no_answer_frac": 0.02,
    "grade/unclosed_think_frac": 0.01,
    "grade/unparsable_gold_frac": 0.0,
    "grade/timeout_frac": 0.0,
    "grade/error_frac": 0.0,
    "policy/entropy": 0.2,
    "policy/sampler_gap": 0.001,
}
DEAD = {"rollout/signal_frac": 0.0, "reward/std": 0.0}
# What each warning needs to be raised, in the steps after ten healthy ones.
SICK: dict[str, dict[str, float]] = {
    "TooEasy": {**DEAD, "grade/correct_frac": 0.99, "reward/mean": 0.99},
    "TooHard": {**DEAD, "grade/correct_frac": 0.01},
    "NoSignal": {**DEAD, "grade/correct_frac": 0.5},
    "EntropyCollapse": {"policy/entropy": 0.005, "rollout/signal_frac": 0.1},
    "RewardCollapse": {"grade/correct_frac": 0.2, "reward/mean": 0.2},
    "RunawayLength": {"rollout/length_mean": 90.0},
    "Truncation": {"rollout/truncated_frac": 0.4},
    "UnreadAnswers": {"grade/no_answer_frac": 0.4, "grade/unclosed_think_frac": 0.15},
    "UnreadableReferences": {"grade/unparsable_gold_frac": 0.2, "rollout/ungraded_frac": 0.2},
    "Ungraded": {"rollout/ungraded_frac": 0.2},
    "GraderTimeouts": {"grade/timeout_frac": 0.05},
    "GraderErrors": {"grade/error_frac": 0.05},
    "SamplerGap": {"policy/sampler_gap": 0.1},
    "CappedWeights": {"policy/capped_frac": 0.1},
    "KlExplosion": {"policy/kl": 0.8},
}
BEGINNING = {"KlExplosion": {"policy/kl": 0.01}}


def recipe_of(**changes: Any) -> RecipeBase:
    recipe = parse_recipe(rl_tables(Path("m"), Path("r"), **{"max_tokens": 100} | changes))
    assert isinstance(recipe, RecipeBase)
    return recipe


def history_of(*parts: tuple[int, dict[str, float]]) -> list[dict[str, Any]]:
    """(count, changes to a healthy step) in a row, as rows of metrics.jsonl."""
    steps = [changes for count, changes in parts for _ in range(count)]
    return [{"step": i, **HEALTHY, **changes} for i, changes in enumerate(steps, start=1)]


@pytest.mark.parametrize("name", SICK)
def test_what_goes_wrong_is_named_once_with_numbers_cause_and_knob(name: str) -> None:
    sick = SICK[name]
    rows = history_of((10, BEGINNING.get(name, {})), (20, sick))
    found = warnings_of(rows, recipe_of())
    expected = {name} | ({"RewardCollapse"} if name == "TooHard" else set())
    assert sorted(w.name for w in found) == sorted(expected)  # no other, none twice
    (warning,) = [w for w in found if w.name == name]
    assert 10 < warning.step <= 20
    seen, _, advice = warning.text.partition("; likely ")
    assert (name == "NoSignal" or any(c.isdigit() for c in seen)) and ": " in advice
    assert "\n" not in warning.text


def test_every_symptom_is_tried() -> None:
    assert [s.name for s in symptoms_of(recipe_of())] == list(SICK)


@pytest.mark.parametrize("name", SICK)
def test_two_odd_steps_raise_nothing(name: str) -> None:
    """Of what is far off: the windows' means stay within bounds."""
    slight = {key: HEALTHY.get(key, 0.0) * 0.8 + value * 0.2 for key, value in SICK[name].items()}
    rows = history_of((10, BEGINNING.get(name, {})), (2, slight), (10, BEGINNING.get(name, {})))
    assert warnings_of(rows, recipe_of()) == []


def test_a_run_that_learns_and_masters_its_task_late_is_left_alone() -> None:
    """The shape of the quickstart: entropy falls to a seventh while accuracy rises to 0.95."""
    rows = [
        {
            "step": i,
            **HEALTHY,
            "policy/entropy": 0.03 + 0.17 * 0.95**i,
            "grade/correct_frac": 0.95 - 0.7 * 0.93**i,
            "reward/mean": 1.0 - 0.7 * 0.93**i,
            "rollout/signal_frac": 0.4 + 0.5 * 0.95**i,
            "rollout/length_mean": 36 - 20 * 0.8**i,
            "grade/no_answer_frac": 0.6 * 0.9**i,
        }
        for i in range(1, 91)
    ]
    assert warnings_of(rows, recipe_of()) == []


def test_small_groups_of_a_good_model_seldom_differ_and_that_is_no_collapse() -> None:
    """1 - 0.88^4 - 0.12^4 = 0.4 of groups would differ if all problems were alike."""
    near = {"policy/entropy": 0.015, "grade/correct_frac": 0.88, "reward/mean": 0.95}
    for signal, expected in ((0.28, []), (0.18, ["EntropyCollapse"])):
        rows = history_of((10, {}), (20, near | {"rollout/signal_frac": signal}))
        found = warnings_of(rows, recipe_of(group_size=4))
        assert [w.name for w in found] == expected


def test_a_model_that_learns_to_box_its_answer_is_not_told_to() -> None:
    rows = history_of(*[(1, {"grade/no_answer_frac": 0.95 - 0.01 * i}) for i in range(30)])
    assert warnings_of(rows, recipe_of()) == []


def test_cut_off_thoughts_are_truncation_and_nothing_else() -> None:
    sick = {"rollout/truncated_frac": 0.9, "grade/unclosed_think_frac": 0.9}
    assert [w.name for w in warnings_of(history_of((20, sick)), recipe_of())] == ["Truncation"]


def test_a_baseline_of_the_whole_step_needs_no_difference_between_siblings() -> None:
    rows = history_of((20, {"rollout/signal_frac": 0.0, "grade/correct_frac": 0.99}))
    assert warnings_of(rows, recipe_of(estimator="reinforce")) == []
    rows = history_of((20, {**DEAD, "grade/correct_frac": 0.99}))
    assert [w.name for w in warnings_of(rows, recipe_of(estimator="reinforce"))] == ["TooEasy"]


def test_a_reward_that_pays_for_no_answer_is_not_called_easy_or_hard() -> None:
    reward = {"parts": {"format": 1.0}}
    for right in (0.0, 0.99):
        rows = history_of((20, {**DEAD, "grade/correct_frac": right}))
        assert [w.name for w in warnings_of(rows, recipe_of(reward=reward))] == ["NoSignal"]


def test_a_gap_that_is_weighed_may_be_larger() -> None:
    sick = {"policy/sampler_gap": 0.16, "policy/capped_frac": 0.01}  # int8 of smollm2-135m
    assert warnings_of(history_of((20, sick)), recipe_of()) == []
    sick["policy/sampler_gap"] = 0.4
    assert [w.name for w in warnings_of(history_of((20, sick)), recipe_of())] == ["SamplerGap"]


def test_updates_on_held_rollouts_may_move_away_from_the_sampler() -> None:
    rows = history_of((20, {}))
    for row in rows[1::2]:  # every second update reuses the rollouts of the one before
        row["policy/sampler_gap"] = 0.5
        del row["rollout/signal_frac"]
    assert warnings_of(rows, recipe_of()) == []
    rows = history_of((20, {"policy/sampler_gap": 0.5}))
    assert warnings_of(rows, recipe_of(select={"replay_share": 0.5})) == []


def test_a_loss_that_climbs_is_named_in_supervised_stages() -> None:
    recipe = parse_recipe(sft_tables(Path("m"), Path("r")))
    assert isinstance(recipe, RecipeBase)
    falls = [{"step": i, "loss/mean": 3.0 / i} for i in range(1, 30)]
    assert warnings_of(falls, recipe) == []
    climbs = [*falls[:9], *({"step": i, "loss/mean": i / 2} for i in range(10, 30))]
    assert [w.name for w in warnings_of(climbs, recipe)] == ["RisingLoss"]


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from([*HEALTHY, "policy/kl", "policy/capped_frac"]),
            st.none() | st.floats(-10, 1000),
            max_size=8,
        ),
        max_size=30,
    )
)
def test_any_metrics_are_read_and_the_past_is_never_rewritten(rows: list[dict[str, Any]]) -> None:
    """What a run was told does not depend on what came later: so a resume raises the same."""
    rows = [{"step": i, **row} for i, row in enumerate(rows)]
    whole = warnings_of(rows, recipe_of())
    assert len({w.name for w in whole}) == len(whole)
    for end in range(len(rows)):
        assert warnings_of(rows[:end], recipe_of()) == [w for w in whole if w.step < end]


@given(st.lists(st.none() | st.floats(-100, 100), max_size=3 * WINDOW))
def test_windows_are_means_of_the_values_that_there_are(values: list[float | None]) -> None:
    history = History([{} if value is None else {"a": value} for value in values])
    known = [value for value in values if value is not None]
    windows = [known[i : i + WINDOW] for i in range(len(known) - WINDOW + 1)]
    if not windows:
        assert history.first("a") is history.last("a") is history.best("a") is None
        return
    means = [sum(window) / WINDOW for window in windows]
    assert history.first("a") == pytest.approx(means[0])
    assert history.last("a") == pytest.approx(means[-1])
    assert history.best("a") == pytest.approx(max(means))
    assert history.last("b") is None


# --- in a run -----------------------------------------------------------------------------------


def new_run(folder: Path) -> Run:
    return Run.create(folder, stage="rl", recipe_text="", seed=0, command=["test"])


def feed(run: Run, rows: list[dict[str, Any]]) -> None:
    look = watched(run, recipe_of(), None)
    for row in rows:
        metrics = {name: value for name, value in row.items() if name != "step"}
        run.log(row["step"], metrics)
        look(row["step"], metrics)


def test_a_warning_is_written_down_and_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = history_of((10, {}), (10, SICK["Truncation"]))
    with new_run(tmp_path / "run") as run, caplog.at_level(logging.WARNING, "forethought"):
        feed(run, rows)
        lines = (run.folder / "warnings.jsonl").read_text().splitlines()
    (found,) = warnings_of(rows, recipe_of())
    assert [json.loads(line) for line in lines] == [
        {"step": found.step, "name": "Truncation", "text": found.text}
    ]
    assert [r.getMessage() for r in caplog.records] == [f"Truncation: {found.text}"]


@pytest.mark.parametrize("checkpoint", [8, 11, 14, 18])
def test_a_resumed_run_raises_what_an_unbroken_one_would_have(
    checkpoint: int, tmp_path: Path
) -> None:
    rows = history_of((10, {}), (3, {"rollout/truncated_frac": 0.9}), (7, SICK["GraderErrors"]))
    with new_run(tmp_path / "whole") as run:
        feed(run, rows)
        whole = (run.folder / "warnings.jsonl").read_text()
    assert whole.count("\n") == 2
    with new_run(tmp_path / "run") as run:
        feed(run, rows[:19])  # killed
        run.truncate_metrics(checkpoint)
        feed(run, rows[checkpoint:])
        assert (run.folder / "warnings.jsonl").read_text() == whole


def test_a_warning_is_one_line_on_stderr_while_it_is_shown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logger = logging.getLogger("forethought")
    before = list(logger.handlers)
    with show_warnings():
        logger.warning("%s: %s", "TooHard", "[red]x[/red] \x1b[2J" + "y" * 300)
    assert logger.handlers == before
    assert capsys.readouterr().err == "warning: TooHard: [red]x[/red] [2J" + "y" * 300 + "\n"


def test_the_report_begins_with_the_warnings(tmp_path: Path) -> None:
    with new_run(tmp_path / "run") as run:
        feed(run, history_of((20, SICK["Truncation"] | {"rollout/length_mean": 1.0})))
        run.warn(3, "<b>", "")
    page = build_report(tmp_path / "run").read_text()
    assert "Truncation (step 5): 40% of completions were cut off" in page
    assert "<b>" not in page.partition("<body>")[2].partition("<main>")[0]
