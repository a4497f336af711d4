"""Threads step back when other processes take cores, and come back when they are gone."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field

import pytest

from forethought.models.threads import ThreadFit, Usage, fit_threads, read_usage


@dataclass
class Simulated:
    """A machine on which others use `others` cores, and we one."""

    others: float = 0.0
    clock: float = 0.0
    everybody: float = 0.0
    own: float = 0.0
    threads: list[int] = field(default_factory=list)

    def wait(self, seconds: float, own: float = 1.0) -> None:
        self.clock += seconds
        self.own += seconds * own
        self.everybody += seconds * (own + self.others)

    def fit(self, most: int) -> ThreadFit:
        return ThreadFit(
            most, lambda: Usage(self.everybody, self.own), self.threads.append, lambda: self.clock
        )


@pytest.mark.parametrize(
    ("others", "most", "expected"),
    [(0.1, 2, []), (0.7, 2, [1]), (2.0, 8, [6]), (3.4, 8, [5]), (30.0, 4, [1]), (1.0, 1, [])],
)
def test_as_many_threads_go_as_cores_are_taken(
    others: float, most: int, expected: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    machine = Simulated(others=others)
    fit = machine.fit(most)
    with caplog.at_level(logging.WARNING):
        for _ in range(20):
            machine.wait(1.1)
            fit.look()
    assert machine.threads == expected
    assert len(caplog.records) == len(expected)


def test_threads_come_back_after_a_calm_while() -> None:
    machine = Simulated(others=1.0)
    fit = machine.fit(2)
    machine.wait(1.1)
    fit.look()
    machine.others = 0.0
    for _ in range(4):
        machine.wait(1.1)
        fit.look()
    assert machine.threads == [1]
    machine.wait(1.1)
    fit.look()
    assert machine.threads == [1, 2]


def test_what_others_did_while_we_waited_for_them_costs_no_thread() -> None:
    machine = Simulated(others=1.9)
    fit = machine.fit(2)
    machine.wait(80.0, own=0.001)
    fit.look()
    machine.others = 0.0
    machine.wait(1.1)
    fit.look()
    assert machine.threads == []


def test_looking_often_costs_nothing() -> None:
    machine = Simulated(others=1.0)
    fit = machine.fit(2)
    for _ in range(100):
        machine.wait(0.001)
        fit.look()
    assert machine.threads == []


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/stat")
def test_another_process_shows_in_the_usage() -> None:
    before = read_usage()
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(1.5)
    finally:
        busy.kill()
        busy.wait()
    after = read_usage()
    assert before is not None
    assert after is not None
    others = (after.everybody - before.everybody) - (after.own - before.own)
    assert others > 0.3


def test_a_number_of_threads_that_the_user_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr("forethought.models.threads._fit", None)
    fit_threads()
    from forethought.models import threads

    assert threads._fit is None
    assert os.environ["OMP_NUM_THREADS"] == "2"
