"""Files that are whole or absent: atomic writes, appended JSON lines, folders with a manifest.

A process may be killed between any two instructions. A file written here has its old content or its
new one; a file of JSON lines ends, at worst, in one half-written line that readers skip; a folder
counts only when its manifest matches what it holds.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
TEMPORARY_PREFIX = ".tmp-"
_DISK = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM,
)  # fmt: skip
_WRONG = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL)
_TOLD = re.compile(r"\(os error (\d+)\)")
_SMALLEST_USEFUL_BYTES = 1 << 16


def write_atomic(path: Path, text: str) -> None:
    """Replace `path` by `text` (UTF-8) in one step, or raise OSError and leave it as it was."""
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{path.name}")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a power cut (a no-op where folders cannot be opened)."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def first_missing(path: Path) -> Path | None:
    """The outermost folder that `make_folder(path)` would make; None when all exist."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    return missing[-1] if missing else None


def make_folder(path: Path) -> None:
    """Make a folder and those above it, in a way that survives a power cut. Raises OSError."""
    outermost = first_missing(path)
    path.mkdir(parents=True, exist_ok=True)
    if outermost is not None:
        for folder in (path, *path.parents):
            sync_folder(folder.parent)
            if folder == outermost:
                break


def flush_file(path: Path) -> None:
    """Make what was written to `path` survive a power cut. Raises OSError."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def append_lines(path: Path, rows: Iterable[object]) -> None:
    """Append one JSON line for each row, all or none of them. Raises OSError."""
    data = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode()
    size = path.stat().st_size if path.exists() else 0
    try:
        with path.open("ab") as file:
            file.write(data)
    except OSError:
        if path.exists():
            os.truncate(path, size)
        raise


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines, less those that are damaged, as a half-written last one
    is; [] when there is no file."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_bytes().rpartition(b"\n")[0].split(b"\n"):
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return rows


def keep_lines_until(path: Path, step: int) -> None:
    """Drop the rows of steps after `step`, and a half-written last line. Raises OSError."""
    if not path.exists():
        return
    kept = [row for row in read_lines(path) if row["step"] <= step]
    write_atomic(path, "".join(json.dumps(row) + "\n" for row in kept))


def seal(folder: Path) -> None:
    """Write the manifest of every file under `folder` and flush it all to disk. Raises OSError."""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        files[path.relative_to(folder).as_posix()] = [path.stat().st_size, digest]
    for inner in [path for path in folder.rglob("*") if path.is_dir()]:
        sync_folder(inner)
    write_atomic(folder / MANIFEST, json.dumps({"files": files}, indent=1) + "\n")


def is_sealed(folder: Path) -> bool:
    """True when `folder` holds exactly what its manifest says, byte for byte.

    Raises OSError where that cannot be found out (no permission, a failing disk).
    """
    try:
        files: dict[str, list[Any]] = json.loads((folder / MANIFEST).read_bytes())["files"]
        return all(_matches(folder / name, *entry) for name, entry in files.items())
    except (ValueError, KeyError, TypeError, AttributeError):
        return False  # a damaged manifest
    except OSError as error:
        if error.errno in _WRONG:  # no manifest, or a file of it is missing
            return False
        raise


def _matches(path: Path, size: int, digest: str) -> bool:
    if path.stat().st_size != size:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == digest


def replace_folder(new: Path, target: Path) -> None:
    """Give the folder `new` the name `target`; a folder that has it now is removed."""
    discard(target)
    new.replace(target)
    sync_folder(target.parent)


def discard(folder: Path) -> None:
    """Remove a folder. It loses its name first, so a kill half-way leaves no torn folder behind."""
    if not folder.exists():
        return
    doomed = folder.with_name(f"{TEMPORARY_PREFIX}old-{folder.name}")
    remove(doomed)
    folder.replace(doomed)
    remove(doomed)


def remove(path: Path) -> None:
    """Remove a folder with all that is in it as far as that can be done, or a file."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def disk_errno(error: BaseException, folder: Path) -> int | None:
    """The errno of the disk's fault behind `error`, also where a library hid it; None when it was
    no fault of the disk of `folder`."""
    if isinstance(error, OSError):
        return error.errno or errno.EIO
    seen: BaseException | None = error
    while seen is not None:
        told = _TOLD.search(str(seen))  # safetensors
        number = seen.errno if isinstance(seen, OSError) else int(told[1]) if told else None
        if number in _DISK:
            return number
        seen = seen.__cause__ or seen.__context__
    try:
        free = shutil.disk_usage(folder).free
    except OSError:  # the folder is gone
        return None
    return errno.ENOSPC if free < _SMALLEST_USEFUL_BYTES else None  # torch gives no reason
