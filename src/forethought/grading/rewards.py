r"""Rewards for training: a weighted sum of parts, each of which is logged alone.

A part is built in ("accuracy", "format") or the user's own function, named by
`path/to/file.py:function` or `package.module:function` and called the way TRL calls it (see
`user_rewards.adapt`). A None means "cannot be known": never 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from forethought.errors import RewardError
from forethought.grading.answers import BOX_OPEN, THINK_CLOSE, THINK_OPEN, last_box, split_think
from forethought.grading.user_rewards import RewardBatch, adapt, load_function
from forethought.types import Example, Grade, GradeStatus

RewardFunction: TypeAlias = Callable[[RewardBatch], Sequence[float | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardPart:
    """One term of the reward: `function` gives one number (or None) per completion of a batch.

    With `required`, a None from this part makes the whole reward None; without, the part is left
    out of that sum. A part of weight 0 is computed and logged, and changes nothing.
    """

    name: str
    weight: float
    function: RewardFunction
    required: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardResult:
    """The reward of one completion, None when ungraded, and what each part said before weights."""

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
) -> list[RewardResult]:
    """Score completions: reward = sum of weight * value over the parts that gave a value.

    `examples`, `completions` and `grades` have one entry per completion (siblings repeat their
    example). `prompts` are the prompts as text, where they are text; without it the examples'
    messages are the prompts. `opened` says that prompts end inside a think block.

    Raises RewardError when a function fails, or when there is no part or two have one name.
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
    )
    columns = [part.function(batch) for part in parts]
    return [_combine(parts, values) for values in zip(*columns, strict=True)]


def load_reward(spec: str, *, weight: float = 1.0) -> RewardPart:
    """Make a part from a built-in's name or the place of a function; raises RewardError.

    The part of a user's function is called as the function is.
    """
    if spec in BUILT_IN:
        return RewardPart(
            name=spec, weight=weight, function=BUILT_IN[spec], required=spec == "accuracy"
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


def is_well_formed(text: str, *, opened: bool = False) -> bool:
    r"""True when a completion keeps the format that the "format" part pays for.

    At most one think block, first and closed; after it exactly one `\boxed{...}`, closed and not
    empty, and only white space behind it. A boxed answer without a think block is well formed.
    """
    num_opened = text.count(THINK_OPEN) + opened
    if num_opened > 1 or text.count(THINK_CLOSE) != num_opened:
        return False
    if THINK_OPEN in text and not text.lstrip().startswith(THINK_OPEN):
        return False
    _, visible = split_think(text, opened=opened)
    span = last_box(visible)
    if span is None or visible.count(BOX_OPEN) != 1:
        return False
    start, end = span
    return bool(visible[start:end].strip()) and not visible[end + 1 :].strip()


def _accuracy(batch: RewardBatch) -> list[float | None]:
    return [grade.score for grade in batch.grades]


def _format(batch: RewardBatch) -> list[float | None]:
    return [float(is_well_formed(text, opened=batch.opened)) for text in batch.completions]


BUILT_IN: Mapping[str, RewardFunction] = {"accuracy": _accuracy, "format": _format}

_SAMPLES = (
    Example(id="0", messages=({"role": "user", "content": "What is 2 + 3?"},), answer="5"),
    Example(id="1", messages=({"role": "user", "content": "What is 4 - 1?"},), answer="3"),
)


def _combine(parts: Sequence[RewardPart], values: Sequence[float | None]) -> RewardResult:
    by_name = {part.name: value for part, value in zip(parts, values, strict=True)}
    weighted = [
        (part, value) for part, value in zip(parts, values, strict=True) if part.weight != 0
    ]
    terms = [part.weight * value for part, value in weighted if value is not None]
    unknown = any(part.required and value is None for part, value in weighted)
    return RewardResult(reward=sum(terms) if terms and not unknown else None, parts=by_name)
