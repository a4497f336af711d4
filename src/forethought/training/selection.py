"""Which examples a batch is sampled from, and which of its groups are learned from.

`gather` is the story: draw, sample, see what came, draw again while too few groups have signal
(dynamic sampling, DAPO, Yu et al. 2025, arXiv 2503.14476), add replayed groups, keep the siblings
that vary most. What it remembers is a `Selection`, frozen; every decision is a pure function
of that, the seed and the number of the batch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

from pydantic import TypeAdapter

from forethought.schema import RlRecipe
from forethought.training.difficulty import (
    FailureRates,
    bucket_of,
    count_failures,
    draw_near_half,
    failure_rate,
)
from forethought.training.filters import has_signal
from forethought.training.greso import Greso, adjust, count_visits, kind_of, walk_past
from forethought.training.replay import (
    Kept,
    draw_kept,
    mean_age,
    num_replayed,
    push,
)
from forethought.training.subset import keep_most_varied
from forethought.training.text import shuffled_index
from forethought.types import Example, RolloutGroup, Task

# Samples and grades the examples; the number is that of examples sampled before in this batch.
Sample = Callable[[list[Example], int], list[RolloutGroup]]
Indexed = Sequence[tuple[int, RolloutGroup]]  # with the index of its example in the task

_FILE = "selection.json"
_SPARE = 1.25  # of examples drawn to fill a batch, as in GRESO's adaptive batch size


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What is remembered from batch to batch. `cursor` is where the shuffled walk stands."""

    cursor: int = 0
    greso: Greso = field(default_factory=Greso)
    history: FailureRates = field(default_factory=FailureRates)
    buffer: tuple[Kept, ...] = ()


def save_selection(folder: Path, state: Selection) -> None:
    """Write the state into a checkpoint's folder; the same state makes the same bytes."""
    content = json.dumps(_ADAPTER.dump_python(state, mode="json", exclude=_CLOCKS))
    (folder / _FILE).write_text(content, encoding="utf-8")


def load_selection(folder: Path) -> Selection:
    """What `save_selection` wrote, the same bits: JSON's numbers have all digits of a float."""
    return _ADAPTER.validate_python(json.loads((folder / _FILE).read_text(encoding="utf-8")))


