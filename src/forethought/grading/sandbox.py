"""Run model-written Python against tests, isolated, under a deadline, and say what came of it.

The answer's process gets inputs only; expected values are compared here. Every reply of a called
function must quote a random token that exists only once the previous reply has come, and every case
must be answered. An answer can still take over its own process and write its own replies. That
gains it nothing: the replies must hold the right values, and those are nowhere in its reach.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from forethought.errors import SandboxError
from forethought.grading.child.values import UnsupportedType, encode
from forethought.grading.code import (
    CallTests,
    CheckTests,
    ProgramTests,
    Tests,
    Verdict,
    same_output,
    same_value,
)
from forethought.grading.isolation import IsolationKind, find_isolation, why_not
from forethought.grading.sandbox_process import Limits, SandboxProcess, SetupFailed, Stopped
from forethought.types import GradeStatus

_Start = Callable[[], SandboxProcess]
_Found = tuple[GradeStatus, str]


@runtime_checkable
class CodeRunner(Protocol):
    """Who runs answers against tests: `LocalSandbox` here, `HttpRunner` on another machine, or a
    class of your own around a sandbox service. Must not raise for anything that `source` does."""

    def run(self, source: str, tests: Tests) -> Verdict: ...


@dataclass(frozen=True, slots=True)
class LocalSandbox:
    """A `CodeRunner` on this machine, in the strongest isolation that works here, or in `kind`.

    Raises SandboxError where that is process isolation only, unless `allow_weak_sandbox`.
    """

    limits: Limits = field(default_factory=Limits)
    allow_weak_sandbox: bool = False
    kind: IsolationKind | None = None

    def __post_init__(self) -> None:
        if self.kind is not None and (reason := why_not(self.kind)):
            raise SandboxError(f"kind={self.kind} does not work here ({reason}); leave it out")
        if self.isolation.is_weak and not self.allow_weak_sandbox:
            reasons = "; ".join(find_isolation().reasons) or "it was asked for"
            raise SandboxError(
                "allow_weak_sandbox=0 refuses to run model-written code with process isolation "
                f"only, where it can read and write your files ({reasons}); allow user namespaces, "
                "install bubblewrap, or set allow_weak_sandbox=1"
            )

    @property
    def isolation(self) -> IsolationKind:
        """What stands between the code and this machine."""
        return self.kind or find_isolation().kind

    def run(self, source: str, tests: Tests) -> Verdict:
        """Judge `source` by `tests`. Never raises for what it does; ends at the deadline."""
        began = time.monotonic()
        deadline = began + self.limits.seconds

        def start() -> SandboxProcess:
            return SandboxProcess(self.isolation, self.limits, deadline)

        is_known = True
        try:
            status, detail = _judge(start, source, tests)
        except Stopped as stop:
            status, detail = stop.status, stop.detail
        except SetupFailed as error:
            status, detail, is_known = GradeStatus.ERROR, f"no sandbox: {error}", False
        seconds = time.monotonic() - began
        return Verdict(status=status, detail=detail, seconds=seconds, is_known=is_known)


def _judge(start: _Start, source: str, tests: Tests) -> _Found:
    if isinstance(tests, CheckTests):
        return _judge_check(start, source, tests)
    if not tests.cases:
        return GradeStatus.UNPARSABLE_GOLD, "there are no tests"
    if isinstance(tests, ProgramTests):
        return _judge_program(start, source, tests)
    return _judge_calls(start, source, tests)


def _judge_calls(start: _Start, source: str, tests: CallTests) -> _Found:
    try:
        cases = [
            ({"args": encode(case.args), "kwargs": encode(case.kwargs)}, encode(case.expected))
            for case in tests.cases
        ]
    except UnsupportedType as error:
        return GradeStatus.UNPARSABLE_GOLD, str(error)
    with start() as process:
        reply = process.start(_calls(source, tests.entry_point))
        if failure := _failure(reply, "loading it"):
            return failure
        for number, (call, expected) in enumerate(cases, 1):
            reply = process.ask(call)
            if failure := _failure(reply, f"case {number}"):
                return failure
            if not _agree(expected, reply["value"], tests.from_json):
                return GradeStatus.WRONG, f"case {number} returned another value"
    return GradeStatus.CORRECT, ""


def _calls(source: str, entry_point: str) -> dict[str, Any]:
    return {"role": "calls", "parts": [source], "entry_point": entry_point}


def _failure(reply: Mapping[str, Any], what: str) -> _Found | None:
    """Why a reply holds no value, or None when it holds one."""
    if "value" in reply:
        return None
    if "unsupported" in reply:
        return GradeStatus.WRONG, f"{what} returned no builtin value: {reply['unsupported']}"
    raised, detail = str(reply.get("raised"))[:100], str(reply.get("detail"))[:200]
    return GradeStatus.ERROR, f"{what} raised {raised}: {detail}"


def _agree(expected: Any, found: Any, from_json: bool) -> bool:
    try:
        return same_value(expected, found, from_json=from_json)
    except RecursionError:  # nested as deep as nothing that was expected
        return False


def _judge_program(start: _Start, source: str, tests: ProgramTests) -> _Found:
    """Each case in a process of its own; all of them under the one deadline."""
    for number, (given, expected) in enumerate(tests.cases, 1):
        with start() as process:
            output, code = process.run_program(source, given)
        if code:
            return GradeStatus.ERROR, f"case {number} ended with status {code}"
        if not same_output(expected, output):
            return GradeStatus.WRONG, f"case {number} printed something else"
    return GradeStatus.CORRECT, ""


def _judge_check(start: _Start, source: str, tests: CheckTests) -> _Found:
    """Test code in one process, the answer in another; only calls and values pass between them."""
    with start() as checker, start() as answer:
        if failure := _failure(answer.start(_calls(source, tests.entry_point)), "loading it"):
            return failure
        parts = [tests.setup, tests.check]
        message = checker.start({"role": "check", "parts": parts, "entry_point": tests.entry_point})
        num_calls, raised = 0, None
        while "args" in message:
            num_calls += 1
            reply = answer.ask({"args": message["args"], "kwargs": message["kwargs"]})
            if "unsupported" in reply:
                return _failure(reply, f"call {num_calls}") or (GradeStatus.WRONG, "")
            raised = _failure(reply, f"call {num_calls}")
            message = checker.ask(reply)
    if "unusable" in message:
        return GradeStatus.UNPARSABLE_GOLD, str(message["unusable"])
    if "passed" not in message:
        said = f"{message.get('failed')}: {message.get('detail')}"
        return raised or (GradeStatus.WRONG, f"after call {num_calls} the test said {said}")
    if not num_calls:
        return GradeStatus.UNPARSABLE_GOLD, "the test never calls the answer"
    return GradeStatus.CORRECT, ""
