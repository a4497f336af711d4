"""How far foreign code is shut off on this machine: which way works, found out by trying it.

    namespaces    new user, pid, mount, network, ipc and uts namespaces, built by ourselves
    bubblewrap    the same, built by bubblewrap, where only that program may (Ubuntu's AppArmor)
    process       a process of its own with limits, and nothing else: the host's files stay in reach

The first two isolate; the last does not, and is refused for foreign code unless it is asked for.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path

from forethought.grading.child.launcher import BOOT
from forethought.grading.child.settings import Settings

PACKAGE_ROOT = str(Path(__file__).resolve().parents[2])
# Not `sys.executable`, which in a virtual environment is a link that leads outside of it.
INTERPRETER = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
FOLDER_INSIDE = "/tmp"
_LIBRARY_FOLDERS = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")
_PROBE_SECONDS = 20.0  # a busy machine starts an interpreter late


class IsolationKind(StrEnum):
    """What stands between foreign code and this machine, strongest first."""

    NAMESPACES = "namespaces"
    BUBBLEWRAP = "bubblewrap"
    PROCESS = "process"

    @property
    def is_weak(self) -> bool:
        """True where foreign code could read and write the files of the user who runs it."""
        return self is IsolationKind.PROCESS


@dataclass(frozen=True, slots=True, kw_only=True)
class Isolation:
    """The isolation that this machine gives; `reasons` says why stronger kinds are not given."""

    kind: IsolationKind
    reasons: tuple[str, ...] = ()


@cache
def find_isolation() -> Isolation:
    """The strongest kind that works here. Tries each once in a process (some 50 ms)."""
    reasons: list[str] = []
    for kind in (IsolationKind.NAMESPACES, IsolationKind.BUBBLEWRAP):
        reason = why_not(kind)
        if reason is None:
            return Isolation(kind=kind, reasons=tuple(reasons))
        reasons.append(f"{kind}: {reason}")
    return Isolation(kind=IsolationKind.PROCESS, reasons=tuple(reasons))


@cache
def why_not(kind: IsolationKind) -> str | None:
    """Why this kind does not work here, or None when it does."""
    if kind is not IsolationKind.PROCESS and sys.platform != "linux":
        return "needs Linux"
    if kind is IsolationKind.BUBBLEWRAP and not shutil.which("bwrap"):
        return "bwrap is not installed"
    program = b'{"role": "program", "parts": ["print(6 * 7)"]}'
    settings = make_settings(kind, folder=None if kind is not IsolationKind.PROCESS else "/")
    try:
        done = subprocess.run(
            command_line(settings),
            input=len(program).to_bytes(8, "big") + program,
            capture_output=True,
            timeout=_PROBE_SECONDS,
            env={},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.stdout == b"42\n" and done.returncode == 0:
        return None
    said = done.stderr.decode(errors="replace").strip().splitlines()
    return said[-1] if said else f"a trial ended with status {done.returncode}"


def command_line(settings: Settings) -> list[str]:
    """What starts a launcher: an interpreter that reads no site, no environment, no bytecode."""
    return [INTERPRETER, "-I", "-S", "-B", "-c", BOOT, PACKAGE_ROOT, settings.to_json()]


def make_settings(
    kind: IsolationKind,
    *,
    folder: str | None = None,
    memory_bytes: int = 512 << 20,
    file_bytes: int = 16 << 20,
    cpu_seconds: int = 10,
    max_processes: int = 16,
    max_files: int = 64,
) -> Settings:
    """The settings of one sandboxed process started by this one."""
    visible, hidden = _library()
    return Settings(
        isolation=kind.value,
        parent=os.getpid(),
        memory_bytes=memory_bytes,
        file_bytes=file_bytes,
        cpu_seconds=cpu_seconds,
        max_processes=max_processes,
        max_files=max_files,
        visible=visible,
        hidden=hidden,
        bubblewrap=shutil.which("bwrap") or "",
        interpreter=INTERPRETER,
        package_root=PACKAGE_ROOT,
        folder=folder or FOLDER_INSIDE,
    )


@cache
def _library() -> tuple[list[str], list[str]]:
    """(what can be read inside, what is empty there): libraries without any installed package.

    Installed packages hold data sets, and with them the tests that an answer is judged by.
    """
    own = [os.path.join(sys.base_prefix, "lib"), os.path.dirname(os.__file__)]
    compiled = "python{}.{}".format(*sys.version_info)
    own += [os.path.join(sys.base_exec_prefix, sys.platlibdir, compiled)]
    shown = [*_LIBRARY_FOLDERS, *own, "/etc/ld.so.cache"]
    visible = list(dict.fromkeys(path for path in shown if os.path.exists(path)))
    hidden = {
        str(path)
        for folder in visible
        for pattern in ("*-packages", "python*/*-packages")
        for path in Path(folder).glob(pattern)
        if path.is_dir()
    }
    return visible, sorted(hidden)
