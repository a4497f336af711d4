"""A pool of processes for work on untrusted text that may hang, crash or eat all memory.

    with GradingPool(deadline_seconds=2.0) as pool:
        outcome = pool.run("forethought.grading.algebra:is_same", gold, answer)

A call is the name of a function and JSON arguments. It runs in a long-lived process of its own
session (`process`, `worker`), under a deadline of wall-clock time and the kernel's limits. What
overruns is killed, with its process group, and replaced; nothing depends on signals, or on the
goodwill of what runs. What comes back is read as JSON, size and shape checked, never unpickled.
"""

from __future__ import annotations

import atexit
import json
import os
import threading
from collections import deque
from concurrent.futures import Future
from typing import Any, Self, TypeAlias

from forethought.grading.process import Call, Outcome, OutcomeStatus, WorkerProcess, never_ran
from forethought.machine import usable_cores

__all__ = ["GradingPool", "Outcome", "OutcomeStatus", "shared_pool"]

MAX_ARGUMENT_BYTES = 16 << 20

_Waiting: TypeAlias = tuple[Call, Future[Outcome]]


class GradingPool:
    """At most `num_workers` processes that answer calls, each within `deadline_seconds`.

    `num_workers` is by default the usable cores but one. A worker has `max_memory_bytes` of
    address space. It is replaced after `max_calls`, or once it has held half of that memory, so
    that what leaks stays small. Functions come from packages in `packages`. With `may_fork` they
    may start processes of their own (which share their fate).

    `submit` blocks while `max_waiting` calls wait. Threads may share a pool; `close` ends it at
    once. A process that forks must not use its parent's pool.
    """

    def __init__(
        self,
        *,
        num_workers: int | None = None,
        deadline_seconds: float = 5.0,
        max_memory_bytes: int = 2 << 30,
        max_calls: int = 10_000,
        max_waiting: int = 256,
        packages: tuple[str, ...] = ("forethought",),
        may_fork: bool = False,
    ) -> None:
        if num_workers is not None and num_workers < 1:
            raise ValueError(f"num_workers={num_workers} must be at least 1")
        if not 0 < deadline_seconds < float("inf"):
            raise ValueError(f"deadline_seconds={deadline_seconds} must be above 0 and finite")
        self.num_workers = num_workers or max(1, usable_cores() - 1)
        self.deadline_seconds = deadline_seconds
        self._max_memory_bytes = max_memory_bytes
        self._max_calls = max_calls
        self._max_waiting = max_waiting
        self._packages = packages
        self._may_fork = may_fork
        self._changed = threading.Condition()  # guards all that follows
        self._waiting: deque[_Waiting] = deque()
        self._num_idle = 0
        self._threads: list[threading.Thread] = []
        self._processes: set[WorkerProcess] = set()
        self._closed = False

    def submit(
        self, function: str, *arguments: Any, deadline_seconds: float | None = None
    ) -> Future[Outcome]:
        """Have "package.module:function" called with JSON arguments; blocks while many calls wait.

        The future never raises. ValueError for a function outside the allowed packages, TypeError
        or ValueError for arguments that are no JSON, RuntimeError when the pool is closed.
        """
        module, _, name = function.partition(":")
        if module.split(".")[0] not in self._packages or not name.isidentifier():
            allowed = ", ".join(self._packages)
            raise ValueError(f"{function!r} is no module:function of {allowed}")
        future: Future[Outcome] = Future()
        size = len(json.dumps(arguments))
        if size > MAX_ARGUMENT_BYTES:
            message = f"the arguments have {size} bytes; at most {MAX_ARGUMENT_BYTES} are allowed"
            future.set_result(Outcome(None, OutcomeStatus.ERROR, message))
            return future
        seconds = self.deadline_seconds if deadline_seconds is None else deadline_seconds
        self._enqueue((Call(module, name, arguments, seconds), future))
        return future

    def run(self, function: str, *arguments: Any, deadline_seconds: float | None = None) -> Outcome:
        """`submit`, and wait for the outcome."""
        return self.submit(function, *arguments, deadline_seconds=deadline_seconds).result()

    def close(self) -> None:
        """Kill every worker and wait until it is gone; calls that have not ended become DIED."""
        with self._changed:
            self._closed = True
            dropped = list(self._waiting)
            self._waiting.clear()
            processes = list(self._processes)
            self._changed.notify_all()
        for process in processes:
            process.kill()
        for _, future in dropped:
            future.set_result(never_ran("the pool was closed"))
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _enqueue(self, waiting: _Waiting) -> None:
        with self._changed:
            while len(self._waiting) >= self._max_waiting and not self._closed:
                self._changed.wait()
            if self._closed:
                raise RuntimeError("the grading pool is closed")
            self._waiting.append(waiting)
            if len(self._waiting) > self._num_idle and len(self._threads) < self.num_workers:
                thread = threading.Thread(target=self._serve, name="grading", daemon=True)
                self._threads.append(thread)
                thread.start()
            self._changed.notify_all()

    def _next(self) -> _Waiting | None:
        with self._changed:
            self._num_idle += 1
            while not self._waiting and not self._closed:
                self._changed.wait()
            self._num_idle -= 1
            if self._closed:
                return None
            self._changed.notify_all()
            return self._waiting.popleft()

    def _serve(self) -> None:
        """One thread a worker. The kernel ends a worker with the thread that started it."""
        process: WorkerProcess | None = None
        while (waiting := self._next()) is not None:
            call, future = waiting
            try:
                process = self._ready(process)
                outcome = process.call(call)
            except (OSError, RuntimeError) as error:
                outcome = never_ran(f"no worker could start: {error}")
            future.set_result(outcome)
        self._discard(process)

    def _ready(self, process: WorkerProcess | None) -> WorkerProcess:
        """A worker that can take a call: this one, or a new one where it is spent."""
        if process is not None and process.is_usable(self._max_calls, self._max_memory_bytes // 2):
            return process
        self._discard(process)
        with self._changed:
            if self._closed:
                raise RuntimeError("the pool was closed")
            fresh = WorkerProcess(self._max_memory_bytes, self._may_fork)
            self._processes.add(fresh)
        return fresh

    def _discard(self, process: WorkerProcess | None) -> None:
        if process is not None:
            process.kill()
            process.close_pipes()
            with self._changed:
                self._processes.discard(process)


_shared: tuple[int, GradingPool] | None = None
_shared_lock = threading.Lock()


def shared_pool() -> GradingPool:
    """The pool of this process, made when first asked for and closed at exit."""
    global _shared
    with _shared_lock:
        if _shared is None or _shared[0] != os.getpid():  # a fork has its parent's pool, no threads
            pool = GradingPool()
            atexit.register(pool.close)
            _shared = (os.getpid(), pool)
        return _shared[1]
