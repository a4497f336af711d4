r"""The rewards that a recipe names by a word: accuracy, format, length, repetition, and chance."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from forethought.errors import RewardError
from forethought.grading.answers import BOX_OPEN, THINK_CLOSE, THINK_OPEN, last_box, split_think
from forethought.grading.length_rewards import cosine_length, repetition, soft_overlong
from forethought.grading.reward_batch import RewardBatch, RewardFunction
from forethought.schema_tables import Reward

BUFFER_FRACTION = 0.2  # of max_length: DAPO's 4,096 of 20,480


@dataclass(frozen=True, slots=True)
class BuiltIn:
    """`build(settings, max_tokens)` gives the function; RewardError when a setting is missing.

    A `required` part is one without which there is no reward. `neutral` is the value that changes
    nothing in a product: 1 for a score, 0 for a penalty.
    """

    build: Callable[[Reward, int | None], RewardFunction]
    required: bool = False
    neutral: float = 1.0


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


def _accuracy(settings: Reward, max_tokens: int | None) -> RewardFunction:
    return lambda batch: [grade.score for grade in batch.grades]


def _format(settings: Reward, max_tokens: int | None) -> RewardFunction:
    return lambda batch: [
        float(is_well_formed(text, opened=batch.opened)) for text in batch.completions
    ]


def _cosine_length(settings: Reward, max_tokens: int | None) -> RewardFunction:
    values = settings.cosine_length
    max_length = _known(values.max_length, max_tokens, "cosine_length")

    def reward(batch: RewardBatch) -> list[float | None]:
        pairs = zip(batch.grades, batch.completion_ids, strict=True)
        return [
            None
            if grade.score is None
            else cosine_length(grade.score, len(ids), max_length, values)
            for grade, ids in pairs
        ]

    return reward


def _soft_overlong(settings: Reward, max_tokens: int | None) -> RewardFunction:
    max_length = _known(settings.soft_overlong.max_length, max_tokens, "soft_overlong")
    buffer = settings.soft_overlong.buffer or max(1, round(BUFFER_FRACTION * max_length))
    if buffer > max_length:
        raise RewardError(
            f"reward.soft_overlong.buffer={buffer} is more than its max_length of {max_length}; "
            "lower it"
        )
    return lambda batch: [
        soft_overlong(len(ids), max_length, buffer) for ids in batch.completion_ids
    ]


def _repetition(settings: Reward, max_tokens: int | None) -> RewardFunction:
    ngram_size = settings.repetition.ngram_size
    return lambda batch: [repetition(ids, ngram_size) for ids in batch.completion_ids]


def _random(settings: Reward, max_tokens: int | None) -> RewardFunction:
    return toss


def toss(batch: RewardBatch) -> list[float]:
    """A fair coin a completion: what a control pays, whatever was answered (arXiv 2506.10947).

    The coin is that of (seed, step, example, text, how many times this text came before), so it is
    the same when a run is resumed, and equal texts are paid apart.
    """
    seen: Counter[tuple[str, str]] = Counter()
    coins = []
    for example, text in zip(batch.examples, batch.completions, strict=True):
        key = (example.id, text)
        face = f"{batch.seed}/{batch.step}/{seen[key]}/{example.id}/{text}"
        coins.append(float(hashlib.sha256(face.encode("utf-8", "replace")).digest()[0] % 2))
        seen[key] += 1
    return coins


def _known(max_length: int | None, max_tokens: int | None, name: str) -> int:
    found = max_length if max_length is not None else max_tokens
    if found is None:
        raise RewardError(f"reward {name!r} needs its max_length; give it one")
    return found


BUILT_IN: Mapping[str, BuiltIn] = {
    "accuracy": BuiltIn(_accuracy, required=True),
    "format": BuiltIn(_format),
    "cosine_length": BuiltIn(_cosine_length, required=True),
    "soft_overlong": BuiltIn(_soft_overlong, neutral=0.0),
    "repetition": BuiltIn(_repetition, neutral=0.0),
    "random": BuiltIn(_random),
}
