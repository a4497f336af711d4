"""Say it by name when grading can teach nothing, rather than let a run score 0 in silence."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable

from forethought.types import Grade, GradeStatus

logger = logging.getLogger("forethought")

ENOUGH = 200  # completions after which nothing but zeros is worth a word


class GradeWatch:
    """Counts the grades of a task and warns once of each: AllGoldsUnparsable, AllScoresZero."""

    def __init__(self, task: str = "the task") -> None:
        self._task = task
        self._statuses: Counter[GradeStatus] = Counter()
        self._num_right = 0.0
        self._has_warned = False

    def look(self, grades: Iterable[Grade], *, is_last: bool = False) -> None:
        """Count these grades; warn when they are enough, or the last there are."""
        for grade in grades:
            self._statuses[grade.status] += 1
            self._num_right += grade.score or 0.0
        if not self._has_warned and (is_last or self._statuses.total() >= ENOUGH):
            sentence = self._warning()
            self._has_warned = sentence is not None
            if sentence:
                logger.warning(sentence)

    def _warning(self) -> str | None:
        total = self._statuses.total()
        if not total or self._num_right:
            return None
        if self._statuses[GradeStatus.UNPARSABLE_GOLD] == total:
            return (
                f"AllGoldsUnparsable: of {total} completions none could be scored, as no reference "
                f"answer of {self._task} can be read; look at its answers"
            )
        found = ", ".join(f"{count} {status}" for status, count in self._statuses.most_common())
        return (
            f"AllScoresZero: of {total} completions of {self._task} none scored above 0 ({found}); "
            "see whether the model is asked for \\boxed{} and whether the references are answers"
        )
