"""The run folder: everything one training run leaves behind, readable while it runs.

    run.json              what was started: stage, seed, command, versions, machine, recipe
    recipe.toml           the resolved recipe, as a file that can be run again
    metrics.jsonl         one line a step: {"step": 3, "reward/mean": 0.41, ...}
    transcripts.jsonl     a few rollouts of some steps, as text
    examples.jsonl        how right the rollouts of every example of a step were (RL)
    warnings.jsonl        what went wrong on the way, by name
    checkpoints/step_000012/  what the stage wrote, sealed by manifest.json

Killed at any moment, the folder is one that `Run.open` accepts: checkpoints appear whole or not at
all, and `truncate_metrics` takes back the lines written after the checkpoint it resumes from.
One process writes a run at a time. Nothing here knows of models: a stage writes its own state.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, TypeVar

from forethought.checkpoints import (
    Checkpoint,
    checkpoints,
    keep_of,
    newest_good,
    prune,
    write_checkpoint,
)
from forethought.durable import (
    TEMPORARY_PREFIX,
    append_lines,
    discard,
    disk_errno,
    first_missing,
    flush_file,
    keep_lines_until,
    make_folder,
    read_lines,
    remove,
    sync_folder,
    write_atomic,
)
from forethought.errors import RecipeError, TrainingStopped
from forethought.locks import LOCK, hold_lock
from forethought.machine import describe_machine, num_threads, source_commit, versions

FORMAT = 1
METRICS, TRANSCRIPTS = "metrics.jsonl", "transcripts.jsonl"
EXAMPLES = "examples.jsonl"
WARNINGS = "warnings.jsonl"
BAD_BATCHES = "bad_batches"  # a folder
_LINES = (METRICS, TRANSCRIPTS, EXAMPLES, WARNINGS)
_FULL = (errno.ENOSPC, errno.EDQUOT)

logger = logging.getLogger("forethought")
T = TypeVar("T")


class Run:
    """One run folder, open for writing; use it as a context manager.

    >>> with Run.create("runs/sums", stage="rl", recipe_text=text, seed=0, command=argv) as run:
    ...     run.log(1, {"reward/mean": 0.25})
    ...     run.save_checkpoint(1, lambda folder: save_state(folder))
    """

    def __init__(self, folder: Path, info: Mapping[str, Any], lock: IO[str]) -> None:
        """Not for callers: `Run.create` and `Run.open` make one."""
        self.folder = folder
        self.info = info
        self._lock = lock
        self._keep = keep_of(self.recipe_text)

    @classmethod
    def create(
        cls,
        folder: str | Path,
        *,
        stage: str,
        recipe_text: str,
        seed: int,
        command: Sequence[str],
        name: str = "",
    ) -> Self:
        """Start a run in a new or empty folder.

        `recipe_text` says which checkpoints to keep. Raises RecipeError when the folder holds
        something or cannot be written; nothing is left.
        """
        path = Path(folder).expanduser()
        made = None
        try:
            made = first_missing(path)
            make_folder(path)
            _refuse_used(path)
            info = _new_info(stage, recipe_text, seed, command, name or path.resolve().name)
            lock = _begin(path, info)
        except OSError as error:
            if made is not None:
                shutil.rmtree(made, ignore_errors=True)
            raise _unusable(path, error) from error
        return cls(path, info, lock)

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """Open a run to continue it. Raises RecipeError when it is none, or is being written."""
        path = Path(folder).expanduser()
        try:
            info = json.loads((path / "run.json").read_bytes())
            if info["format"] != FORMAT:
                raise RecipeError(
                    f"run folder '{path}' has format {info['format']} and this version reads"
                    f" {FORMAT}: start a new run"
                )
            lock = hold_lock(path)
            _remove_leftovers(path)
            if not (path / "recipe.toml").exists():  # killed while it was created
                write_atomic(path / "recipe.toml", info["recipe"])
        except FileNotFoundError as error:
            raise RecipeError(
                f"'{path}' is not a run folder (it has no run.json): give --resume the folder"
                " of an earlier run"
            ) from error
        except OSError as error:
            raise _unusable(path, error) from error
        except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise RecipeError(f"'{path / 'run.json'}' is damaged: start a new run") from error
        return cls(path, info, lock)

    @property
    def recipe_text(self) -> str:
        """The resolved recipe (TOML) the run was started with."""
        return str(self.info["recipe"])

    def log(self, step: int, metrics: Mapping[str, float | int | str | None]) -> None:
        """Append the metrics of `step`; a value that is not finite is kept as null."""
        self._append(METRICS, f"metrics of step {step}", [{"step": step, **metrics}])

    def metrics(self) -> list[dict[str, Any]]:
        """Every metrics line so far, in the order written."""
        return read_lines(self.folder / METRICS)

    def transcript(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append readable rollouts of `step`, one mapping each."""
        lines = [{"step": step, **row} for row in rows]
        self._append(TRANSCRIPTS, f"transcripts of step {step}", lines)

    def examples(self, step: int, accuracies: Mapping[str, float | None]) -> None:
        """Append the accuracy of each example of `step` by id, None where nothing was graded."""
        row = {"step": step, "ids": list(accuracies), "accuracies": list(accuracies.values())}
        self._append(EXAMPLES, f"examples of step {step}", [row])

    def warn(self, step: int, name: str, text: str) -> None:
        """Append a named warning that the metrics of `step` raised."""
        self._append(WARNINGS, "warnings", [{"step": step, "name": name, "text": text}])

    def truncate_metrics(self, after_step: int) -> None:
        """Take back lines (metrics, transcripts, ...) and checkpoints after `after_step`.

        Call it with the step of the checkpoint a run resumes from (0 when there is none): the
        folder then goes on as if the run had never been interrupted.
        """
        for name in _LINES:
            self.guard(name, partial(keep_lines_until, self.folder / name, after_step))
        for step, folder in checkpoints(self._parent):
            if step > after_step:
                logger.warning("the checkpoint of step %d is damaged: it is left out", step)
                self.guard(folder.name, partial(discard, folder))
        self.guard("checkpoints", self._prune)  # a kill may have come before it was done

    def write_json(self, name: str, content: object) -> Path:
        """Write `content` as the JSON file `name` in the run folder, atomically."""
        path = self.folder / name
        text = json.dumps(content, indent=1, allow_nan=False) + "\n"
        self.guard(name, lambda: write_atomic(path, text))
        return path

    def save_checkpoint(self, step: int, write: Callable[[Path], None]) -> Path:
        """Let `write` fill a folder, which becomes the checkpoint of `step` at once or not at all.

        Before it counts, the metrics that lead to it are flushed to disk. Checkpoints that the
        recipe does not keep are removed after that. Raises TrainingStopped when the disk is full or
        cannot be written; what `write` itself raises passes through.
        """

        def save() -> Path:
            self._flush_lines()
            path = write_checkpoint(self._parent, step, write)
            self._prune()
            return path

        return self.guard(f"checkpoint of step {step}", save)

    def latest_checkpoint(self) -> Checkpoint | None:
        """(step, folder) of the last checkpoint whose files are all there and undamaged, or None.

        Raises RecipeError when one cannot be read.
        """
        try:
            return newest_good(self._parent)
        except OSError as error:
            raise RecipeError(
                f"checkpoint file '{error.filename}' cannot be read ({_reason(error)}): restore"
                " access, or remove its folder to go on from the checkpoint before"
            ) from error

    def close(self) -> None:
        """Let another process write the run."""
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _append(self, name: str, what: str, rows: Iterable[Mapping[str, Any]]) -> None:
        lines = [finite(row) for row in rows]
        self.guard(what, lambda: append_lines(self.folder / name, lines))

    @property
    def _parent(self) -> Path:
        return self.folder / "checkpoints"

    def _prune(self) -> None:
        prune(self._parent, self._keep)

    def _flush_lines(self) -> None:
        for path in [self.folder / name for name in _LINES]:
            if path.exists():
                flush_file(path)
        sync_folder(self.folder)

    def guard(self, what: str, write: Callable[[], T]) -> T:
        """What `write` returns. A disk that cannot be written becomes TrainingStopped, a sentence
        that says how to go on."""
        try:
            return write()
        except Exception as error:  # libraries hide a full disk in errors of their own
            number = disk_errno(error, self.folder)
            if number is None:
                raise
            reason = "the disk is full" if number in _FULL else os.strerror(number).lower()
            # The command line tells a disk's fault from a stage's by the cause.
            cause = error if isinstance(error, OSError) else OSError(number, str(error))
            raise TrainingStopped(
                f"could not write the {what} to '{self.folder}' ({reason}): make room or restore"
                f" access, then continue with --resume {self.folder}"
            ) from cause


