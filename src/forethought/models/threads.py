"""Fit torch's threads to the cores that other processes leave free.

Threads of one operation wait for each other: where another process holds one of their cores, every
operation waits until it is given back, and a step can take ten times as long. One thread fewer
waits for nobody. Nothing is changed where the user has set OMP_NUM_THREADS, nor outside Linux.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from forethought.machine import usable_cores

_PERIOD = 1.0  # seconds between looks
_CALM_LOOKS = 5  # so many looks in a row without company before a thread comes back
_BUSY, _CALM = 0.4, 0.2  # cores used by others
_WAITED = 0.05  # cores that this process used, at most, while it only waited for something

logger = logging.getLogger("forethought")


class Usage(NamedTuple):
    """Seconds of processor time so far on this process's cores: everybody's, and its own."""

    everybody: float
    own: float


class ThreadFit:
    """`look()` now and then; it counts what others used since the last time and sets the threads.

    `read` tells the usage, `set_threads` sets their number, `now` is a clock in seconds.
    """

    def __init__(
        self,
        most: int,
        read: Callable[[], Usage | None],
        set_threads: Callable[[int], None],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.most = self.threads = most
        self._read, self._set, self._now = read, set_threads, now
        self._at, self._usage = now(), read()
        self._num_calm = 0

    def look(self) -> None:
        elapsed = self._now() - self._at
        if elapsed < _PERIOD or self._usage is None:
            return
        usage = self._read()
        if usage is None:
            return
        own = usage.own - self._usage.own
        others = usage.everybody - self._usage.everybody - own
        self._at, self._usage = self._now(), usage
        if own > _WAITED * elapsed:  # what others did meanwhile took nothing from it otherwise
            self._fit(others / elapsed)

    def _fit(self, others: float) -> None:
        """`others` is in cores."""
        wanted = max(1, self.most - max(1, round(others)))
        if others >= _BUSY and wanted < self.threads:
            logger.warning(
                "other processes use %.1f of %d cores: computing with %d thread%s from here on",
                others, self.most, wanted, "" if wanted == 1 else "s",
            )  # fmt: skip
            self._change(wanted)
        self._num_calm = self._num_calm + 1 if others < _CALM else 0
        if self._num_calm >= _CALM_LOOKS and self.threads < self.most:
            self._change(self.threads + 1)

    def _change(self, threads: int) -> None:
        self._set(threads)
        self.threads, self._num_calm = threads, 0


def read_usage() -> Usage | None:
    """The usage by /proc/stat; None where there is none."""
    try:
        lines = Path("/proc/stat").read_text().splitlines()
        mine = {f"cpu{core}" for core in os.sched_getaffinity(0)}
        tick = os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError):
        return None
    fields = [line.split() for line in lines]
    # user, nice, system, idle, iowait, irq, softirq
    busy = [sum(map(int, (*f[1:4], *f[6:8]))) for f in fields if f[0] in mine]
    times = os.times()
    return Usage(sum(busy) / tick, times.user + times.system)


_fit: ThreadFit | None = None


def fit_threads() -> None:
    """Call this between two pieces of work: it looks around once a second at most."""
    global _fit
    if "OMP_NUM_THREADS" in os.environ:
        return
    if _fit is None:
        import torch

        most = min(torch.get_num_threads(), usable_cores())
        if most < torch.get_num_threads():
            torch.set_num_threads(most)
        _fit = ThreadFit(most, read_usage, torch.set_num_threads)
    _fit.look()
