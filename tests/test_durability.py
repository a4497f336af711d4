"""What a run folder is after a death or a power cut at any line, and on a full disk."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import kill_each_line
from forethought.errors import TrainingStopped
from forethought.run import Run
from power_cut import Disk, Layout, lay_out

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs fork, /proc and tmpfs")


@pytest.fixture(scope="module")
def deaths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """By deed: what was found after each death."""
    done = subprocess.run(
        [sys.executable, kill_each_line.__file__, str(tmp_path_factory.mktemp("deaths"))],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr  # every folder became the unbroken one
    found: dict[str, list[Any]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(("deed", "before"), [("first", 0), ("next", 3), ("keep_one", 3)])
def test_a_death_at_any_line_costs_no_checkpoint(
    deed: str, before: int, deaths: dict[str, list[Any]]
) -> None:
    steps = deaths[deed]
    assert len(steps) > 15
    assert steps == sorted(steps)
    assert set(steps) == {before, before + 1}


def test_a_death_at_any_line_of_creating_a_run_leaves_a_run_or_a_free_folder(
    deaths: dict[str, list[Any]],
) -> None:
    assert set(deaths["create"]) == {"created", "opened"}


def test_a_death_at_any_line_of_saving_a_model_leaves_a_whole_one_or_none(
    deaths: dict[str, list[Any]],
) -> None:
    assert set(deaths["model"]) == {"gone", "there"}
    assert deaths["model_again"].count("gone") <= 1  # between two renames; the old one is set aside


@pytest.mark.parametrize("state", [Disk.as_flushed, Disk.with_names_of_now])
def test_a_power_cut_at_any_line_leaves_the_last_checkpoint_and_its_metrics(
    state: Callable[[Disk], Layout], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, copy = tmp_path / "run", tmp_path / "cut"
    kill_each_line.create(folder).close()
    disk = Disk(folder)
    monkeypatch.setattr(os, "fsync", disk.fsync)
    saved, seen, last = 0, [], state(disk)

    def cut(number: int) -> None:
        nonlocal last
        if (now := state(disk)) == last:
            return
        last = now
        lay_out(now, copy)
        step = last_step(copy)
        assert step >= saved, "a checkpoint that was said to be safe is gone"
        seen.append(step)

    tracer = kill_each_line.tracer(cut)
    with Run.open(folder) as opened:
        for step in range(1, 5):
            sys.settrace(tracer)
            kill_each_line.do_steps(opened, step, step)
            sys.settrace(None)
            saved = step
    disk.close()
    assert set(seen) == {0, 1, 2, 3, 4}


def last_step(folder: Path) -> int:
    """The step a run goes on from, having found every line before it."""
    with Run.open(folder) as opened:
        found = opened.latest_checkpoint()
        step = found[0] if found else 0
        opened.truncate_metrics(step)
        assert [row["step"] for row in opened.metrics()] == list(range(1, step + 1))
        return step


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 200 KB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no mount here")
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_that_is_full_stops_a_run_that_goes_on_when_there_is_room(
    small_disk: Path, tmp_path: Path
) -> None:
    kill_each_line.first_three(tmp_path / "whole")
    kill_each_line.resume(tmp_path / "whole", 5)
    pages, outcomes = 0, []
    while not outcomes or outcomes[-1] != "done":
        folder = small_disk / f"run-{pages}"
        kill_each_line.first_three(folder)
        leave_free(small_disk, pages * 4096)
        try:
            kill_each_line.resume(folder, 5)
            outcomes.append("done")
        except TrainingStopped as error:
            assert "(the disk is full): make room" in str(error)
            assert f"continue with --resume {folder}" in str(error)
            assert isinstance(error.__cause__, OSError)
            outcomes.append(str(error).partition(" to ")[0])
        (small_disk / "ballast").unlink()
        kill_each_line.resume(folder, 5)
        assert kill_each_line.content(folder) == kill_each_line.content(tmp_path / "whole")
        shutil.rmtree(folder)
        pages += 1
    assert "could not write the metrics.jsonl" in outcomes
    assert "could not write the checkpoint of step 4" in outcomes


def leave_free(disk: Path, size: int) -> None:
    """Fill `disk` up to its last `size` bytes."""
    with (disk / "ballast").open("wb", buffering=0) as file:
        file.write(b"x" * (shutil.disk_usage(disk).free - size))
