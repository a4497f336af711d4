"""A process of its own: dies at every line of what writes a run folder, one child a line.

    python tests/kill_each_line.py FOLDER

A deed is done once to see before which of its lines the folder had changed; then once for each such
line by a child that is killed (SIGKILL) before it, so that every state that a death can leave is
left by one. What each leaves is opened and finished here, and must become the folder that was left
alone. Prints JSON: for each deed what was found after each death, such as the step to go on from.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from forethought import checkpoints, durable, run
from forethought.models import save
from forethought.models.save import backup_of, staged_folder
from forethought.run import Run

TRACED = {module.__file__ for module in (checkpoints, durable, run, save, shutil)} | {__file__}
RECIPE = 'stage = "sft"\nkeep_checkpoints = {}\n'
STATE = {"weights.bin": 3000, "optimizer.bin": 9000, "deep/rollouts.bin": 20}
Deed = Callable[[Path], None]


def create(folder: Path, keep: int = 2) -> Run:
    text = RECIPE.format(keep)
    return Run.create(folder, stage="sft", recipe_text=text, seed=0, command=["forethought"])


def do_steps(opened: Run, first: int, last: int) -> None:
    """As `run_steps` has it: lines, then the checkpoint."""
    for step in range(first, last + 1):
        opened.transcript(step, [{"text": f"\u00fc{step}"}, {"text": "two"}])
        opened.log(step, {"x": 0.1 * step})
        opened.save_checkpoint(step, lambda folder, s=step: write_state(folder, s))  # type: ignore[misc]


def write_state(folder: Path, step: int) -> None:
    for name, size in STATE.items():
        (folder / name).parent.mkdir(exist_ok=True)
        with (folder / name).open("wb") as file:
            file.write(bytes([step]) * size)
            file.flush()
            file.write(b"end")


def resume(folder: Path, last: int) -> int:
    """Go on from the newest good checkpoint, as `resume_state` has it; the step it was of."""
    with Run.open(folder) as opened:
        found = opened.latest_checkpoint()
        step = found[0] if found else 0
        if found:
            for name, size in STATE.items():
                assert (found[1] / name).read_bytes() == bytes([step]) * size + b"end", name
        opened.truncate_metrics(step)
        rows = [row["step"] for row in opened.metrics()]
        assert rows == list(range(1, step + 1)), rows
        do_steps(opened, step + 1, last)
    return step


def save_model(folder: Path) -> None:
    with staged_folder(folder / "model") as staging:
        (staging / "config.json").write_text("{}")
        (staging / "model.safetensors").write_bytes(b"w" * 100)


def content(folder: Path) -> dict[str, bytes]:
    """Every file but what is told apart by clock and process."""
    skip = ("run.json", ".lock")
    paths = [p for p in sorted(folder.rglob("*")) if p.name not in skip]
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in paths}


def moments(deed: Deed, folder: Path) -> list[int]:
    """Do the deed; the numbers of its lines before which the folder was not as a line earlier."""
    found, last = [], state(folder)

    def look(number: int) -> None:
        nonlocal last
        if (now := state(folder)) != last:
            found.append(number)
            last = now

    sys.settrace(tracer(look))
    try:
        deed(folder)
    finally:
        sys.settrace(None)
    return found


def state(folder: Path) -> list[tuple[str, int]]:
    """Names and sizes: every write below changes one of them."""
    paths = [folder.parent, *sorted(folder.parent.rglob("*"))]
    return [(str(p), p.stat().st_size if p.is_file() else -1) for p in paths if p.exists()]


def die_at(number: int, deed: Deed, folder: Path) -> None:
    """Let a child do `deed` in `folder` and die before its line `number`."""

    def strike(line: int) -> None:
        if line == number:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        sys.settrace(tracer(strike))
        try:
            deed(folder)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, number


def tracer(act: Callable[[int], None]) -> Any:
    """A trace function that calls `act` with the number of every line, before it runs."""
    number = -1

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal number
        if frame.f_code.co_filename not in TRACED:
            return None
        if event == "line":
            number += 1
            act(number)
        return trace

    return trace


def strike_every_line(name: str, prepare: Deed, deed: Deed, finish: Callable[[Path], Any]) -> Any:
    """What `finish` returned after each death of `deed` on what `prepare` made."""
    base = Path(sys.argv[1]) / name
    start, whole, broken = base / "start" / "run", base / "whole" / "run", base / "broken" / "run"
    start.parent.mkdir(parents=True)
    prepare(start)
    shutil.copytree(start.parent, whole.parent)
    numbers = moments(deed, whole)
    finish(whole)
    found = []
    for number in numbers:
        shutil.rmtree(broken.parent, ignore_errors=True)
        shutil.copytree(start.parent, broken.parent)
        die_at(number, deed, broken)
        found.append(finish(broken))
        assert content(broken) == content(whole), (name, number)
    return found


def finish_creation(folder: Path) -> str:
    if (folder / "run.json").exists():
        Run.open(folder).close()
        return "opened"
    create(folder).close()
    return "created"


def finish_model(folder: Path) -> str:
    before = "there" if (folder / "model").exists() else "gone"
    if before == "there":
        assert (folder / "model" / "model.safetensors").read_bytes() == b"w" * 100
    Run.open(folder).close()  # sweeps what the dead have left
    save_model(folder)
    assert not backup_of(folder / "model").exists()
    return before


def first_three(folder: Path, keep: int = 2) -> None:
    with create(folder, keep) as made:
        do_steps(made, 1, 3)


def with_model(folder: Path) -> None:
    create(folder).close()
    save_model(folder)


def main() -> None:
    logging.disable()
    os.fsync = lambda descriptor: None  # type: ignore[assignment]  # a kill needs none
    run.source_commit = lambda: None  # asks git
    cases: dict[str, tuple[Deed, Deed, Callable[[Path], Any]]] = {
        "create": (lambda f: None, lambda f: create(f).close(), finish_creation),
        "first": (lambda f: create(f).close(), lambda f: _goes(f, 1), lambda f: resume(f, 1)),
        "next": (first_three, lambda f: _goes(f, 4), lambda f: resume(f, 4)),
        "keep_one": (lambda f: first_three(f, 1), lambda f: _goes(f, 4), lambda f: resume(f, 4)),
        "model": (lambda f: create(f).close(), save_model, finish_model),
        "model_again": (with_model, save_model, finish_model),
    }
    print(json.dumps({name: strike_every_line(name, *case) for name, case in cases.items()}))


def _goes(folder: Path, last: int) -> None:
    resume(folder, last)


if __name__ == "__main__":
    main()
