"""One process writes a run folder at a time."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import IO

from forethought.errors import RecipeError

LOCK = ".lock"


def hold_lock(folder: Path) -> IO[str]:
    """Hold the run in `folder` against other processes until the file returned is closed.

    A record lock: it dies with this process and forked workers do not inherit it, so that a killed
    run can be resumed while its orphans are still ending. Raises RecipeError when another process
    has it, and OSError.
    """
    file = (folder / LOCK).open("a+", encoding="utf-8")
    if sys.platform == "win32":
        return file
    import fcntl

    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        owner = file.read().strip() or "unknown"
        file.close()
        raise RecipeError(
            f"run folder '{folder}' is being written by process {owner}: wait for it or stop it"
        ) from error
    with contextlib.suppress(OSError):  # the number is a courtesy, a full disk shows itself later
        os.truncate(file.fileno(), 0)
        os.write(file.fileno(), str(os.getpid()).encode())
    return file
