"""The process behind `workers.GradingPool`: reads a call, answers it, reads the next.

It runs what may have to be killed, so it holds nothing worth keeping: a fresh interpreter with an
empty environment, limits of memory and file size from the kernel, no way to its parent but one
pipe. A message is a length (4 bytes, big-endian) and so much JSON.

    {"nonce": text, "module": name}                     import it, outside every deadline
    {"nonce", "module", "function": name, "arguments": [...], "cpu_seconds": s}
    {"nonce", "status": "ok" or "error", "value": any, "message": text, "resident_bytes": n}
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import math
import os
import resource
import signal
import struct
import sys
from typing import Any

HEADER = struct.Struct(">I")
MAX_VALUE_BYTES = 1 << 20
MAX_MESSAGE_CHARS = 500
_PR_SET_PDEATHSIG = 1


def main(max_memory_bytes: int, parent: int, may_fork: bool) -> None:
    """Serve calls from stdin to stdout until stdin ends or the process `parent` dies."""
    _die_with(parent)
    requests, replies = os.dup(0), os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):  # what a function prints is no reply
        os.dup2(nowhere, stream)
    _limit(max_memory_bytes, may_fork)
    while (call := _receive(requests)) is not None:
        _send(replies, _answer(call))


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent is gone, however the parent went.

    Where there is no such service, an idle worker ends with its pipe and a busy one at its limit
    of processor time.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it went before the kernel was asked
        os._exit(0)


def _limit(max_memory_bytes: int, may_fork: bool) -> None:
    limits = {"RLIMIT_AS": max_memory_bytes, "RLIMIT_FSIZE": 0, "RLIMIT_CORE": 0}
    if not may_fork:  # the kernel does not hold root to this one
        limits["RLIMIT_NPROC"] = 0
    for name, value in limits.items():
        _, most = resource.getrlimit(kind := getattr(resource, name))
        value = value if most == resource.RLIM_INFINITY else min(value, most)
        try:
            resource.setrlimit(kind, (value, value))
        except (OSError, ValueError):  # macOS has no limit of address space
            if sys.platform == "linux":
                raise


def _answer(call: dict[str, Any]) -> bytes:
    """Do what the call says; whatever goes wrong becomes a reply with status "error"."""
    value, message = None, ""
    try:
        module = importlib.import_module(call["module"])
        if "function" in call:
            _limit_processor_time(call["cpu_seconds"])
            value = getattr(module, call["function"])(*call["arguments"])
        value_bytes = len(json.dumps(value, allow_nan=False))
        if value_bytes > MAX_VALUE_BYTES:
            message = f"the result has {value_bytes} bytes; at most {MAX_VALUE_BYTES} are allowed"
    except BaseException as error:  # Math-Verify's own errors are no Exceptions
        message = f"{type(error).__name__}: {error}"
    reply = {
        "nonce": call["nonce"],
        "status": "error" if message else "ok",
        "value": None if message else value,
        "message": message[:MAX_MESSAGE_CHARS],
        "resident_bytes": _resident_bytes(),
    }
    return json.dumps(reply).encode()


def _limit_processor_time(seconds: float) -> None:
    """The kernel's own deadline, behind that of the parent: it counts from now."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    limit = math.ceil(usage.ru_utime + usage.ru_stime + seconds) + 1
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, most))


def _resident_bytes() -> int:
    """The most memory this process ever held.

    Linux says so in /proc; what getrusage says there begins with the peak of the parent, which may
    hold a model.
    """
    with contextlib.suppress(OSError, ValueError, IndexError), open("/proc/self/status") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _receive(pipe: int) -> dict[str, Any] | None:
    """The next call, None at the end of the pipe."""
    header = _read(pipe, HEADER.size)
    body = _read(pipe, HEADER.unpack(header)[0]) if header else None
    call: dict[str, Any] | None = json.loads(body) if body else None
    return call


def _read(pipe: int, count: int) -> bytes | None:
    parts = []
    while count:
        part = os.read(pipe, min(count, 1 << 16))
        if not part:
            return None
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _send(pipe: int, body: bytes) -> None:
    message = memoryview(HEADER.pack(len(body)) + body)
    while message:
        message = message[os.write(pipe, message) :]
