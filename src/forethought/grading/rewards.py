r"""Rewards for training: named parts, each logged alone, made into one number.

A part is built in (`built_in_rewards`) or the user's own function, named by
`path/to/file.py:function` or `package.module:function` and called by the convention that its
parameters show (`conventions`). A None means "cannot be known": never 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from statistics import fmean
from typing import Literal

from forethought.errors import RewardError
from forethought.grading.built_in_rewards import BUILT_IN
from forethought.grading.reward_batch import RewardBatch, RewardFunction
from forethought.grading.user_rewards import adapt, load_function
from forethought.schema_tables import Reward
from forethought.types import Example, Grade, GradeStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardPart:
    """One part of the reward: `function` gives one number (or None) per completion of a batch.

    With `required`, a None from this part makes the whole reward None; without, the part is left
    out for that completion. A part of weight 0 is computed and logged, and changes nothing.
    `neutral` is the value that leaves a product as it is: 1, or 0 for a penalty.
    """

    name: str
    weight: float
    function: RewardFunction
    required: bool = False
    neutral: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardResult:
    """The reward of one completion, None when ungraded, and what each part said before weights.

    Metrics that a user's function logged stand among `parts`, the same for the whole batch.
    """

    reward: float | None
    parts: Mapping[str, float | None]


def score_rollouts(
    parts: Sequence[RewardPart],
    examples: Sequence[Example],
    completions: Sequence[str],
    grades: Sequence[Grade],
    *,
    completion_ids: Sequence[Sequence[int]] = (),
    prompts: Sequence[str] | None = None,
    opened: bool = False,
    combine: Literal["sum", "product"] = "sum",
    step: int = 0,
    num_steps: int = 0,
    seed: int = 0,
) -> list[RewardResult]:
    """Score completions from the parts that gave a value v, each of weight w.

    "sum": sum of w * v. "product": product of 1 + w * (v - neutral), so that at weight 1 a score
    is a factor as it is, a penalty takes its share away, and a smaller weight takes less.

    `examples`, `completions` and `grades` have one entry per completion (siblings repeat their
    example). `prompts` are the prompts as text, where they are text; without it the examples'
    messages are the prompts. `opened` says that prompts end inside a think block.

    Raises RewardError when a function fails, when the parts make no finite number of float32, and
    when there is no part or two have one name.
    """
    assert len(examples) == len(completions) == len(grades)
    assert len(completion_ids) in (0, len(completions))
    names = [part.name for part in parts]
    if not names:
        raise RewardError("rewards is empty; give at least one of accuracy, format or your own.")
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise RewardError(f"two rewards are named {repeated[0]!r}; rename one of the functions.")
    batch = RewardBatch(
        examples=tuple(examples),
        completions=tuple(completions),
        grades=tuple(grades),
        completion_ids=tuple(map(tuple, completion_ids)) or ((),) * len(completions),
        prompts=None if prompts is None else tuple(prompts),
        opened=opened,
        step=step,
        num_steps=num_steps,
        seed=seed,
    )
    columns = [part.function(batch) for part in parts]
    logged = {name: fmean(values) for name, values in batch.metrics.items()}
    return [
        RewardResult(
            reward=_combine(parts, values, combine),
            parts={**logged, **dict(zip(names, values, strict=True))},
        )
        for values in zip(*columns, strict=True)
    ]


def load_reward(
    spec: str,
    *,
    weight: float = 1.0,
    settings: Reward | None = None,
    max_tokens: int | None = None,
) -> RewardPart:
    """Make a part from a built-in's name or the place of a function; raises RewardError.

    `settings` holds the tables of the built-in parts, `max_tokens` the longest completion. The
    part of a user's function is called as the function is.
    """
    if spec in BUILT_IN:
        built_in = BUILT_IN[spec]
        return RewardPart(
            name=spec,
            weight=weight,
            function=built_in.build(settings or Reward(), max_tokens),
            required=built_in.required,
            neutral=built_in.neutral,
        )
    if ":" not in spec:
        known = ", ".join(BUILT_IN)
        raise RewardError(
            f"reward {spec!r} is unknown; use one of {known}, or name your own function as "
            "path/to/file.py:function or package.module:function."
        )
    function = load_function(spec)
    name = getattr(function, "__name__", spec.rpartition(":")[2])
    return RewardPart(name=name, weight=weight, function=adapt(function, spec))


def load_rewards(
    settings: Reward, *, max_tokens: int, examples: Sequence[Example] = ()
) -> tuple[RewardPart, ...]:
    """The parts of a recipe, each tried out on two of its examples. Raises RewardError."""
    parts = tuple(
        load_reward(spec, weight=weight, settings=settings, max_tokens=max_tokens)
        for spec, weight in settings.parts.items()
    )
    names = [part.name for part in parts]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise RewardError(f"two rewards are named {repeated[0]}; rename one of the functions")
    if taken := [name for name in names if name in ("mean", "std")]:
        raise RewardError(f"a reward cannot be named {taken[0]}, as a metric is; rename it")
    for part in parts:
        dry_run_reward(part, examples)
    return parts


def dry_run_reward(part: RewardPart, examples: Sequence[Example] = ()) -> None:
    """Call a part on one right and one empty-handed completion, before a model loads.

    With `examples` of the task the function sees the columns it will see in training. Raises
    RewardError when it fails.
    """
    samples = [*examples[:2], *_SAMPLES][:2]
    right = f"<think>\nI add.\n</think>\n\\boxed{{{samples[0].answer}}}"
    score_rollouts(
        [part],
        samples,
        [right, "I do not know."],
        [
            Grade(score=1.0, status=GradeStatus.CORRECT, extracted=samples[0].answer),
            Grade(score=0.0, status=GradeStatus.NO_ANSWER),
        ],
        completion_ids=[[1, 2, 3], [4, 5]],
    )


_LARGEST = 1e30  # advantages become float32, and sums of squares must fit too

_SAMPLES = (
    Example(id="0", messages=({"role": "user", "content": "What is 2 + 3?"},), answer="5"),
    Example(id="1", messages=({"role": "user", "content": "What is 4 - 1?"},), answer="3"),
)


def _combine(parts: Sequence[RewardPart], values: Sequence[float | None], how: str) -> float | None:
    pairs = [(part, value) for part, value in zip(parts, values, strict=True) if part.weight != 0]
    known = [(part, value) for part, value in pairs if value is not None]
    if not known or any(part.required and value is None for part, value in pairs):
        return None
    if how == "product":
        reward = prod(1.0 + part.weight * (value - part.neutral) for part, value in known)
    else:
        reward = sum(part.weight * value for part, value in known)
    if not abs(reward) <= _LARGEST:
        found = ", ".join(f"{part.name}={value:g}" for part, value in known)
        raise RewardError(f"a reward of {reward:g} is too large ({found}); scale its parts down")
    return reward
