"""What hostile answers try in the sandbox. None may win, hang, leave a process, a file or a trace.

Each attack runs in every isolation that this machine has. The value that would win is a random
text that only the parent knows.
"""

from __future__ import annotations

import os
import secrets
import socket
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from forethought.grading.code import Call, CallTests, CheckTests, ProgramTests, Tests
from forethought.grading.isolation import IsolationKind, why_not
from forethought.grading.sandbox import LocalSandbox
from forethought.grading.sandbox_process import Limits
from forethought.types import GradeStatus

SECONDS = 1.2
LIMITS = Limits(seconds=SECONDS)
ERROR, WRONG, TIMEOUT = GradeStatus.ERROR, GradeStatus.WRONG, GradeStatus.TIMEOUT
# What this machine has; where it has neither, the tests of the first say why and are skipped.
ISOLATING = [k for k in IsolationKind if not k.is_weak and why_not(k) is None] or [
    IsolationKind.NAMESPACES
]

# MARK, SECRET_PREFIX, PORT and FOLDER stand for what the witness below looks for.
ATTACKS: dict[str, tuple[str, set[GradeStatus]]] = {
    "a fork bomb": (
        """
import os
def f(x):
    while True:
        try: os.fork()
        except OSError: pass
""",
        {TIMEOUT},
    ),
    "a bomb of threads": (
        """
import threading, time
def bomb():
    while True:
        try: threading.Thread(target=bomb).start()
        except RuntimeError: pass
def f(x): bomb()
""",
        {TIMEOUT, ERROR},
    ),
    "a daemon": (
        """
import os
def f(x):
    if os.fork() == 0:
        os.setsid()
        while True: pass
""",
        {ERROR, WRONG},
    ),
    "another program": (
        "import subprocess\ndef f(x): return subprocess.check_output(['sh', '-c', 'id'])",
        {ERROR},
    ),
    "a memory bomb": ("def f(x): return len(bytes(10**11))", {ERROR}),
    "a slow memory bomb": (
        "def f(x):\n    kept = []\n    while True: kept.append(bytearray(1 << 24))",
        {ERROR, TIMEOUT},  # a busy machine may not get to the limit in time
    ),
    "memory in many files": (
        """
def f(x):
    for number in range(10**6):
        with open(f"{number}", "wb") as file: file.write(bytes(1 << 20))
""",
        {ERROR},
    ),
    "a file without end": (
        "def f(x):\n    file = open('a', 'wb')\n    while True: file.write(bytes(1 << 20))",
        {ERROR},
    ),
    "a flood of output": ("def f(x):\n    while True: print('x' * 10**6)", {TIMEOUT}),
    "a flood into every descriptor": (
        """
import os
def f(x):
    while True:
        for number in range(64):
            try: os.write(number, b"x" * 60000)
            except OSError: pass
""",
        {ERROR},
    ),
    "10 MB of answer": ("def f(x): return 'x' * 10**7", {ERROR}),
    "an integer of 10 MB": ("def f(x): return 1 << (8 * 10**7)", {ERROR}),
    "nesting": (
        "def f(x):\n    v = []\n    for _ in range(10**5): v = [v]\n    return v",
        {ERROR},
    ),
    "nesting written by hand": (
        """
import os, sys
def f(x):
    token = sys._getframe(1).f_back.f_locals["message"]["token"]
    data = '{"token": "%s", "value": %s}\\n' % (token, "[" * 200000 + "]" * 200000)
    for number in range(64):
        try: os.write(number, data.encode())
        except OSError: pass
""",
        {ERROR},
    ),
    "a list that holds itself": ("def f(x):\n    v = []; v.append(v); return v", {ERROR}),
    "sys.exit(0) at once": ("import sys; sys.exit(0)", {ERROR}),
    "sys.exit(0) when called": ("import sys\ndef f(x): sys.exit(0)", {ERROR}),
    "os._exit(0) at once": ("import os; os._exit(0)", {ERROR}),
    "os._exit(0) when called": ("import os\ndef f(x): os._exit(0)", {ERROR}),
    "the status of a failed setup": (
        """
import os
def f(x):
    for number in range(64):
        try: os.write(number, b"no sandbox")
        except OSError: pass
    os._exit(125)
""",
        {ERROR},
    ),
    "a crash": ("import ctypes\ndef f(x): ctypes.string_at(0)", {ERROR}),
    "deep recursion": (
        "import sys\nsys.setrecursionlimit(10**9)\ndef f(x): return f(x)",
        {ERROR, TIMEOUT},
    ),
    "printing the pass mark": (
        """
import os
marks = b'{"passed": true}\\n', b'{"token": "", "value": "", "passed": true}\\n', b"PASSED\\n"
def f(x):
    for mark in marks:
        print(mark.decode())
        for number in range(64):
            try: os.write(number, mark)
            except OSError: pass
    return "passed"
""",
        {ERROR},
    ),
    "an object equal to everything": (
        """
class Equal:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 0
def f(x): return Equal()
""",
        {WRONG},
    ),
    "a text equal to everything": (
        """
class Equal(str):
    def __eq__(self, other): return True
    __hash__ = str.__hash__
def f(x): return Equal("no")
""",
        {WRONG},
    ),
    "reading the tests": (
        """
import gc, os, sys
def texts(value, depth=0):
    if isinstance(value, bytes): yield value.decode("latin1")
    elif isinstance(value, str): yield value
    elif depth < 4 and isinstance(value, dict):
        for item in list(value.items()): yield from texts(item, depth + 1)
    elif depth < 4 and isinstance(value, (list, tuple, set)):
        for item in list(value): yield from texts(item, depth + 1)
def reachable():
    yield from texts(sys.argv); yield from texts(dict(os.environ))
    frame = sys._getframe()
    while frame:
        yield from texts([dict(frame.f_locals), dict(frame.f_globals)])
        frame = frame.f_back
    for item in gc.get_objects(): yield from texts(item)
    for folder, _, names in os.walk("."):
        for name in names: yield open(os.path.join(folder, name), errors="replace").read()
def f(x):
    for text in reachable():
        if "SECRET_PREFIX" in text and len(text) < 100 and not text.endswith("PREFIX"): return text
    return "not found"
""",
        {WRONG, TIMEOUT},
    ),
    "patching the test runner": (
        """
import builtins, json, sys
from types import ModuleType
for name, module in list(sys.modules.items()):
    if name.startswith("forethought"):
        for key in list(vars(module)):
            if key.startswith("_attempt"): setattr(module, key, lambda *a, **k: {"value": "pass"})
json.loads = lambda *a, **k: {"passed": True}
builtins.isinstance = lambda *a: True
def f(x): return "pass"
""",
        {WRONG, ERROR},
    ),
    "patching comparison": (
        """
import builtins, operator
builtins.all = builtins.bool = lambda *a: True
operator.eq = lambda *a: True
def f(x): return "pass"
""",
        {WRONG, ERROR},
    ),
    "answering in advance": (
        """
import os
for number in range(64):
    try: os.write(number, b'{"token": "0", "value": "pass"}\\n' * 10)
    except OSError: pass
def f(x): return "pass"
""",
        {ERROR},
    ),
    "claiming that the tests are broken": (
        "def f(x): raise SyntaxError('the test cannot be parsed')",
        {ERROR},
    ),
    "writing outside": (
        """
import os
def f(x):
    folders = ["/", "/usr/lib", "/lib", "/dev", "/dev/shm", "/etc", "/root", "FOLDER", "/tmp", "."]
    for folder in folders:
        try: open(os.path.join(folder, "MARK"), "w").write("here")
        except OSError: pass
    return "written"
""",
        {WRONG},
    ),
    "writing through links": (
        """
import os
def f(x):
    for number, target in enumerate(["FOLDER", "/", "/usr/lib", "/etc/passwd", "/proc/1/root"]):
        try: os.symlink(target, f"link{number}")
        except OSError: pass
        try: os.link(target, f"hard{number}")
        except OSError: pass
        for path in (f"link{number}/MARK", f"link{number}", f"hard{number}", "../FOLDER/MARK"):
            try: open(path, "a").write("here")
            except OSError: pass
    return "written"
""",
        {WRONG},
    ),
    "snooping in /proc": (
        """
import glob
def f(x):
    for path in sum([glob.glob("/proc/*/" + n) for n in ("environ", "cmdline", "maps")], []):
        try: text = open(path, errors="replace").read()
        except OSError: continue
        return "read " + text[:50]
    return "nothing to read"
""",
        {WRONG},
    ),
    "signals to the parent": (
        """
import os, signal
def f(x):
    for pid in (os.getppid(), 1, -1, 0, *range(2, 300)):
        for name in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM):
            if pid != os.getpid():
                try: os.kill(pid, name)
                except OSError: pass
    return "sent"
""",
        {WRONG, ERROR},
    ),
    "calling the network": (
        """
import socket
def f(x):
    for host in ("127.0.0.1", "localhost", "10.0.0.1"):
        try: socket.create_connection((host, PORT), timeout=0.2).send(b"MARK")
        except OSError: pass
    return "called"
""",
        {WRONG},
    ),
    "a sleep past the deadline": ("import time\ndef f(x): time.sleep(60)", {TIMEOUT}),
    "a loop that no signal ends": (
        """
import signal
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
def f(x):
    while True:
        try:
            while True: pass
        except BaseException: pass
""",
        {TIMEOUT},
    ),
    "a loop in one C call": ("def f(x): return 10 ** 10 ** 9", {TIMEOUT, ERROR}),
    "an exception that hangs": (
        """
class Slow(Exception):
    def __str__(self):
        while True: pass
def f(x): raise Slow
""",
        {TIMEOUT},
    ),
    "closing the streams": (
        "import os, time\ndef f(x):\n    os.closerange(0, 64)\n    time.sleep(60)",
        {ERROR, TIMEOUT},
    ),
    "nul bytes": ("def f(x): return '\0'\0", {ERROR}),
    "half a surrogate": ("def f(x): return '\udc80'", {WRONG, ERROR}),
    "no code at all": ("", {ERROR}),
    "new namespaces": (
        """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def f(x):
    done = [libc.unshare(0x10000000), libc.unshare(0x20000), libc.setns(0, 0), libc.chroot(b".")]
    done += [libc.mount(b"none", b".", b"tmpfs", 0, None), libc.ptrace(16, 1, 0, 0)]
    return "refused" if done == [-1] * 6 else "not refused: " + str(done)
""",
        {WRONG, ERROR},
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Witness:
    """What is looked at after an attack."""

    mark: str
    secret: str
    folder: Path
    listener: socket.socket

    def source(self, attack: str) -> str:
        port = str(self.listener.getsockname()[1])
        attack = attack.replace("MARK", self.mark).replace("FOLDER", str(self.folder))
        return attack.replace("PORT", port)

    def saw_nothing(self) -> None:
        assert survivors() == []
        shared = [Path("/dev/shm"), Path("/usr/lib"), Path("/"), Path.cwd(), Path.home()]
        for folder in [self.folder, Path(tempfile.gettempdir()), *shared]:
            assert not (folder / self.mark).exists(), folder
        assert (self.folder / "kept").read_text() == "as it was"
        with pytest.raises(BlockingIOError):
            self.listener.accept()


@pytest.fixture
def witness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Witness]:
    monkeypatch.setenv("PASSWORD", "SECRET_PREFIX of the environment")
    (tmp_path / "kept").write_text("as it was")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        mark, secret = secrets.token_hex(8), f"SECRET_PREFIX {secrets.token_hex(8)}"
        yield Witness(mark=mark, secret=secret, folder=tmp_path, listener=listener)


def survivors() -> list[str]:
    """Command lines of sandboxed processes that this process started and that still run."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().decode(errors="replace")
        except OSError:  # it ended meanwhile
            continue
        if "forethought.grading.child" in line and f'"parent": {os.getpid()},' in line:
            found.append(line)
    return found


def attack(kind: IsolationKind, witness: Witness, source: str, tests: Tests) -> GradeStatus:
    """Run an attack, look for what it left, and return how it was judged."""
    if reason := why_not(kind):
        pytest.skip(f"no {kind} here: {reason}")
    sandbox = LocalSandbox(LIMITS, kind=kind)
    began = time.monotonic()
    verdict = sandbox.run(witness.source(source), tests)
    assert time.monotonic() - began < SECONDS + 0.5
    witness.saw_nothing()
    assert verdict.score == 0.0, verdict
    return verdict.status


@pytest.mark.parametrize("kind", ISOLATING)
@pytest.mark.parametrize("name", ATTACKS)
def test_a_called_function_cannot_win(kind: IsolationKind, name: str, witness: Witness) -> None:
    source, statuses = ATTACKS[name]
    cases = tuple(Call(args=(number,), expected=witness.secret) for number in range(2))
    assert attack(kind, witness, source, CallTests(entry_point="f", cases=cases)) in statuses


# Those that could mean something else to the process of a test.
AGAINST_CHECKS = [
    "10 MB of answer",
    "nesting written by hand",
    "a list that holds itself",
    "sys.exit(0) at once",
    "sys.exit(0) when called",
    "os._exit(0) when called",
    "the status of a failed setup",
    "printing the pass mark",
    "an object equal to everything",
    "a text equal to everything",
    "reading the tests",
    "patching the test runner",
    "patching comparison",
    "answering in advance",
    "claiming that the tests are broken",
    "a sleep past the deadline",
    "closing the streams",
    "half a surrogate",
]


@pytest.mark.parametrize("name", AGAINST_CHECKS)
def test_an_answer_cannot_reach_the_code_of_its_test(name: str, witness: Witness) -> None:
    source, statuses = ATTACKS[name]
    check = f"def check(candidate):\n    assert candidate(1) == {witness.secret!r}\n"
    tests = CheckTests(entry_point="f", check=check)
    assert attack(ISOLATING[0], witness, source, tests) in statuses


PROGRAMS = {
    "a flood": ("while True: print('x' * 1000)", ERROR),
    "10 MB": ("print('x' * 10**7)", ERROR),
    "nothing": ("", WRONG),
    "exit 0": ("import sys; sys.exit(0)", WRONG),
    "a pass mark": ("print('PASSED'); print('{\"passed\": true}')", WRONG),
    "exit 1 after the right answer": ("print(input()); raise SystemExit(1)", ERROR),
    "a sleep after the right answer": (
        "import time; print(input(), flush=True)\ntime.sleep(60)",
        TIMEOUT,
    ),
    "closed streams and a sleep": (
        "import os, time; print(input(), flush=True)\nos.closerange(0, 3); time.sleep(60)",
        TIMEOUT,
    ),
    "a thread that stays": (
        "import threading, time; print(input(), flush=True)\n"
        "threading.Thread(target=time.sleep, args=[60]).start()",
        TIMEOUT,
    ),
    "a fork bomb": ("import os\nwhile True: os.fork()", ERROR),
    "nul bytes": ("print('\0')\0", ERROR),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_cannot_win(name: str, witness: Witness) -> None:
    source, status = PROGRAMS[name]
    tests = ProgramTests(cases=(("hello", "hello"), ("secret", witness.secret)))
    assert attack(ISOLATING[0], witness, source, tests) is status
