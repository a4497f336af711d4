"""A sandboxed process: started, spoken to under a deadline, ended with all its descendants."""

from __future__ import annotations

import json
import os
import secrets
import select
import subprocess
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NoReturn, Self

from forethought.grading.child.settings import SETUP_FAILED
from forethought.grading.isolation import IsolationKind, command_line, make_settings
from forethought.types import GradeStatus

_END_SECONDS = 2.0  # how long a launcher may take to end and reap everything
_CHUNK_BYTES = 1 << 16
_MAX_COMPLAINT_BYTES = 1 << 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one answer may use, over all its tests. `seconds` is wall-clock time."""

    seconds: float = 5.0
    memory_bytes: int = 512 << 20
    output_bytes: int = 1 << 20  # what its process may send or print
    file_bytes: int = 16 << 20  # one file, and the writable folder
    max_processes: int = 16  # threads count
    max_files: int = 64


class Stopped(Exception):
    """A sandboxed process that gave no answer: too late, too much, or it ended."""

    def __init__(self, status: GradeStatus, detail: str) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail


class SetupFailed(Exception):
    """A sandbox that could not be built, this time. Says nothing about the answer."""


class SandboxProcess:
    """Messages in, replies out, and none of it after the deadline.

    A context: when it is left, the process and all its descendants are dead and reaped.
    """

    def __init__(self, kind: IsolationKind, limits: Limits, deadline: float) -> None:
        """`deadline` is a time of time.monotonic()."""
        self._kind, self._limits, self._deadline = kind, limits, deadline
        self._unread = bytearray()
        self._num_received = 0
        self._complaint = b""  # of the launcher, when it could not build the sandbox
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Start it. Raises SetupFailed when this machine starts no process now."""
        try:
            self._process = self._start()
        except OSError as error:
            self._stack.close()
            raise SetupFailed(str(error)) from error
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._in, self._out = self._process.stdin, self._process.stdout
        self._err = self._process.stderr
        for stream in (self._in, self._out, self._err):
            os.set_blocking(stream.fileno(), False)
        return self

    def _start(self) -> subprocess.Popen[bytes]:
        folder = None
        if self._kind is IsolationKind.PROCESS:
            folder = self._stack.enter_context(
                tempfile.TemporaryDirectory(prefix="forethought-", ignore_cleanup_errors=True)
            )
        limits = self._limits
        settings = make_settings(
            self._kind,
            folder=folder,
            memory_bytes=limits.memory_bytes,
            file_bytes=limits.file_bytes,
            cpu_seconds=int(limits.seconds) + 2,
            max_processes=limits.max_processes,
            max_files=limits.max_files,
        )
        return subprocess.Popen(
            command_line(settings),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={},
            cwd="/",
            bufsize=0,
            start_new_session=True,
        )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()
        for stream in (self._in, self._out, self._err):
            stream.close()
        self._stack.close()

    def _end(self) -> None:
        self._process.terminate()
        if not self._has_ended(time.monotonic() + _END_SECONDS):
            self._process.kill()
        self._process.wait()

    def start(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Send the first message and return the reply. Raises Stopped without a valid one."""
        return self._ask(message, is_first=True)

    def ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Send one more message and return the reply. Raises Stopped without a valid one."""
        return self._ask(message, is_first=False)

    def _ask(self, message: Mapping[str, Any], *, is_first: bool) -> dict[str, Any]:
        token = secrets.token_hex(8)
        data = _to_json({**message, "token": token})
        self._exchange(_with_length(data) if is_first else data + b"\n", is_last=False)
        line, _, rest = bytes(self._unread).partition(b"\n")
        self._unread = bytearray(rest)
        try:
            reply = json.loads(line)
        except (ValueError, RecursionError):
            reply = None
        if not isinstance(reply, dict) or reply.get("token") != token:
            raise Stopped(GradeStatus.ERROR, "wrote into the channel of its replies")
        return reply

    def run_program(self, source: str, stdin: str) -> tuple[str, int]:
        """Run `source` as a program to its end: (standard output, exit status)."""
        data = _with_length(_to_json({"role": "program", "parts": [source]}))
        self._exchange(data + stdin.encode("utf-8", "surrogatepass"), is_last=True)
        if not self._has_ended(self._deadline):
            raise Stopped(GradeStatus.TIMEOUT, "did not end in time")
        self._process.wait()
        self._raise_if_not_built()
        return self._unread.decode(errors="replace"), self._process.returncode

    def _exchange(self, data: bytes, *, is_last: bool) -> None:
        """Write `data` and read into `_unread` until a line has ended, or, if it is the last
        message, the stream. Both at once: neither side can block the other."""
        pending = memoryview(data)
        poll = select.poll()
        poll.register(self._out, select.POLLIN)
        poll.register(self._in, select.POLLOUT)
        has_line = b"\n" in self._unread
        while is_last or pending or not has_line:
            remaining = self._deadline - time.monotonic()
            if remaining <= 0:
                raise Stopped(GradeStatus.TIMEOUT, "gave no answer in time")
            for descriptor, _ in poll.poll(remaining * 1000):
                if descriptor == self._out.fileno():
                    piece = self._receive()
                    has_line = has_line or b"\n" in piece
                    if not piece and is_last:
                        return
                    if not piece:
                        self._raise_ended()
                else:
                    pending = self._send(pending)
                    if not pending:
                        poll.unregister(self._in)
                        if is_last:
                            self._in.close()

    def _receive(self) -> bytes:
        piece = os.read(self._out.fileno(), _CHUNK_BYTES)
        self._unread += piece
        self._num_received += len(piece)
        if self._num_received > self._limits.output_bytes:
            raise Stopped(GradeStatus.ERROR, "gave more output than it may")
        return piece

    def _send(self, pending: memoryview) -> memoryview:
        try:
            return pending[os.write(self._in.fileno(), pending[:_CHUNK_BYTES]) :]
        except BlockingIOError:
            return pending
        except BrokenPipeError:  # it reads no more; what it says still counts
            return pending[:0]

    def _raise_ended(self) -> NoReturn:
        self._end()
        self._raise_if_not_built()
        raise Stopped(GradeStatus.ERROR, "ended before all cases were answered")

    def _raise_if_not_built(self) -> None:
        if self._process.returncode == SETUP_FAILED and self._complaint:
            raise SetupFailed(self._complaint.decode(errors="replace"))

    def _has_ended(self, deadline: float) -> bool:
        """Wait for the launcher's end until `deadline`: only it holds its standard error."""
        poll = select.poll()
        poll.register(self._err, select.POLLIN)
        while (remaining := deadline - time.monotonic()) > 0:
            if poll.poll(remaining * 1000):
                piece = os.read(self._err.fileno(), _MAX_COMPLAINT_BYTES)
                self._complaint = (self._complaint + piece)[:_MAX_COMPLAINT_BYTES]
                if not piece:
                    return True
        return False


def _to_json(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message).encode()


def _with_length(data: bytes) -> bytes:
    return len(data).to_bytes(8, "big") + data
