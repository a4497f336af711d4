"""What runs in a worker of the grading pool: a scorer of reasoning-gym, or a program of its data.

Imported there alone, since several scorers run the text they are given (see `gym_scoring`).
"""

from __future__ import annotations

import contextlib
import json
from functools import lru_cache
from typing import Any

import reasoning_gym

_COMPARES_TUPLES = ("arc_agi", "rearc")  # with the board in the metadata; JSON made it lists


def score(
    family: str, settings: dict[str, Any], entry: dict[str, Any], answer: str
) -> dict[str, Any]:
    """{"score": number}, or {"error": name} when the scorer fails on the answer.

    Raises when there is no such scorer: then nothing can be said of the answer.
    """
    data_set = _data_set(family, json.dumps(settings, sort_keys=True), 0, 1)
    if family in _COMPARES_TUPLES:
        entry["metadata"]["output"] = tuple(map(tuple, entry["metadata"]["output"]))
    try:
        found = float(data_set.score_answer(answer, entry))
    except Exception as error:
        return {"error": type(error).__name__}
    return {"score": found} if found == found else {"error": "not a number"}


def make(
    family: str, settings: dict[str, Any], seed: int, first: int, count: int, folder: str
) -> list[dict[str, Any] | None]:
    """Items `first` to `first + count` of the data set of a seed; None for one that fails.

    What its programs write is meant for `folder`.
    """
    data_set = _data_set(family, json.dumps(settings, sort_keys=True), seed, first + count)
    items: list[dict[str, Any] | None] = []
    with contextlib.chdir(folder):
        for index in range(first, first + count):
            try:
                items.append(data_set[index])
            except Exception:  # a program that wants to write what a worker may not
                items.append(None)
    return items


@lru_cache(maxsize=16)
def _data_set(family: str, settings: str, seed: int, size: int) -> Any:
    return reasoning_gym.create_dataset(family, seed=seed, size=size, **json.loads(settings))