# what the clock said of grades
_CLOCKS: Any = {"buffer": {"__all__": {"rollouts": {"__all__": {"grade": {"seconds"}}}}}}
_ADAPTER: TypeAdapter[Selection] = TypeAdapter(Selection)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where examples come from, and how. `buckets` saves looking up the same example again."""

    recipe: RlRecipe
    task: Task
    buckets: dict[int, str] = field(default_factory=dict)

    def bucket(self, index: int) -> str:
        if index not in self.buckets:
            self.buckets[index] = bucket_of(self.task[index])
        return self.buckets[index]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """One batch: all groups sampled for it, those learned from, and the state after it.

    The last `num_replayed` of `learned` are of earlier batches.
    """

    sampled: list[RolloutGroup]
    learned: list[RolloutGroup]
    num_replayed: int
    metrics: dict[str, float]
    state: Selection


def gather(source: Source, state: Selection, number: int, sample: Sample) -> Gathered:
    """Batch 1, 2, ... with as many calls of `sample` as `select.max_batches` allows."""
    recipe, select = source.recipe, source.recipe.select
    rng = Random(f"{recipe.seed}/replay/{number}")
    count = num_replayed(state.buffer, select.replay_share, recipe.prompts_per_step)
    kept = draw_kept(state.buffer, rng=rng, count=count)
    wanted = recipe.prompts_per_step - count
    sampled: list[tuple[int, RolloutGroup]] = []
    walked, num_calls, num_drawn = state, 0, wanted
    while num_drawn and num_calls < select.max_batches:
        indices, walked = draw_indices(source, walked, number, num_drawn, sampled)
        if not indices:  # every example is in the batch
            break
        groups = sample([source.task[i] for i in indices], len(sampled))
        sampled += zip(indices, groups, strict=True)
        num_calls += 1
        num_drawn = num_to_draw(sampled, wanted, recipe.prompts_per_step)
    fresh = [group for _, group in sampled]
    if select.max_batches > 1:
        fresh = [group for group in fresh if has_signal(group)][:wanted] or fresh
    replayed = [RolloutGroup(example=source.task[k.index], rollouts=k.rollouts) for k in kept]
    learned = fresh + replayed
    if select.keep_per_group is not None:
        learned = [keep_most_varied(group, select.keep_per_group) for group in learned]
    metrics = _describe_draws(source, state, walked, sampled)
    if select.max_batches > 1:
        metrics |= {"select/batches": float(num_calls), "select/groups": float(len(learned))}
    if select.replay_share:
        version = sampled[0][1].rollouts[0].policy_version
        metrics |= {
            "select/replayed_frac": len(kept) / len(learned),
            "select/replay_age": mean_age(kept, version),
        }
    return Gathered(
        sampled=[group for _, group in sampled],
        learned=learned,
        num_replayed=count,
        metrics=metrics,
        state=observe(source, walked, sampled),
    )


def draw_indices(
    source: Source, state: Selection, number: int, count: int, sampled: Indexed = ()
) -> tuple[list[int], Selection]:
    """`count` indices of examples, and the state after the draw. `sampled` is of the same batch."""
    recipe, size = source.recipe, len(source.task)
    if recipe.select.examples == "difficulty":
        indices = draw_near_half(
            state.history,
            source.bucket,
            size=size,
            rng=Random(f"{recipe.seed}/difficulty/{number}/{len(sampled)}"),
            count=count,
            temperature=recipe.select.difficulty_temperature,
            taken={index for index, _ in sampled},
        )
        return indices, state
    if recipe.select.examples == "greso":
        indices, cursor = walk_past(
            state.greso, size=size, seed=recipe.seed, cursor=state.cursor, count=count
        )
        return indices, replace(state, cursor=cursor)
    indices = [shuffled_index(size, recipe.seed, state.cursor + i) for i in range(count)]
    return indices, replace(state, cursor=state.cursor + count)


def num_to_draw(sampled: Indexed, wanted: int, most: int) -> int:
    """How many examples to sample until `wanted` groups have signal, 0 when they do.

    1.25 * missing / (share of groups with signal so far), at most `most` (GRESO, arXiv 2506.02177).
    """
    num_mixed = sum(has_signal(group) for _, group in sampled)
    missing = wanted - num_mixed
    if missing <= 0:
        return 0
    return min(most, math.ceil(_SPARE * missing * len(sampled) / num_mixed)) if num_mixed else most


def observe(source: Source, state: Selection, sampled: Indexed) -> Selection:
    """The state after a batch's groups; only what the recipe makes use of is kept."""
    select = source.recipe.select
    if select.examples == "greso":
        kinds = [(index, kind_of(group)) for index, group in sampled]
        greso = count_visits(state.greso, kinds)
        if state.cursor > len(source.task):  # before, nothing could be skipped
            greso = adjust(greso, [kind for _, kind in kinds], select.target_dead_share)
        state = replace(state, greso=greso)
    if select.examples == "difficulty":
        seen = [(index, source.bucket(index), group) for index, group in sampled]
        state = replace(state, history=count_failures(state.history, seen))
    if select.replay_share:
        buffer = push(state.buffer, sampled, select.replay_capacity)
        state = replace(state, buffer=buffer)
    return state


def _describe_draws(
    source: Source, before: Selection, after: Selection, sampled: Indexed
) -> dict[str, float]:
    """What the choice of examples did: `before` and `after` are the states around all draws."""
    method = source.recipe.select.examples
    if method == "greso":
        walked = after.cursor - before.cursor
        return {
            "select/skipped_frac": 1 - len(sampled) / walked,
            "select/p_easy": before.greso.p_easy,
            "select/p_hard": before.greso.p_hard,
        }
    if method == "difficulty":
        rates = [failure_rate(before.history, i, source.bucket(i)) for i, _ in sampled]
        return {"select/expected_failure": fmean(rates)}
    return {}
