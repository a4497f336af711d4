"""One worker process as its parent sees it: start it, ask it, kill it.

What it answers is JSON from a process that may have run hostile text: it is read under a deadline,
its size is limited and every part of it is checked.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from secrets import token_hex
from typing import Any

from forethought.grading.worker import HEADER, MAX_MESSAGE_CHARS, MAX_VALUE_BYTES

START_SECONDS = 60.0  # for a process to start and to import a module, outside of every deadline
_MAX_REPLY_BYTES = MAX_VALUE_BYTES + 4096
_CHUNK = 1 << 16
# sys.path is that of the parent, without the folder it was started in.
_BOOT = (
    "import json, sys; path, *limits = json.loads(sys.argv[1]); sys.path[:] = path;"
    "from forethought.grading.worker import main; main(*limits)"
)
# No secret of the parent's environment is in a worker's; one thread each is enough.
_KEPT_VARIABLES = ("HOME", "PATH", "LD_LIBRARY_PATH")
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class OutcomeStatus(StrEnum):
    """How a call ended."""

    OK = "ok"
    TIMEOUT = "timeout"  # it ran past its deadline and its worker was killed
    ERROR = "error"  # the function raised, or returned what is no JSON or too large
    DIED = "died"  # its worker exited, was killed, answered with nonsense, or the pool was closed


@dataclass(frozen=True, slots=True)
class Outcome:
    """`value` is what the function returned when the status is OK, else None.

    `message` says in one line what went wrong. `seconds` is wall-clock time in the worker.
    """

    value: Any
    status: OutcomeStatus
    message: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Call:
    """A function by name, what it is called with, and how long it may take."""

    module: str
    function: str
    arguments: Sequence[Any]
    deadline_seconds: float


class WorkerProcess:
    """One worker, seen from its parent. It leads a session and a process group of its own."""

    def __init__(self, max_memory_bytes: int, may_fork: bool) -> None:
        kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
        own = dict.fromkeys(_THREAD_VARIABLES, "1") | {"LANG": "C.UTF-8"}
        call = json.dumps([_import_path(), max_memory_bytes, os.getpid(), may_fork])
        self._popen = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", "-c", _BOOT, call],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
            cwd="/",
            env=kept | own,
        )
        assert self._popen.stdin is not None and self._popen.stdout is not None
        self._requests, self._replies = self._popen.stdin.fileno(), self._popen.stdout.fileno()
        os.set_blocking(self._requests, False)
        self._modules: set[str] = set()
        self._num_calls = 0
        self._resident_bytes = 0
        self._killing = threading.Lock()
        self._is_dead = False

    def is_usable(self, max_calls: int, max_resident_bytes: int) -> bool:
        """False for one that is dead, has said what nobody asked for, or is worn out."""
        if self._is_dead or self._num_calls >= max_calls:
            return False
        poller = select.poll()
        poller.register(self._replies, select.POLLIN)
        return self._resident_bytes <= max_resident_bytes and not poller.poll(0)

    def call(self, call: Call) -> Outcome:
        """Import the module if it is new here, then call the function. Never raises."""
        if call.module not in self._modules:
            found = self._exchange({"module": call.module}, START_SECONDS)
            if found.status is not OutcomeStatus.OK:
                return never_ran(f"{call.module} could not be loaded: {found.message}")
            self._modules.add(call.module)
        self._num_calls += 1
        request = {
            "module": call.module,
            "function": call.function,
            "arguments": call.arguments,
            "cpu_seconds": call.deadline_seconds,
        }
        return self._exchange(request, call.deadline_seconds)

    def kill(self) -> None:
        """End the worker and all of its group, and wait for it. Twice is once."""
        with self._killing:
            if self._is_dead:
                return
            self._is_dead = True
            # macOS refuses where all of the group has ended already.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._popen.pid, signal.SIGKILL)
            self._popen.wait()

    def close_pipes(self) -> None:
        """For the thread that reads them, once the worker is dead."""
        for pipe in (self._popen.stdin, self._popen.stdout):
            assert pipe is not None
            pipe.close()

    def _exchange(self, request: dict[str, Any], seconds: float) -> Outcome:
        nonce = token_hex(8)
        body = json.dumps(request | {"nonce": nonce}).encode()
        began = time.monotonic()
        try:
            reply = self._transfer(HEADER.pack(len(body)) + body, began + seconds)
            outcome = _read_reply(reply, nonce, time.monotonic() - began)
            self._resident_bytes = reply["resident_bytes"]
            return outcome
        except TimeoutError:
            status, message = OutcomeStatus.TIMEOUT, f"ran longer than {seconds:g} s"
        except (EOFError, OSError):
            status, message = OutcomeStatus.DIED, "the worker was killed or exited"
        except (ValueError, RecursionError):
            status, message = OutcomeStatus.DIED, "the worker sent what is no reply"
        spent = time.monotonic() - began
        self.kill()
        return Outcome(None, status, message, spent)

    def _transfer(self, message: bytes, deadline: float) -> Any:
        """Send a message and read one back, both by `deadline` (of time.monotonic)."""
        unsent, received = memoryview(message), bytearray()
        poller = select.poll()
        poller.register(self._requests, select.POLLOUT)
        poller.register(self._replies, select.POLLIN)
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            for pipe, _ in poller.poll(1000 * left + 1):
                if pipe == self._requests:
                    unsent = unsent[os.write(pipe, unsent[:_CHUNK]) :]
                    if not unsent:
                        poller.unregister(pipe)
                elif part := os.read(pipe, _CHUNK):
                    received += part
                else:
                    raise EOFError
            if len(received) < HEADER.size:
                continue
            (size,) = HEADER.unpack_from(received)
            if size > _MAX_REPLY_BYTES or len(received) > HEADER.size + size:
                raise ValueError("larger than a reply can be")
            if len(received) == HEADER.size + size:
                return json.loads(bytes(received[HEADER.size :]))


def _read_reply(reply: Any, nonce: str, seconds: float) -> Outcome:
    """What a reply says. It may come from hostile code: ValueError unless each part is sound."""
    if not isinstance(reply, dict) or reply.get("nonce") != nonce:
        raise ValueError("not an answer to this call")
    status, message = reply.get("status"), reply.get("message")
    if status not in ("ok", "error") or not isinstance(message, str) or "value" not in reply:
        raise ValueError("parts are missing")
    if type(reply.get("resident_bytes")) is not int:
        raise ValueError("no memory is named")
    if status == "error":
        return Outcome(None, OutcomeStatus.ERROR, message[:MAX_MESSAGE_CHARS], seconds)
    return Outcome(reply["value"], OutcomeStatus.OK, "", seconds)


def never_ran(message: str) -> Outcome:
    """The outcome of a call that no worker took up; its `seconds` are 0."""
    return Outcome(None, OutcomeStatus.DIED, message)


def _import_path() -> list[str]:
    """Where a worker finds modules: as this process does, but for the folder it was started in."""
    package = str(Path(__file__).resolve().parent.parent.parent)
    return [package, *(os.path.abspath(entry) for entry in sys.path if entry)]
