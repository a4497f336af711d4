"""Answers judged on another machine, over HTTP: the shape for a sandbox service of your own.

`HttpRunner` posts one JSON object, `{"source", "tests"}`, and reads one, `{"status", "detail",
"seconds", "is_known"}`. `answer_request` is the other side: the body of a request to the body of
the reply, for any HTTP server; the runner it is given does the work.
"""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from forethought.grading.child.values import decode, encode
from forethought.grading.code import Call, CallTests, CheckTests, ProgramTests, Tests, Verdict
from forethought.grading.sandbox import CodeRunner
from forethought.types import GradeStatus

_MAX_REPLY_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class HttpRunner:
    """A `CodeRunner` behind `url`. A service that fails leaves the answer unknown, never wrong."""

    url: str
    seconds: float = 30.0
    headers: Mapping[str, str] | None = None  # an API key, for one

    def run(self, source: str, tests: Tests) -> Verdict:
        began = time.monotonic()
        body = json.dumps({"source": source, "tests": encode_tests(tests)}).encode()
        headers = {"Content-Type": "application/json", **(self.headers or {})}
        request = urllib.request.Request(self.url, data=body, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=self.seconds) as reply:
                found = json.loads(reply.read(_MAX_REPLY_BYTES))
            return Verdict(
                status=GradeStatus(found["status"]),
                detail=str(found.get("detail", "")),
                seconds=float(found.get("seconds", 0.0)),
                is_known=bool(found.get("is_known", True)),
            )
        except Exception as error:  # a remote call: whatever happened ends in a status
            return Verdict(
                status=GradeStatus.ERROR,
                detail=f"{self.url}: {error}",
                seconds=time.monotonic() - began,
                is_known=False,
            )


def answer_request(body: bytes, runner: CodeRunner) -> bytes:
    """Judge what `HttpRunner` posted. Raises ValueError or KeyError for any other body."""
    request = json.loads(body)
    verdict = runner.run(str(request["source"]), decode_tests(request["tests"]))
    return json.dumps(asdict(verdict)).encode()


def encode_tests(tests: Tests) -> dict[str, Any]:
    """Tests as JSON data; values of calls keep their types."""
    if isinstance(tests, ProgramTests):
        return {"kind": "program", "cases": [list(case) for case in tests.cases]}
    if isinstance(tests, CheckTests):
        return {"kind": "check", **asdict(tests)}
    cases = [encode((case.args, dict(case.kwargs), case.expected)) for case in tests.cases]
    call = {"kind": "calls", "entry_point": tests.entry_point, "cases": cases}
    return call | {"from_json": tests.from_json}


def decode_tests(data: Mapping[str, Any]) -> Tests:
    """The tests that `encode_tests` wrote."""
    if data["kind"] == "program":
        return ProgramTests(cases=tuple((given, printed) for given, printed in data["cases"]))
    fields = {key: value for key, value in data.items() if key != "kind"}
    if data["kind"] == "check":
        return CheckTests(**fields)
    if data["kind"] != "calls":
        raise ValueError(f"tests of kind {data['kind']!r} are unknown")
    triples = map(decode, fields.pop("cases"))
    cases = tuple(Call(args=a, kwargs=k, expected=expected) for a, k, expected in triples)
    return CallTests(cases=cases, **fields)
