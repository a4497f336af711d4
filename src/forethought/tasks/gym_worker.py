"""What runs in a worker of the grading pool: one of reasoning-gym's scorers on one answer.

Imported there alone, since several scorers run the text they are given (see `gym_scoring`).
"""

from __future__ import annotations

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
    data_set = _data_set(family, json.dumps(settings, sort_keys=True))
    if family in _COMPARES_TUPLES:
        entry["metadata"]["output"] = tuple(map(tuple, entry["metadata"]["output"]))
    try:
        found = float(data_set.score_answer(answer, entry))
    except Exception as error:
        return {"error": type(error).__name__}
    return {"score": found} if found == found else {"error": "not a number"}


@lru_cache(maxsize=16)
def _data_set(family: str, settings: str) -> Any:
    return reasoning_gym.create_dataset(family, seed=0, size=1, **json.loads(settings))
