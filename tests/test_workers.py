"""The pool: whatever a call does, its worker is gone in time, and the next call is answered."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from forethought.grading.workers import (
    MAX_ARGUMENT_BYTES,
    GradingPool,
    Outcome,
    OutcomeStatus,
    shared_pool,
)

PACKAGES = ("forethought", "pool_functions")
GRACE = 0.5  # what the promise allows beyond the deadline
OK, TIMEOUT = OutcomeStatus.OK, OutcomeStatus.TIMEOUT
ERROR, DIED = OutcomeStatus.ERROR, OutcomeStatus.DIED


@pytest.fixture(scope="module")
def pool() -> Iterator[GradingPool]:
    with GradingPool(num_workers=1, deadline_seconds=20.0, packages=PACKAGES) as pool:
        yield pool


def run(pool: GradingPool, function: str, *arguments: Any, **options: Any) -> Outcome:
    return pool.run(f"pool_functions:{function}", *arguments, **options)


def is_alive(process: int) -> bool:
    """False also for one that has ended and waits to be reaped by a parent that is not us."""
    try:
        state = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
    except FileNotFoundError:
        return False
    return state[0] != "Z"


def wait_until_gone(process: int) -> None:
    ends = time.monotonic() + 10
    while is_alive(process):
        assert time.monotonic() < ends, f"process {process} is still there"
        time.sleep(0.005)


def test_a_function_is_called_with_json_and_answers_with_json(pool: GradingPool) -> None:
    outcome = run(pool, "add", 2, 3)
    assert (outcome.value, outcome.status, outcome.message) == (5, OK, "")
    assert outcome.seconds >= 0
    for value in (None, "\0\ud7ff\u2028", {"a": [1.5, True]}, "x" * 500_000):
        assert run(pool, "echo", value).value == value


def test_workers_live_on_between_calls(pool: GradingPool) -> None:
    assert run(pool, "process_id").value == run(pool, "process_id").value != os.getpid()


@pytest.mark.parametrize("function", ["spin", "huge_power", "ignore_signals_and_sleep"])
def test_what_overruns_is_killed_in_time(pool: GradingPool, function: str) -> None:
    victim = run(pool, "process_id").value
    start = time.monotonic()
    outcome = run(pool, function, deadline_seconds=0.3)
    spent = time.monotonic() - start
    assert (outcome.status, outcome.value) == (TIMEOUT, None)
    assert 0.3 <= outcome.seconds <= spent < 0.3 + GRACE
    assert not is_alive(victim)  # reaped, not only killed
    assert run(pool, "add", 1, 1).value == 2


@pytest.mark.parametrize(
    ("function", "arguments", "status", "message"),
    [
        ("fail", ["no good"], ERROR, "ValueError: no good"),
        ("fail", ["x" * 9999], ERROR, "ValueError: xxx"),
        ("leave", [0], ERROR, "SystemExit: 0"),
        ("vanish", [0], DIED, "exited"),
        ("crash", [], DIED, "killed"),
        ("eat_memory", [], ERROR, "MemoryError"),
        ("recurse", [], ERROR, "RecursionError"),
        ("not_json", [], ERROR, "not JSON"),
        ("echo", [float("nan")], ERROR, "not JSON compliant"),
        ("large", [2 << 20], ERROR, "at most 1048576 are allowed"),
        ("add", [1], ERROR, "TypeError"),
        ("no_such_function", [], ERROR, "AttributeError"),
    ],
)
def test_a_failure_is_an_outcome(
    pool: GradingPool, function: str, arguments: list[Any], status: OutcomeStatus, message: str
) -> None:
    outcome = run(pool, function, *arguments)
    assert (outcome.status, outcome.value) == (status, None)
    assert message in outcome.message
    assert len(outcome.message) <= 500
    assert run(pool, "add", 1, 1).value == 2


def test_a_module_that_cannot_be_loaded_says_so(pool: GradingPool) -> None:
    outcome = pool.run("forethought.grading.absent:function")
    assert (outcome.status, outcome.seconds) == (DIED, 0.0)
    assert "No module named 'forethought.grading.absent'" in outcome.message


@pytest.mark.parametrize(
    "forged",
    [
        "{}",
        "[]",
        "[" * 5000,
        "9" * 5000,
        "not json",
        json.dumps({"status": "ok", "value": 1.0, "message": "", "resident_bytes": 1}),
        json.dumps({"nonce": "0", "status": "ok", "value": 1, "message": "", "resident_bytes": 1}),
    ],
)
def test_a_forged_answer_is_no_answer(pool: GradingPool, forged: str) -> None:
    outcome = run(pool, "write_to_every_pipe", forged)
    assert (outcome.status, outcome.value) == (DIED, None)
    assert "no reply" in outcome.message
    assert run(pool, "add", 1, 1).value == 2


def test_what_a_function_prints_is_no_answer(
    pool: GradingPool, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(pool, "print_a_lot").value == "done"
    assert capfd.readouterr() == ("", "")


def test_only_functions_of_allowed_packages_are_called(pool: GradingPool) -> None:
    for function in ("os:getpid", "forethought_evil:f", "pool_functions", "pool_functions:a.b", ""):
        with pytest.raises(ValueError, match="is no module:function of forethought"):
            pool.submit(function)


def test_arguments_must_be_json_and_not_enormous(pool: GradingPool) -> None:
    with pytest.raises(TypeError):
        run(pool, "echo", {1, 2})
    outcome = run(pool, "echo", "x" * MAX_ARGUMENT_BYTES)
    assert outcome.status is ERROR
    assert f"at most {MAX_ARGUMENT_BYTES}" in outcome.message
    assert run(pool, "large", 10).value == "x" * 10


def test_ten_megabytes_reach_a_function(pool: GradingPool) -> None:
    assert run(pool, "length", "7" * 10_000_000).value == 10_000_000


def test_a_worker_sees_no_secret_and_writes_no_file(
    pool: GradingPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    with GradingPool(num_workers=1, packages=PACKAGES) as fresh:
        assert "HF_TOKEN" not in run(fresh, "environment").value
    place = tmp_path / "file"
    assert "File too large" in run(pool, "write_file", str(place)).message
    assert not place.exists() or place.stat().st_size == 0


def test_workers_import_no_torch(pool: GradingPool) -> None:
    loaded = run(pool, "modules").value
    assert "forethought.grading.worker" in loaded
    assert {"torch", "numpy", "transformers", "sympy"}.isdisjoint(loaded)


def test_children_of_a_call_die_with_it(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with GradingPool(num_workers=1, packages=PACKAGES, may_fork=True) as pool:
        outcome = pool.submit("pool_functions:sleep_with_a_child", str(fifo), deadline_seconds=1.0)
        child = int(fifo.read_text(encoding="utf-8"))
        assert outcome.result().status is TIMEOUT
        wait_until_gone(child)


def test_a_worker_is_replaced_after_many_calls() -> None:
    with GradingPool(num_workers=1, packages=PACKAGES, max_calls=3) as pool:
        processes = [run(pool, "process_id").value for _ in range(7)]
        assert [processes.count(p) for p in dict.fromkeys(processes)] == [3, 3, 1]
        assert not any(map(is_alive, processes[:6]))


def test_a_parent_of_much_memory_does_not_wear_its_workers_out() -> None:
    ballast = b"x" * (400 << 20)
    with GradingPool(num_workers=1, packages=PACKAGES, max_memory_bytes=512 << 20) as pool:
        first = run(pool, "process_id").value
        assert run(pool, "process_id").value == first
    assert len(ballast) > 256 << 20


def test_a_worker_is_replaced_after_much_memory() -> None:
    with GradingPool(num_workers=1, packages=PACKAGES, max_memory_bytes=1 << 30) as pool:
        first = run(pool, "process_id").value
        assert run(pool, "hold_memory", 100 << 20).status is OK
        assert run(pool, "process_id").value == first
        assert run(pool, "hold_memory", 600 << 20).status is OK
        assert run(pool, "process_id").value != first


def test_a_worker_that_died_between_calls_costs_no_call() -> None:
    with GradingPool(num_workers=1, packages=PACKAGES) as pool:
        first = run(pool, "process_id").value
        os.killpg(first, signal.SIGKILL)
        wait_until_gone(first)
        assert run(pool, "add", 1, 1).value == 2


def test_calls_run_side_by_side_and_come_back_each_to_its_own() -> None:
    with GradingPool(num_workers=2, packages=PACKAGES) as pool:
        futures = [pool.submit("pool_functions:add", n, n) for n in range(100)]
        slow = pool.submit("pool_functions:spin", deadline_seconds=0.5)
        assert [future.result().value for future in futures] == [2 * n for n in range(100)]
        assert slow.result().status is TIMEOUT


def test_no_more_workers_start_than_are_needed() -> None:
    with GradingPool(num_workers=4, packages=PACKAGES) as pool:
        assert len({run(pool, "process_id").value for _ in range(20)}) == 1


def test_submitting_waits_while_too_much_waits() -> None:
    with GradingPool(num_workers=1, packages=PACKAGES, max_waiting=2) as pool:
        assert run(pool, "add", 1, 1).value == 2
        futures = [
            pool.submit("pool_functions:spin", deadline_seconds=0.3) for _ in range(3)
        ]  # one runs, two wait
        start = time.monotonic()
        futures.append(pool.submit("pool_functions:add", 1, 1))
        assert time.monotonic() - start > 0.1
        assert [future.result().status for future in futures] == [TIMEOUT, TIMEOUT, TIMEOUT, OK]


def test_closing_ends_what_runs_and_what_waits() -> None:
    before = set(threading.enumerate())
    pool = GradingPool(num_workers=1, packages=PACKAGES)
    process = run(pool, "process_id").value
    futures = [pool.submit("pool_functions:spin", deadline_seconds=60) for _ in range(3)]
    start = time.monotonic()
    pool.close()
    assert time.monotonic() - start < 5
    assert {future.result().status for future in futures} == {DIED}
    assert not is_alive(process)
    assert set(threading.enumerate()) <= before
    with pytest.raises(RuntimeError, match="closed"):
        pool.submit("pool_functions:spin")
    pool.close()


def test_the_shared_pool_is_one() -> None:
    assert shared_pool() is shared_pool()


PARENT = """
    import sys
    from forethought.grading.workers import GradingPool
    pool = GradingPool(num_workers=1, packages=("pool_functions",))
    pool.submit("pool_functions:tell_and_spin", sys.argv[1], deadline_seconds=300)
    sys.stdin.readline()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the limit of processor time ends it")
@pytest.mark.parametrize("ending", ["kill -9", "exit"])
def test_a_busy_worker_dies_with_its_parent(ending: str, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PARENT), str(fifo)],
        stdin=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert parent.stdin is not None
    worker = int(fifo.read_text(encoding="utf-8"))
    assert is_alive(worker)
    if ending == "exit":
        parent.stdin.close()
    else:
        parent.kill()
    parent.wait(30)
    parent.stdin.close()
    wait_until_gone(worker)


def test_numbers_that_make_no_pool_are_refused() -> None:
    with pytest.raises(ValueError, match="num_workers=0"):
        GradingPool(num_workers=0)
    for seconds in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="deadline_seconds="):
            GradingPool(deadline_seconds=seconds)
