"""The system calls that Python's standard library lacks, through ctypes. Linux only.

Numbers and constants are the kernel's own (include/uapi). Every call raises OSError on failure.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct

# unshare(2)
NEWNS, NEWUTS, NEWIPC = 0x00020000, 0x04000000, 0x08000000
NEWUSER, NEWPID, NEWNET = 0x10000000, 0x20000000, 0x40000000
# mount(2), umount2(2), mount_setattr(2)
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
MNT_DETACH = 2
_ATTR_RDONLY, _ATTR_NOSUID = 1, 2
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
# prctl(2)
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP = 1, 4, 22
_PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 36, 38
_MODE_FILTER = 2
_CAPABILITY_VERSION_3 = 0x20080522

# Numbers of system calls that glibc does not wrap.
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_MOUNT_SETATTR = 442  # on every architecture

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """Leave the namespaces that `flags` names for new ones."""
    _checked(_libc.unshare(flags), "unshare")


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    """mount(2); `kind` is a file system, or None for binds and changes of an old mount."""
    names = os.fsencode(source), os.fsencode(target), None if kind is None else kind.encode()
    result = _libc.mount(*names, ctypes.c_ulong(flags), options.encode())
    _checked(result, f"mount {target}")


def protect_tree(target: str) -> None:
    """Make every mount at and below `target` read-only, and its setuid programs ordinary."""
    attributes = struct.pack("QQQQ", _ATTR_RDONLY | _ATTR_NOSUID, 0, 0, 0)
    result = _libc.syscall(
        ctypes.c_long(_MOUNT_SETATTR),
        ctypes.c_int(_AT_FDCWD),
        os.fsencode(target),
        ctypes.c_uint(_AT_RECURSIVE),
        attributes,
        ctypes.c_size_t(len(attributes)),
    )
    _checked(result, "mount_setattr")


def pivot_root(new: str, old: str) -> None:
    """Make `new` the root of this mount namespace; the former root appears at `old`."""
    number = _PIVOT_ROOT[os.uname().machine]
    result = _libc.syscall(ctypes.c_long(number), os.fsencode(new), os.fsencode(old))
    _checked(result, "pivot_root")


def detach(target: str) -> None:
    """Unmount `target` and all below it."""
    _checked(_libc.umount2(os.fsencode(target), MNT_DETACH), f"umount {target}")


def _prctl(option: int, value: int, what: str) -> None:
    zero = ctypes.c_ulong(0)
    _checked(_libc.prctl(option, ctypes.c_ulong(value), zero, zero, zero), what)


def die_with_parent() -> None:
    """Ask for SIGKILL when the parent ends. A change of user forgets this."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, "pdeathsig")


def adopt_orphans() -> None:
    """Become the parent of all descendants whose own parent ends."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1, "subreaper")


def hide_memory() -> None:
    """Let no other process of this user read our memory or descriptors."""
    _prctl(_PR_SET_DUMPABLE, 0, "dumpable")


def drop_capabilities() -> None:
    """Give up every capability, for good: no program run from here on can gain any."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1, "no_new_privs")
    header = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
    _checked(_libc.capset(header, struct.pack("6I", *[0] * 6)), "capset")


def set_filter(program: bytes) -> None:
    """Install a seccomp filter, an array of classic BPF instructions of 8 bytes each."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1, "no_new_privs")
    code = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
    zero = ctypes.c_ulong(0)
    result = _libc.prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_MODE_FILTER), header, zero, zero)
    _checked(result, "seccomp")
