"""The sandbox: what is right passes in every isolation, and what an answer finds around itself."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from forethought.errors import SandboxError
from forethought.grading.child.seccomp import filter_program
from forethought.grading.code import (
    Call,
    CallTests,
    CheckTests,
    ProgramTests,
    Tests,
)
from forethought.grading.isolation import IsolationKind, find_isolation, why_not
from forethought.grading.remote import HttpRunner, answer_request, decode_tests, encode_tests
from forethought.grading.sandbox import CodeRunner, LocalSandbox
from forethought.grading.sandbox_process import Limits, SandboxProcess
from forethought.types import GradeStatus

KINDS = [kind for kind in IsolationKind if why_not(kind) is None]
ISOLATING = [kind for kind in KINDS if not kind.is_weak]
needs_isolation = pytest.mark.skipif(
    not ISOLATING, reason=f"no isolation here: {'; '.join(find_isolation().reasons)}"
)
VALUES: list[Any] = [
    None,
    True,
    0,
    -5,
    2**70,
    1.5,
    float("inf"),
    "",
    "a\0\u00e9\n",
    b"\xff",
    1 + 2j,
]
VALUES += [[], [1, [2]], (1,), {1, 2}, frozenset({"a"}), {"a": 1, 2: (None,)}]


def sandbox(kind: IsolationKind | None = None, **limits: Any) -> LocalSandbox:
    return LocalSandbox(Limits(**limits), allow_weak_sandbox=True, kind=kind)


@pytest.mark.parametrize("kind", KINDS)
def test_values_of_every_builtin_type_come_back(kind: IsolationKind) -> None:
    cases = tuple(Call(args=(value,), expected=value) for value in VALUES)
    verdict = sandbox(kind).run("def f(x): return x", CallTests(entry_point="f", cases=cases))
    assert (verdict.status, verdict.detail) == (GradeStatus.CORRECT, "")


@pytest.mark.parametrize("kind", KINDS)
def test_programs_read_and_print(kind: IsolationKind) -> None:
    program = "import sys\nfor line in sys.stdin: print(sum(map(int, line.split())))"
    tests = ProgramTests(cases=(("1 2\n3 4\n", "3\n7"), ("", ""), ("5 6\n" * 9999, "11\n" * 9999)))
    assert sandbox(kind).run(program, tests).status is GradeStatus.CORRECT
    tests = ProgramTests(cases=(("1 2", "3"), ("1 2", "4")))
    assert sandbox(kind).run(program, tests).detail == "case 2 printed something else"


def test_a_program_may_end_in_a_thread_and_unread_input() -> None:
    threaded = "import threading\nthreading.Thread(target=lambda: print(input())).start()"
    tests = ProgramTests(cases=(("hello", "hello"),))
    assert sandbox().run(threaded, tests).score == 1.0
    tests = ProgramTests(cases=(("x" * 10**6, "done"),))
    assert sandbox().run("print('done')", tests).score == 1.0


CHECK = """
def check(candidate):
    for i in range(100):
        assert candidate(i, key=[i]) == (i, {i}, None)
    try:
        candidate(-1, key=[])
    except ValueError:
        return
    raise AssertionError
"""


@pytest.mark.parametrize("kind", KINDS)
def test_test_code_calls_the_answer_in_another_process(kind: IsolationKind) -> None:
    tests = CheckTests(entry_point="f", check=CHECK)
    right = "def f(i, key):\n    if i < 0: raise ValueError('no')\n    return i, set(key), None"
    assert sandbox(kind).run(right, tests).score == 1.0
    assert sandbox(kind).run(right.replace("set(key)", "key"), tests).status is GradeStatus.WRONG
    assert sandbox(kind).run(right.replace("ValueError", "OSError"), tests).score == 0.0


def test_plain_assertions_and_helpers_of_the_problem_are_test_code_too() -> None:
    tests = CheckTests(
        entry_point="f", check="assert f(2) == twice(2)", setup="twice = lambda x: 2*x"
    )
    assert sandbox().run("def f(x): return x + x\ndef twice(x): return 0", tests).score == 1.0
    assert sandbox().run("def f(x): return 0\ndef twice(x): return 0", tests).score == 0.0


@pytest.mark.parametrize(
    "tests",
    [
        CheckTests(entry_point="f", check="def check(candidate) return"),
        CheckTests(entry_point="f", check="assert f(1) == 1", setup="1 / 0"),
        CheckTests(entry_point="f", check="def check(candidate): pass"),
        CheckTests(entry_point="f", check="assert f(lambda: 1)"),
        CallTests(entry_point="f", cases=()),
        CallTests(entry_point="f", cases=(Call(args=(1,), expected=object()),)),
        ProgramTests(cases=()),
    ],
)
def test_tests_that_cannot_be_run_make_the_problem_unusable(tests: Tests) -> None:
    verdict = sandbox().run("def f(x): return x", tests)
    assert (verdict.score, verdict.status) == (None, GradeStatus.UNPARSABLE_GOLD)


def test_what_an_answer_prints_does_not_matter() -> None:
    tests = CallTests(entry_point="f", cases=(Call(args=(1,), expected=1),))
    noisy = "print('loading')\ndef f(x):\n    print('x' * 10**6)\n    return x"
    assert sandbox().run(noisy, tests).score == 1.0


def test_the_verdict_says_what_went_wrong() -> None:
    tests = CallTests(entry_point="f", cases=(Call(args=(1,), expected=1),))
    assert "ZeroDivisionError" in sandbox().run("def f(x): return x / 0", tests).detail
    assert "SyntaxError" in sandbox().run("def f(x) return", tests).detail
    assert "no function f" in sandbox().run("def g(x): return x", tests).detail


INSPECT = """
import json, os, sys
def attempt(act):
    try: return act() or True
    except OSError as error: return type(error).__name__
