"""What a disk may hold after a power cut: of files and folders, no more than was flushed.

`Disk` watches `os.fsync` and remembers what it made durable. It shows two of the states that a cut
can leave: names and content as last flushed, and names as they are now with content as last flushed
(a file that was renamed before it was flushed is then empty). Content that was never flushed is
empty, names that were never flushed are gone.
"""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

Layout = dict[Path, bytes | None]  # None is a folder; it stands before what it holds


class Disk:
    """What of `folder` survives a cut. What is there at the beginning does."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: list[int] = []  # open, so that no inode is used again
        self._content: dict[int, bytes] = {}
        self._names: dict[int, dict[str, int]] = {}
        self._is_folder: dict[int, bool] = {}
        for path in [folder, *folder.rglob("*")]:
            descriptor = os.open(path, os.O_RDONLY)
            self._remember(descriptor)
            os.close(descriptor)

    def fsync(self, descriptor: int) -> None:
        """Stands in for os.fsync."""
        if Path(os.readlink(f"/proc/self/fd/{descriptor}")).is_relative_to(self._folder):
            self._remember(descriptor)

    def close(self) -> None:
        for descriptor in self._held:
            os.close(descriptor)

    def _remember(self, descriptor: int) -> None:
        self._held.append(os.dup(descriptor))
        inode = os.fstat(descriptor).st_ino
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            self._names[inode] = names_in(path)
            self._is_folder |= {entry.stat().st_ino: entry.is_dir() for entry in path.iterdir()}
        else:
            self._content[inode] = path.read_bytes()

    def as_flushed(self) -> Layout:
        """The state in which nothing but flushes counts."""
        return self._inside(self._folder.stat().st_ino, Path())

    def _inside(self, inode: int, path: Path) -> Layout:
        found: Layout = {}
        for name, inner in self._names.get(inode, {}).items():
            if self._is_folder[inner]:
                found |= {path / name: None} | self._inside(inner, path / name)
            else:
                found[path / name] = self._content.get(inner, b"")
        return found

    def with_names_of_now(self) -> Layout:
        """The state in which every new name came through, and content did not."""
        return {
            path.relative_to(self._folder): None
            if path.is_dir()
            else self._content.get(path.stat().st_ino, b"")
            for path in sorted(self._folder.rglob("*"))
        }


def names_in(folder: Path) -> dict[str, int]:
    return {entry.name: entry.stat().st_ino for entry in folder.iterdir()}


def lay_out(layout: Layout, folder: Path) -> None:
    """Make `folder` anew, with what is in `layout`."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for path, content in layout.items():
        if content is None:
            (folder / path).mkdir()
        else:
            (folder / path).write_bytes(content)
