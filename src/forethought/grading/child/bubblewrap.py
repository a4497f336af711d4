"""The same small world, built by bubblewrap where the kernel lets only that program build it."""

from __future__ import annotations

from forethought.grading.child.namespaces import DEVICES
from forethought.grading.child.settings import Settings

# Where the folder of this file lies inside, as part of a package with the name it has outside.
INSIDE_ROOT = "/forethought_root"
_PACKAGE = "forethought/grading/child"


def command(settings: Settings, program: list[str]) -> list[str]:
    """The command line that runs `program` inside."""
    line = [settings.bubblewrap, "--unshare-all", "--unshare-user", "--die-with-parent"]
    line += ["--new-session", "--clearenv", "--cap-drop", "ALL", "--uid", "1000", "--gid", "1000"]
    child = f"{settings.package_root}/{_PACKAGE}"
    for path in (*settings.visible, settings.interpreter):
        line += ["--ro-bind", path, path]
    for path in settings.hidden:
        line += ["--tmpfs", path, "--remount-ro", path]
    line += ["--ro-bind", child, f"{INSIDE_ROOT}/{_PACKAGE}"]
    for name in DEVICES:
        line += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
    line += ["--size", str(settings.file_bytes), "--tmpfs", settings.folder]
    return [*line, "--remount-ro", "/", "--chdir", settings.folder, *program]