def _new_info(
    stage: str, recipe_text: str, seed: int, command: Sequence[str], name: str
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "name": name,
        "stage": stage,
        "seed": seed,
        "command": list(command),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "machine": asdict(describe_machine()),
        "threads": num_threads(),
        "commit": source_commit(),
        "recipe": recipe_text,
    }


def finite(value: Any) -> Any:
    """`value` with every float that is not finite as None, since JSON has no name for it."""
    if isinstance(value, Mapping):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _refuse_used(path: Path) -> None:
    """A folder is free when it holds nothing but what an interrupted `create` left."""
    if (path / "run.json").exists():
        raise RecipeError(
            f"run_dir '{path}' already holds a run: continue it with --resume {path}"
            " or give run_dir another folder"
        )
    names = {entry.name for entry in path.iterdir()}
    if any(name != LOCK and not name.startswith(TEMPORARY_PREFIX) for name in names):
        raise RecipeError(
            f"run_dir '{path}' is not empty and holds no run: give run_dir a new folder"
        )


def _begin(path: Path, info: Mapping[str, Any]) -> IO[str]:
    """Write the first files of a run into a free folder, or leave it free. Returns the lock."""
    lock = hold_lock(path)
    if (path / "run.json").exists():  # another process was faster, and is done already
        lock.close()
        _refuse_used(path)
    try:
        _remove_leftovers(path)
        write_atomic(path / "run.json", json.dumps(info, indent=1) + "\n")
        write_atomic(path / "recipe.toml", info["recipe"])
    except OSError:
        lock.close()
        for name in (LOCK, "run.json", "recipe.toml"):
            (path / name).unlink(missing_ok=True)
        raise
    return lock


def _remove_leftovers(path: Path) -> None:
    for folder in (path, path / "checkpoints", path / BAD_BATCHES):
        for entry in folder.glob(f".*{TEMPORARY_PREFIX[1:]}*"):  # of models too: .model.tmp-1f3a
            remove(entry)


def _reason(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) else None
    return (text or str(error) or type(error).__name__).lower()


def _unusable(path: Path, error: OSError) -> RecipeError:
    reason = "the disk is full" if error.errno in _FULL else _reason(error)
    return RecipeError(
        f"run_dir '{path}' cannot be written ({reason}): give a folder you may write to"
    )
