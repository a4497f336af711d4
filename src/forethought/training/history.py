"""The metrics of a run so far, asked by name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from statistics import fmean
from typing import Any

WINDOW = 5  # steps that log a metric: one odd step is no sign
_RISE = 0.01  # what the mean of a window must gain to count as a rise


class History:
    """Rows of metrics, oldest first. A value that was not finite (null) counts as missing."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def upto(self, count: int) -> History:
        """What was known after the first `count` rows."""
        return History(self._rows[:count])

    def having(self, name: str) -> History:
        """The rows that have this metric."""
        return History([row for row in self._rows if row.get(name) is not None])

    def first(self, name: str, count: int = WINDOW) -> float | None:
        """Mean of the first `count` values; None when there are fewer."""
        return _mean(islice(_values(name, self._rows), count), count)

    def last(self, name: str, count: int = WINDOW, *, before: int = 0) -> float | None:
        """Mean of the last `count` values but the newest `before`; None when fewer."""
        newest_first = _values(name, reversed(self._rows))
        return _mean(islice(newest_first, before, before + count), count)

    def best(self, name: str) -> float | None:
        """The best mean of a window that there ever was; None before the first window."""
        values = list(_values(name, self._rows))
        windows = [values[i : i + WINDOW] for i in range(len(values) - WINDOW + 1)]
        return max(map(fmean, windows), default=None)

    def is_flat(self, name: str) -> bool:
        """True when the last window is no better than the one before it."""
        now, then = self.last(name), self.last(name, before=WINDOW)
        return now is not None and then is not None and now <= then + _RISE


def _values(name: str, rows: Iterable[Mapping[str, Any]]) -> Iterator[float]:
    return (float(value) for row in rows if (value := row.get(name)) is not None)


def _mean(values: Iterator[float], count: int) -> float | None:
    found = list(values)
    return fmean(found) if len(found) == count else None
