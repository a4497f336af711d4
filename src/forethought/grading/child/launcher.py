"""The process between the parent and the foreign code: it builds the sandbox, waits, cleans up.

    parent -- launcher -- pid 1 of the namespaces -- the foreign code
    parent -- launcher -- bubblewrap -- its pid 1 -- the foreign code
    parent -- launcher -- the foreign code                               (process isolation only)

The launcher runs no foreign code. It ends with the status of the foreign process when that has
ended, or after SIGTERM; all descendants are dead and reaped by then. When its own parent dies, the
kernel kills it and all below it.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import sys

from forethought.grading.child import bubblewrap, harness, kernel, namespaces, seccomp
from forethought.grading.child.settings import SETUP_FAILED, Settings

TYPE_CHECKING = False  # see harness.py
if TYPE_CHECKING:
    from typing import NoReturn

_IS_LINUX = sys.platform == "linux"
_SIGNALS = {signal.SIGTERM, signal.SIGCHLD}

BOOT = (
    "import sys; root = sys.argv[1]; sys.path.append(root);"
    "from forethought.grading.child import launcher; sys.path.remove(root);"
    "launcher.main(sys.argv[2:])"
)


def main(arguments: list[str]) -> None:
    """`SETTINGS` launches a sandbox; `SETTINGS inside` is what bubblewrap starts."""
    settings = Settings(**json.loads(arguments[0]))
    try:
        if arguments[1:] == ["inside"]:
            prepare(settings)
        else:
            _launch(settings)
    except OSError as error:
        _fail(error)
    harness.run()


def _launch(settings: Settings) -> None:
    """Return in the process that is to run the foreign code; the launcher itself exits."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # what is ignored might not be waited for
    if _IS_LINUX:
        kernel.adopt_orphans()
        if settings.isolation == "namespaces":
            namespaces.enter()
        kernel.die_with_parent()
        kernel.hide_memory()
    if os.getppid() != settings.parent:
        raise ProcessLookupError("the parent has ended")
    alive, held = os.pipe()  # the launcher holds one end for as long as it lives
    child = os.fork()
    if child:
        _supervise(child)
    os.close(held)
    if settings.isolation == "namespaces":
        _start_in_namespaces(settings, alive)
        return
    if _IS_LINUX:
        kernel.die_with_parent()
    _end_if_closed(alive)
    if settings.isolation == "bubblewrap":
        _start_bubblewrap(settings)
    os.setsid()
    os.chdir(settings.folder)
    prepare(settings)


def _end_if_closed(alive: int) -> None:
    """End if the launcher did before it could be tied to this process."""
    poll = select.poll()
    poll.register(alive, select.POLLIN)
    if poll.poll(0):
        os._exit(SETUP_FAILED)
    os.close(alive)


def _supervise(child: int) -> NoReturn:
    """Wait for `child`, or for SIGTERM; then end all that is left and exit with its status."""
    _close_streams()
    status = None
    while status is None and signal.sigwait(_SIGNALS) != signal.SIGTERM:
        pid, found = os.waitpid(child, os.WNOHANG)
        status = found if pid else None
    if status is None:
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    _end_orphans()
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)


def _end_orphans() -> None:
    """Kill and reap what the foreign process left behind, until nothing is left."""
    try:
        while True:
            for pid in _children():
                os.kill(pid, signal.SIGKILL)  # not reaped yet, so the number is still its own
            os.waitpid(-1, 0)
    except ChildProcessError:
        return


def _children() -> list[int]:
    """Children of this process, ended ones included."""
    found = []
    for name in filter(str.isdecimal, os.listdir("/proc") if _IS_LINUX else ()):
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                parent = int(file.read().rpartition(b")")[2].split()[1])
        except OSError:  # it has ended
            continue
        if parent == os.getpid():
            found.append(int(name))
    return found


def _start_in_namespaces(settings: Settings, alive: int) -> None:
    """As pid 1: build the world, then let a child run the foreign code in it and reap for it."""
    try:
        namespaces.build(settings)
        namespaces.become_ordinary()
        _end_if_closed(alive)
        child = os.fork()
    except OSError as error:
        _fail(error)
    if child == 0:
        os.setsid()
        prepare(settings)
        return
    _close_streams()
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)


def _start_bubblewrap(settings: Settings) -> NoReturn:
    program = [settings.interpreter, "-I", "-S", "-B", "-c", BOOT, bubblewrap.INSIDE_ROOT]
    program += [settings.to_json(), "inside"]
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    os.execv(settings.bubblewrap, bubblewrap.command(settings, program))


def prepare(settings: Settings) -> None:
    """Set the limits of the process that will run the foreign code, and shut its doors."""
    limits = {
        "RLIMIT_CORE": 0,
        "RLIMIT_CPU": settings.cpu_seconds,
        "RLIMIT_FSIZE": settings.file_bytes,
        "RLIMIT_NOFILE": settings.max_files,
        "RLIMIT_NPROC": settings.max_processes,
        "RLIMIT_AS": settings.memory_bytes,
    }
    for name, value in limits.items():
        _limit(getattr(resource, name), value)
    os.environ.clear()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    if _IS_LINUX:
        kernel.die_with_parent()
        if seccomp.is_known():
            seccomp.refuse_calls()


def _limit(kind: int, value: int) -> None:
    """Lower one limit, soft and hard; never raises what is lower already."""
    _, hard = resource.getrlimit(kind)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    try:
        resource.setrlimit(kind, (value, value))
    except (OSError, ValueError):
        if _IS_LINUX:  # macOS does not know them all
            raise OSError(f"limit {kind} cannot be set") from None


def _close_streams() -> None:
    """Leave both pipes to the foreign process, so that the parent sees when it closes them."""
    os.close(0)
    os.close(1)


def _fail(error: OSError) -> NoReturn:
    os.write(2, str(error).encode())
    os._exit(SETUP_FAILED)
