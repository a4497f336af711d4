"""What a run folder is after a death or a power cut at any line, and on a full disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import kill_each_line
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
