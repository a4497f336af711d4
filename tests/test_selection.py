"""Batches gathered by every method from a model that is made up, and what a resume must bring."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from forethought.config import parse_recipe
from forethought.errors import RecipeError
from forethought.schema import RlRecipe
from forethought.tasks.base import load_task
from forethought.training.filters import has_signal
from forethought.training.selection import (
    Gathered,
    Selection,
    Source,
    gather,
    load_selection,
    num_to_draw,
    save_selection,
)
from forethought.training.text import shuffled_index
from forethought.types import Example, FinishReason, Grade, GradeStatus, Rollout, RolloutGroup
from tiny_runs import rl_tables

SIZE = 24


def source(**select: Any) -> Source:
    tables = rl_tables(Path("m"), Path("r"), prompts_per_step=6, group_size=4, select=select)
    recipe = RlRecipe.model_validate(tables)
    return Source(recipe=recipe, task=load_task("sum:difficulty=2", split="train", size=SIZE))


@dataclass
class Model:
    """Is right on an example with a probability that its place in the task decides."""

    step: int = 0
    calls: list[list[int]] = field(default_factory=list)
    places: list[int] = field(default_factory=list)

    def sample(self, examples: list[Example], first_place: int) -> list[RolloutGroup]:
        self.calls.append([index_of(example) for example in examples])
        self.places.append(first_place)
        return [self.group(example, first_place + i) for i, example in enumerate(examples)]

    def group(self, example: Example, place: int) -> RolloutGroup:
        skill = (index_of(example) % 4) / 3  # 0, 1/3, 2/3, 1
        rng = Random(f"{self.step}/{place}/{example.id}")
        scores = [float(rng.random() < skill) for _ in range(4)]
        rollouts = tuple(self.rollout(example, score) for score in scores)
        return RolloutGroup(example=example, rollouts=rollouts)

    def rollout(self, example: Example, score: float) -> Rollout:
        return Rollout(
            example_id=example.id,
            token_ids=(1, 2),
            sampled_mask=(False, True),
            logprobs=(0.0, -0.1 / 3),
            text="",
            finish_reason=FinishReason.EOS,
            grade=Grade(score=score, status=GradeStatus.CORRECT if score else GradeStatus.WRONG),
            reward=score + 0.1,
            policy_version=self.step - 1,
        )


def index_of(example: Example) -> int:
    return int(example.id.rsplit("/", 1)[1])


def train(start: Selection, steps: range, **select: Any) -> tuple[list[Gathered], Model]:
    """Batches of the steps, one after the other."""
    model, found, state = Model(), [], start
    for step in steps:
        model.step = step
        batch = gather(source(**select), state, step, model.sample)
        found.append(batch)
        state = batch.state
    return found, model


METHODS: dict[str, dict[str, Any]] = {
    "walk": {},
    "greso": {"examples": "greso"},
    "difficulty": {"examples": "difficulty"},
    "dynamic": {"max_batches": 3},
    "replay": {"replay_share": 0.5, "replay_capacity": 9},
    "subset": {"keep_per_group": 2},
    "all": {
        "examples": "greso",
        "max_batches": 4,
        "replay_share": 0.5,
        "replay_capacity": 9,
        "keep_per_group": 2,
    },
}


@pytest.mark.parametrize("name", METHODS)
def test_a_resumed_run_gathers_the_same_batches(name: str, tmp_path: Path) -> None:
    whole, _ = train(Selection(), range(1, 13), **METHODS[name])
    head, _ = train(Selection(), range(1, 8), **METHODS[name])
    save_selection(tmp_path, head[-1].state)
    loaded = load_selection(tmp_path)
    assert loaded == head[-1].state
    tail, _ = train(loaded, range(8, 13), **METHODS[name])
    assert head + tail == whole


@pytest.mark.parametrize("name", METHODS)
def test_a_batch_is_one_of_the_size_asked_for(name: str) -> None:
    batches, model = train(Selection(), range(1, 13), **METHODS[name])
    select = source(**METHODS[name]).recipe.select
    assert len(model.calls) <= len(batches) * select.max_batches
    for batch in batches:
        assert len(batch.learned) == 6 or select.max_batches > 1
        assert 0 < len(batch.learned) <= 6
        siblings = {len(group.rollouts) for group in batch.learned}
        assert siblings == {select.keep_per_group or 4}


def test_without_selection_everything_sampled_is_learned_from_in_the_order_of_the_walk() -> None:
    batches, model = train(Selection(), range(1, 6))
    walk = [shuffled_index(SIZE, 0, position) for position in range(30)]
    assert [index for call in model.calls for index in call] == walk
    assert all(batch.learned == batch.sampled for batch in batches)
    assert all(batch.metrics == {} for batch in batches)
    assert batches[-1].state == Selection(cursor=30)


def test_greso_passes_over_what_taught_nothing() -> None:
    batches, model = train(Selection(), range(1, 60), examples="greso")
    late = [index for call in model.calls[-30:] for index in call]
    plain = [shuffled_index(SIZE, 0, position) for position in range(180)]
    dead = sum(index % 4 in (0, 3) for index in late) / len(late)
    assert sum(index % 4 in (0, 3) for index in plain) / len(plain) == pytest.approx(0.5, abs=0.02)
    assert dead < 0.25
    assert batches[0].metrics == {
        "select/skipped_frac": 0.0,
        "select/p_easy": 0.5,
        "select/p_hard": 0.5,
    }
    assert [b.metrics["select/p_hard"] for b in batches[:5]] == [0.5] * 5  # one epoch: 4 batches
    assert batches[-1].metrics["select/skipped_frac"] > 0.3


def test_difficulty_comes_back_to_what_is_half_right() -> None:
    batches, model = train(Selection(), range(1, 60), examples="difficulty")
    late = [index for call in model.calls[-30:] for index in call]
    assert sum(index % 4 in (0, 3) for index in late) / len(late) < 0.2
    assert all(len(set(call)) == len(call) for call in model.calls)
    assert batches[0].metrics == {"select/expected_failure": 0.5}
    assert batches[3].metrics["select/expected_failure"] != 0.5


def test_dynamic_sampling_goes_on_until_enough_groups_have_signal() -> None:
    batches, model = train(Selection(), range(1, 20), max_batches=10)
    calls = iter(model.calls)
    for batch in batches:
        number = int(batch.metrics["select/batches"])
        drawn = [index for _ in range(number) for index in next(calls)]
        assert drawn == [index_of(group.example) for group in batch.sampled]
        mixed = [group for group in batch.sampled if has_signal(group)]
        assert batch.learned == mixed[:6]
        assert len(batch.learned) == 6 == batch.metrics["select/groups"]
    assert max(batch.metrics["select/batches"] for batch in batches) > 2
    assert model.places[:2] == [0, 6]  # siblings of the second call are drawn from other seeds


def test_dynamic_sampling_stops_at_its_bound() -> None:
    batches, _ = train(Selection(), range(1, 20), max_batches=2)
    assert {batch.metrics["select/batches"] for batch in batches} <= {1.0, 2.0}
    short = [batch for batch in batches if len(batch.learned) < 6]
    assert short
    assert all(has_signal(group) for batch in short for group in batch.learned)


def test_a_batch_without_any_signal_is_still_a_batch() -> None:
    made = source(max_batches=3)
    model = Model()

    def sample(examples: list[Example], first_place: int) -> list[RolloutGroup]:
        groups = model.sample(examples, first_place)
        return [
            replace(g, rollouts=tuple(replace(r, reward=1.0) for r in g.rollouts)) for g in groups
        ]

    batch = gather(made, Selection(), 1, sample)
    assert [len(call) for call in model.calls] == [6, 6, 6]
    assert batch.learned == batch.sampled


def test_how_many_are_drawn_follows_what_came() -> None:
    model = Model(step=1)
    task = load_task("sum:difficulty=2", split="train", size=SIZE)
    mixed, dead = model.rollout(task[0], 1.0), model.rollout(task[0], 0.0)
    good = (0, RolloutGroup(example=task[0], rollouts=(mixed, dead)))
    bad = (0, RolloutGroup(example=task[0], rollouts=(dead, dead)))
    assert num_to_draw([good, good], 2, 32) == 0
    assert num_to_draw([good, good, bad, bad], 6, 32) == 10  # 1.25 * 4 missing / (1/2)
    assert num_to_draw([good, bad], 30, 32) == 32
    assert num_to_draw([bad, bad], 6, 32) == 32


def test_replay_fills_its_share_from_earlier_groups_with_signal() -> None:
    batches, model = train(Selection(), range(1, 20), replay_share=0.5, replay_capacity=9)
    assert batches[0].num_replayed == 0
    assert len(model.calls[0]) == 6
    earlier: list[tuple[Rollout, ...]] = []
    for batch, call in zip(batches, model.calls, strict=True):
        count = batch.num_replayed
        assert len(call) + count == 6
        replayed = batch.learned[len(batch.learned) - count :]
        assert all(group.rollouts in earlier for group in replayed)
        assert all(group.example.id == group.rollouts[0].example_id for group in replayed)
        assert batch.metrics["select/replayed_frac"] == count / 6
        earlier += [group.rollouts for group in batch.sampled if has_signal(group)]
        assert [kept.rollouts for kept in batch.state.buffer] == earlier[-9:]
    assert batches[-1].num_replayed == 3
    assert batches[-1].metrics["select/replay_age"] >= 1


def test_a_task_smaller_than_the_batch_gives_what_it_has() -> None:
    recipe = source(examples="difficulty", max_batches=3).recipe
    small = Source(recipe=recipe, task=load_task("sum:difficulty=2", split="train", size=4))
    model = Model(step=1)
    gather(small, Selection(), 1, model.sample)
    assert sorted(model.calls[0]) == [0, 1, 2, 3]
    assert len(model.calls) == 1


def test_recipes_that_cannot_be_met_are_refused() -> None:
    tables = rl_tables(Path("m"), Path("r"), group_size=4)
    with pytest.raises(RecipeError, match="keep_per_group=5 must be at most group_size=4"):
        parse_recipe(tables | {"select": {"keep_per_group": 5}})
    with pytest.raises(RecipeError, match="replay_share=1"):
        parse_recipe(tables | {"select": {"replay_share": 1.0}})
    with pytest.raises(RecipeError, match="did you mean keep_per_group"):
        parse_recipe(tables | {"select": {"keep_per_groups": 2}})
