"""Selection inside a training run: what is learned from, and that a resume changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import pytest

from forethought.config import parse_recipe
from forethought.run import Run
from forethought.schema import RlRecipe
from forethought.training.algorithms import Aggregation
from forethought.training.backward import backward
from forethought.training.losses import token_weights
from forethought.training.rl import run_rl
from forethought.training.scores import needs_scores, score_rollouts
from forethought.training.stages import start_run
from test_reuse import as_sampled_by
from test_training_units import TOKENIZER, close, gradient, learner_for, rl_recipe, some_rollouts
from tiny_runs import rl_tables, tiny_policy

# Right or wrong, so that some groups of a model of nothing have signal and some have none.
REWARD = """
def mostly_even(completion_ids, **kwargs):
    return [float(2 * sum(t % 2 == 0 for t in ids) > len(ids)) for ids in completion_ids]
"""
SELECT: dict[str, dict[str, Any]] = {
    "walk": {},
    "greso": {"examples": "greso", "max_batches": 3, "replay_share": 0.5, "replay_capacity": 5},
    "difficulty": {"examples": "difficulty", "replay_share": 0.5, "keep_per_group": 2},
    "dynamic": {"max_batches": 3, "keep_per_group": 3},
}
CHANGES: dict[str, dict[str, Any]] = {
    "greso": {"num_iterations": 2, "minibatches": 4},
    "difficulty": {"importance_cap": 2.0},
}


pytestmark = pytest.mark.usefixtures("one_thread")


def recipe_of(model: Path, folder: Path, name: str) -> RlRecipe:
    reward = folder / "reward.py"
    reward.write_text(REWARD)
    tables = rl_tables(
        model,
        folder / "run",
        task="sum:difficulty=1,size=6",
        max_tokens=5,
        group_size=3,
        num_steps=18,
        checkpoint_every=5,
        reward={"parts": {f"{reward}:mostly_even": 1.0}},
        select=SELECT[name],
    )
    recipe = parse_recipe(tables | CHANGES.get(name, {}))
    assert isinstance(recipe, RlRecipe)
    return recipe


class Killed(Exception):
    """Stands for the end of the process."""


def finish(recipe: RlRecipe, *, kill_after: int | None = None) -> tuple[bytes, list[Any]]:
    """The weights and what was logged, without what the clock says."""

    def on_step(step: int, metrics: Mapping[str, float]) -> None:
        if step == kill_after:
            raise Killed

    if kill_after is None:
        with start_run(recipe, ["test"]) as run:
            run_rl(recipe, run)
    else:
        with pytest.raises(Killed), start_run(recipe, ["test"]) as run:
            run_rl(recipe, run, on_step)
        with Run.open(recipe.run_dir) as run:
            run_rl(recipe, run)
    rows = [
        {name: v for name, v in row.items() if "time/" not in name and "per_second" not in name}
        for row in run.metrics()
    ]
    return (run.folder / "model" / "model.safetensors").read_bytes(), rows


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("name", SELECT)
def test_a_killed_run_goes_on_with_the_same_choices(name: str, model: Path, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    whole, rows = finish(recipe_of(model, tmp_path / "whole", name))
    killed, again = finish(recipe_of(model, tmp_path / "killed", name), kill_after=12)
    assert rows == again
    assert whole == killed
    signal = [row["rollout/signal_frac"] for row in rows if "rollout/signal_frac" in row]
    assert min(signal) < 1  # there was something to choose between
    assert all(0 <= row.get("rollout/kept_frac", 0) <= 1 for row in rows)
    logged = {metric for row in rows for metric in row if metric.startswith("select/")}
    select = SELECT[name]
    assert ("select/batches" in logged) == ("max_batches" in select)
    assert ("select/replay_age" in logged) == ("replay_share" in select)
    assert ("select/p_easy" in logged) == (select.get("examples") == "greso")
    assert ("select/expected_failure" in logged) == (select.get("examples") == "difficulty")


def test_dynamic_sampling_counts_everything_that_was_sampled(model: Path, tmp_path: Path) -> None:
    _, rows = finish(recipe_of(model, tmp_path, "dynamic"))
    last = 0.0
    for row in rows:
        sampled, last = row["total/rollouts"] - last, row["total/rollouts"]
        assert sampled >= 4 * 3  # a batch
        assert (sampled > 4 * 3) == (row["select/batches"] > 1)
        assert sampled / 3 * row["rollout/signal_frac"] >= row["select/groups"] or (
            row["rollout/signal_frac"] == 0
        )


def test_replayed_rollouts_are_weighed_against_the_policy_that_sampled_them() -> None:
    before, now = tiny_policy(TOKENIZER, seed=0), tiny_policy(TOKENIZER, seed=1)
    rollouts = as_sampled_by(before, some_rollouts())
    recipe = rl_recipe(select={"replay_share": 0.5}, epsilon=0.1)
    assert not needs_scores(recipe)  # what a rollout carries is all that is needed
    metrics = backward(learner_for(recipe, now), rollouts, range(12))
    found = gradient(now)
    backward(learner_for(rl_recipe(num_iterations=2, epsilon=0.1), now), rollouts, range(12))
    assert close(found, gradient(now))
    backward(learner_for(rl_recipe(), now), rollouts, range(12))
    assert not close(found, gradient(now), 1e-3)
    assert metrics["policy/clipped_low_frac"] > 0


def test_reading_entropies_leaves_the_ratio_of_replayed_rollouts_alone() -> None:
    before, now = tiny_policy(TOKENIZER, seed=0), tiny_policy(TOKENIZER, seed=1)
    rollouts = as_sampled_by(before, some_rollouts())
    recipe = rl_recipe(select={"replay_share": 0.5}, top_entropy_quantile=0.5)
    scores = score_rollouts(learner_for(recipe, now), rollouts, range(12))
    assert [s.logprobs for s in scores] == [r.logprobs for r in rollouts]
    # with a cap the weight makes up for the age: min(now / before, cap) times a ratio of one
    capped = rl_recipe(select={"replay_share": 0.5}, importance_cap=1e6)
    assert needs_scores(capped)
    learner = learner_for(capped, now)
    scores = score_rollouts(learner, rollouts, range(12))
    assert close(scores[0].logprobs, as_sampled_by(now, rollouts)[0].logprobs, 1e-5)
    backward(learner, rollouts, range(12), scores)
    found = gradient(now)
    unclipped = rl_recipe(num_iterations=2, epsilon=1e6, epsilon_high=1e6)
    backward(learner_for(unclipped, now), rollouts, range(12))
    assert close(found, gradient(now), 1e-4)


def test_a_part_without_groups_weighs_nothing() -> None:
    for aggregation in get_args(Aggregation):
        assert token_weights(aggregation, [], 8) == []


def test_the_age_of_a_rollout_is_told_by_the_weights_that_sampled_it(
    model: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(model, tmp_path, "difficulty")
    _, rows = finish(replace_select(recipe, replay_capacity=1))
    ages = [row["select/replay_age"] for row in rows if row["select/replayed_frac"]]
    assert 0 < len(ages) < len(rows)
    assert all(age >= 1 and age == int(age) for age in ages)  # one group, of an earlier step


def replace_select(recipe: RlRecipe, **changes: Any) -> RlRecipe:
    select = recipe.select.model_copy(update=changes)
    return recipe.model_copy(update={"select": select})
