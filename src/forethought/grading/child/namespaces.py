"""A process in a world of its own: new user, pid, mount, network, ipc and uts namespaces.

What can be seen inside: the libraries of the interpreter and of the system, read-only; four device
files; one small writable folder in memory. No /proc, no /sys, no network device, no process of the
host, and nothing else of its disk.
"""

from __future__ import annotations

import os

from forethought.grading.child import kernel
from forethought.grading.child.settings import Settings

DEVICES = ("null", "zero", "full", "urandom")
_INSIDE = 1000  # the user and group that run the foreign code, as numbered inside
_NOBODY = 65534  # and outside, when root starts the sandbox: no limit of processes binds root
_STAGE = "/tmp"  # exists everywhere; the new root is mounted over it in our namespace only
_OLD_ROOT = "/old_root"


def enter() -> None:
    """Move this process into new namespaces; its next child is pid 1 of the new pid namespace.

    Raises OSError where the kernel, or what confines this process, refuses.
    """
    waiting, go = os.pipe()
    pid, user, group = os.getpid(), os.geteuid(), os.getegid()
    writer = os.fork()  # stays outside, where the right to write the maps is
    if writer == 0:
        os.close(go)
        is_unshared = os.read(waiting, 1) == b"1"
        os._exit(0 if is_unshared and _write_maps(pid, user, group) else 1)
    os.close(waiting)
    try:
        kernel.unshare(
            kernel.NEWUSER | kernel.NEWPID | kernel.NEWNET | kernel.NEWIPC | kernel.NEWUTS
        )
        os.write(go, b"1")
    finally:
        os.close(go)
        _, status = os.waitpid(writer, 0)
    if status:
        raise PermissionError("the user of a new namespace cannot be mapped")


def _write_maps(pid: int, user: int, group: int) -> bool:
    """Map _INSIDE to an ordinary user: to this one, or, if this is root, to nobody, where root
    itself stays mapped while it sets up."""
    alone = f"{_INSIDE} {{}} 1\n"
    pair = f"0 {{}} 1\n{_INSIDE} {_NOBODY} 1\n"
    if user == 0 and _write_pair(pid, pair.format(user), pair.format(group)):
        return True
    _write(f"/proc/{pid}/setgroups", "deny")
    return _write_pair(pid, alone.format(user), alone.format(group))


def _write_pair(pid: int, users: str, groups: str) -> bool:
    return _write(f"/proc/{pid}/gid_map", groups) and _write(f"/proc/{pid}/uid_map", users)


def _write(path: str, text: str) -> bool:
    """Write to a file of the kernel, if it lets us."""
    try:
        with open(path, "w") as file:
            file.write(text)
    except OSError:
        return False
    return True


def build(settings: Settings) -> None:
    """As pid 1, with all capabilities in the new namespaces: make the small world and step in."""
    _forbid_more()
    sources = {
        path: os.path.realpath(path) for path in settings.visible
    }  # links lead nowhere later
    kernel.unshare(kernel.NEWNS)
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    kernel.mount("tmpfs", _STAGE, "tmpfs", 0, "size=1m,mode=755")
    os.mkdir(_STAGE + _OLD_ROOT)
    kernel.pivot_root(_STAGE, _STAGE + _OLD_ROOT)
    os.chdir("/")
    for path, source in sources.items():
        _make_target(path, is_folder=os.path.isdir(_OLD_ROOT + source))
        kernel.mount(_OLD_ROOT + source, path, None, kernel.MS_BIND | kernel.MS_REC)
    for path in settings.hidden:
        kernel.mount("tmpfs", path, "tmpfs", 0, "size=4k,mode=755")
    for name in DEVICES:
        _make_target(f"/dev/{name}", is_folder=False)
        kernel.mount(f"{_OLD_ROOT}/dev/{name}", f"/dev/{name}", None, kernel.MS_BIND)
    kernel.detach(_OLD_ROOT)
    os.rmdir(_OLD_ROOT)
    os.makedirs(settings.folder, exist_ok=True)
    kernel.protect_tree("/")
    flags = kernel.MS_NOSUID | kernel.MS_NODEV
    size = f"size={settings.file_bytes},nr_inodes=1000,mode=777"
    kernel.mount("tmpfs", settings.folder, "tmpfs", flags, size)
    os.chdir(settings.folder)


def _forbid_more() -> None:
    """No further namespace can be made below these, and the kernel ends this process first when
    memory is short. Both are extra: a container may refuse them."""
    for name in ("user", "pid", "net", "ipc", "uts", "cgroup"):
        _write(f"/proc/sys/user/max_{name}_namespaces", "0")
    _write("/proc/sys/user/max_mnt_namespaces", "1")  # the one that `build` is about to make
    _write("/proc/self/oom_score_adj", "1000")


def _make_target(path: str, *, is_folder: bool) -> None:
    """An empty folder or file to mount over; there may be one already, by another mount."""
    if is_folder:
        os.makedirs(path, exist_ok=True)
    elif not os.path.exists(path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.close(os.open(path, os.O_CREAT, 0o644))


def become_ordinary() -> None:
    """Give up root's number, if it was mapped, and every capability."""
    if os.geteuid() != _INSIDE:
        os.setgroups([])
        os.setresgid(_INSIDE, _INSIDE, _INSIDE)
        os.setresuid(_INSIDE, _INSIDE, _INSIDE)
    kernel.drop_capabilities()
    kernel.hide_memory()
    kernel.die_with_parent()