print(json.dumps({
    "root": sorted(os.listdir("/")),
    "proc": os.path.exists("/proc/self"),
    "environment": sorted(os.environ),
    "folder": os.listdir("."),
    "user": os.getuid(),
    "pid": os.getpid(),
    "modules": [name for name in sys.path if "site-packages" in name],
    "packages": [d for p in sys.path for d, _, f in os.walk(p) if d.endswith("-packages") and f],
    "writes": attempt(lambda: open("note", "w").write("here")),
    "writes_above": attempt(lambda: open("/note", "w")),
    "writes_library": attempt(lambda: open(os.__file__, "a")),
    "random": len(open("/dev/urandom", "rb").read(3)),
}))
"""


@pytest.mark.parametrize("kind", ISOLATING)
def test_inside_there_is_a_library_and_an_empty_folder(
    kind: IsolationKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PASSWORD", "hunter2")
    with SandboxProcess(kind, Limits(), time.monotonic() + 5) as process:
        output, status = process.run_program(INSPECT, "")
    assert status == 0
    found = json.loads(output)
    assert {"proc", "sys", "home", "var"}.isdisjoint(found["root"])
    assert not found["proc"]
    assert found["environment"] == found["folder"] == found["modules"] == found["packages"] == []
    assert found["user"] != 0
    assert found["pid"] < 10
    assert (found["writes"], found["random"]) == (4, 3)
    assert found["writes_above"] in ("OSError", "PermissionError")
    assert found["writes_library"] in ("OSError", "PermissionError")


def children_of(pid: int) -> Iterator[int]:
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(entry.read_bytes().rpartition(b")")[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            yield int(entry.parent.name)
            yield from children_of(int(entry.parent.name))


def wait_for(condition: Any, seconds: float = 10.0) -> Any:
    """What `condition` gives once it is true; other processes' states have no event to wait on."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.01)
    raise AssertionError("waited in vain")


def filtered_child() -> dict[str, str] | None:
    """The status of the process that runs the answer: the only one with a filter."""
    for pid in children_of(os.getpid()):
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except OSError:
            continue
        fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        if fields["Seccomp"] == "2":
            return fields
    return None


@pytest.mark.parametrize("kind", ISOLATING)
def test_from_outside_it_has_no_rights_and_no_namespace_of_ours(kind: IsolationKind) -> None:
    """Seen through /proc of this machine, while the answer sleeps."""
    tests = ProgramTests(cases=(("", ""),))
    program = "import time; time.sleep(60)"
    runner = sandbox(kind, seconds=1.5)
    worker = threading.Thread(target=runner.run, args=(program, tests))
    worker.start()
    fields = wait_for(filtered_child)
    names = ("user", "pid", "mnt", "net", "ipc", "uts")
    theirs = {name: os.readlink(f"/proc/{fields['Pid']}/ns/{name}") for name in names}
    worker.join()
    assert not {os.readlink(f"/proc/self/ns/{name}") for name in names} & set(theirs.values())
    assert int(fields["CapEff"], 16) == int(fields["CapPrm"], 16) == 0
    assert fields["NoNewPrivs"] == "1"
    if kind is IsolationKind.NAMESPACES:
        assert int(fields["Uid"].split()[0]) != 0  # no limit of processes binds root


