"""Grades that have to wait for the pool: what to ask it, and what its outcome means.

A grader that may hang returns a `Job` in place of a `Grade`. `begin` starts it, so that grading
goes on while others still sample, and gives a future either way.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from forethought.grading.workers import GradingPool, Outcome, shared_pool
from forethought.types import Example, Grade, Task

MAX_REMEMBERED = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A call for the pool; `finish` makes the grade of its outcome.

    `is_pure` says that equal arguments (texts and numbers) have equal outcomes: siblings with one
    answer then share one call.
    """

    function: str
    arguments: tuple[Any, ...]
    finish: Callable[[Outcome], Grade]
    deadline_seconds: float | None = None
    is_pure: bool = False


@runtime_checkable
class SlowTask(Protocol):
    """A task some of whose grades wait for the pool; its `grade` waits for them."""

    def begin_grade(self, example: Example, completion: str) -> Grade | Job: ...


def begin_task_grade(task: Task, example: Example, completion: str) -> Future[Grade]:
    """The grade of a completion as a future: at once, or begun in the shared pool."""
    if isinstance(task, SlowTask):
        return begin(task.begin_grade(example, completion))
    return begin(task.grade(example, completion))


def begin(found: Grade | Job, pool: GradingPool | None = None) -> Future[Grade]:
    """The grade as a future; a job is started in `pool` (by default the shared one)."""
    grade: Future[Grade] = Future()
    if isinstance(found, Grade):
        grade.set_result(found)
        return grade

    def finish(outcome: Future[Outcome]) -> None:
        try:
            grade.set_result(found.finish(outcome.result()))
        except Exception as error:  # a bug in a grader must not hang who waits
            grade.set_exception(error)

    _outcome(found, pool or shared_pool()).add_done_callback(finish)
    return grade


def settle(found: Grade | Job, pool: GradingPool | None = None) -> Grade:
    """The grade itself, once it is known."""
    return found if isinstance(found, Grade) else begin(found, pool).result()


_remembered: OrderedDict[tuple[Any, ...], Future[Outcome]] = OrderedDict()
_lock = threading.Lock()


def _outcome(job: Job, pool: GradingPool) -> Future[Outcome]:
    """The outcome to come: that of an equal job before, unless it never ran."""
    if not job.is_pure:
        return pool.submit(job.function, *job.arguments, deadline_seconds=job.deadline_seconds)
    key = (pool, job.deadline_seconds, job.function, *job.arguments)
    with _lock:
        known = _remembered.get(key)
    if known is not None and not (known.done() and known.result().seconds == 0):
        return known
    outcome = pool.submit(job.function, *job.arguments, deadline_seconds=job.deadline_seconds)
    with _lock:
        _remembered[key] = outcome
        if len(_remembered) > MAX_REMEMBERED:
            _remembered.popitem(last=False)
    return outcome
