"""The rollouts of one engine call, held for all updates that learn from them.

With `num_iterations` passes over a batch in `minibatches` parts, num_iterations * minibatches
updates share the rollouts of one engine call. Every update but the first sees rollouts that an
older policy sampled. A checkpoint between two of them holds the batch, so that a killed run goes on
with the same rollouts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from pydantic import TypeAdapter

from forethought.sampling.draw import stable_seed
from forethought.schema import RlRecipe
from forethought.types import Rollout, RolloutGroup

_FILE = "rollouts.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What the policy said of a rollout before the first update on it, a value a token.

    All have the rollout's length, with 0 where nothing was sampled. `advantages` replaces the
    rollout's own where tokens have different ones. `values` are the critic's, `returns` what it
    learns in their place.
    """

    logprobs: tuple[float, ...]
    advantages: tuple[float, ...] | None = None
    values: tuple[float, ...] | None = None
    returns: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Graded rollouts with their advantages, the group and (if needed) the scores of each.

    `kept` are the numbers of those worth a forward pass.
    """

    rollouts: tuple[Rollout, ...]
    groups: tuple[int, ...]
    kept: frozenset[int]
    scores: tuple[Scores, ...] | None = None


def updates_per_batch(recipe: RlRecipe) -> int:
    return recipe.num_iterations * recipe.minibatches


def is_off_policy(recipe: RlRecipe) -> bool:
    """True where an update may learn from rollouts that an older policy sampled."""
    return updates_per_batch(recipe) > 1 or recipe.select.replay_share > 0


def batch_number(recipe: RlRecipe, step: int) -> int:
    """Which batch of rollouts step 1, 2, ... learns from, counted from 1."""
    return (step - 1) // updates_per_batch(recipe) + 1


def starts_batch(recipe: RlRecipe, step: int) -> bool:
    return (step - 1) % updates_per_batch(recipe) == 0


def ends_batch(recipe: RlRecipe, step: int) -> bool:
    return step % updates_per_batch(recipe) == 0


def hold(
    groups: Sequence[RolloutGroup], kept: Sequence[int], scores: Sequence[Scores] | None = None
) -> Held:
    """All rollouts of `groups` in a row; `kept` and `scores` are of that row."""
    return Held(
        rollouts=tuple(r for group in groups for r in group.rollouts),
        groups=tuple(g for g, group in enumerate(groups) for _ in group.rollouts),
        kept=frozenset(kept),
        scores=None if scores is None else tuple(scores),
    )


def minibatch(held: Held, recipe: RlRecipe, step: int) -> list[int]:
    """The numbers of the rollouts that `step` learns from: whole groups, shuffled every pass."""
    if recipe.minibatches == 1:
        return list(range(len(held.rollouts)))
    iteration, part = divmod((step - 1) % updates_per_batch(recipe), recipe.minibatches)
    groups = list(range(max(held.groups) + 1))
    number = batch_number(recipe, step)
    Random(stable_seed("minibatch", recipe.seed, number, iteration)).shuffle(groups)
    mine = set(groups[part :: recipe.minibatches])
    return [i for i, group in enumerate(held.groups) if group in mine]


def save_held(folder: Path, held: Held | None) -> None:
    """Write the batch that is in use into a checkpoint's folder; nothing when there is none.

    The same batch makes the same bytes: what the clock said of its grades is left out.
    """
    if held is not None:
        content = _ADAPTER.dump_python(held, mode="json", exclude=_CLOCKS)
        content["kept"].sort()
        (folder / _FILE).write_text(json.dumps(content), encoding="utf-8")


def load_held(folder: Path) -> Held | None:
    """What `save_held` wrote, the same bits: JSON's numbers have all digits of a float."""
    path = folder / _FILE
    if not path.exists():
        return None
    return _ADAPTER.validate_python(json.loads(path.read_text(encoding="utf-8")))


_CLOCKS: Any = {"rollouts": {"__all__": {"grade": {"seconds"}}}}
_ADAPTER: TypeAdapter[Held] = TypeAdapter(Held)