@pytest.mark.parametrize("kind", KINDS)
def test_the_sandbox_dies_with_its_parent(kind: IsolationKind) -> None:
    code = (
        "from test_sandbox import IsolationKind, ProgramTests, sandbox; import sys;"
        "tests = ProgramTests(cases=(('', ''),));"
        "sandbox(IsolationKind(sys.argv[1]), seconds=60).run('while True: pass', tests)"
    )
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = {**os.environ, "PYTHONPATH": paths}
    parent = subprocess.Popen([sys.executable, "-c", code, kind], env=environment)
    sandboxed = wait_for(lambda: len(found := [*children_of(parent.pid)]) > 1 and found, 30)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_for(lambda: not any(is_running(pid) for pid in sandboxed))


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z"
    except OSError:
        return False


def test_process_isolation_alone_is_refused_unless_asked_for() -> None:
    with pytest.raises(
        SandboxError, match=r"allow_weak_sandbox=0 refuses .* set allow_weak_sandbox=1"
    ):
        LocalSandbox(kind=IsolationKind.PROCESS)
    assert LocalSandbox(kind=IsolationKind.PROCESS, allow_weak_sandbox=True).isolation.is_weak


@needs_isolation
def test_a_machine_without_namespaces_says_so() -> None:
    """In a user namespace where the kernel allows no further one, and without bubblewrap."""
    code = (
        "from forethought.tasks.base import load_task\n"
        "from forethought.errors import SandboxError\n"
        "task = load_task('humaneval:limit=1,allow_weak_sandbox=1')\n"
        "print(task.runner.isolation, task.grade(task[0], task.gold_completion(task[0])).score)\n"
        "try: load_task('humaneval')\n"
        "except SandboxError as error: print(error)\n"
    )
    unshare = shutil.which("unshare")
    assert unshare is not None
    forbid = 'echo 0 > /proc/sys/user/max_user_namespaces; exec "$@"'
    line = [unshare, "--user", "--map-root-user", "/bin/sh", "-c", forbid, "sh"]
    environment = {"PATH": "", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [*line, sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    weak, refused = done.stdout.splitlines()
    assert weak == "process 1.0"
    assert "namespaces: " in refused and "bubblewrap: bwrap is not installed" in refused


def test_the_filter_is_whole_on_every_architecture() -> None:
    """Eight bytes an instruction, and no jump leads out of it."""
    for machine in ("x86_64", "aarch64"):
        program = filter_program(machine)
        count = len(program) // 8
        assert len(program) % 8 == 0
        for index in range(count):
            operation, yes, no = program[8 * index], program[8 * index + 2], program[8 * index + 3]
            if operation & 7 == 5:
                assert index + 1 + max(yes, no) < count


ALL_TESTS = [
    CallTests(entry_point="f", cases=(Call(args=((1, {2}), None), expected=b"x"),), from_json=True),
    ProgramTests(cases=(("1", "2"),)),
    CheckTests(entry_point="f", check="assert f(1) == 1", setup="x = 1"),
]


@pytest.mark.parametrize("tests", ALL_TESTS, ids=lambda t: type(t).__name__)
def test_tests_travel_as_json(tests: Tests) -> None:
    assert decode_tests(json.loads(json.dumps(encode_tests(tests)))) == tests


@contextmanager
def service(status: int = 200, reply: bytes | None = None) -> Iterator[str]:
    """The address of a service that judges with the sandbox of this machine, or is broken."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            answer = answer_request(body, sandbox()) if reply is None else reply
            self.send_response(status)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        worker = threading.Thread(target=server.serve_forever, args=(0.01,))
        worker.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            worker.join()


def test_another_machine_can_judge() -> None:
    with service() as url:
        runner: CodeRunner = HttpRunner(url)
        tests = CheckTests(entry_point="f", check="assert f(1) == (1,)")
        assert runner.run("def f(x): return (x,)", tests).status is GradeStatus.CORRECT
        assert runner.run("def f(x): return [x]", tests).status is GradeStatus.WRONG


@pytest.mark.parametrize("reply", [b"", b"[]", b'{"status": "fine"}', b"{}"])
def test_a_broken_service_leaves_the_answer_unknown(reply: bytes) -> None:
    with service(reply=reply) as url:
        verdict = HttpRunner(url, seconds=2).run("", ALL_TESTS[1])
    assert (verdict.score, verdict.status) == (None, GradeStatus.ERROR)
    verdict = HttpRunner(url, seconds=2).run("", ALL_TESTS[1])  # nobody listens there now
    assert (verdict.score, verdict.status) == (None, GradeStatus.ERROR)
