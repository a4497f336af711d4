"""A run that was killed, interrupted or stopped ends in the same bits as one that was left alone.

Every run is a process of its own that really dies. `bench/bench_resume.py` strikes more often, and
at the installed command.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from forethought.cli.app import main
from killer import (
    CHECKPOINT_EVERY,
    NUM_STEPS,
    RUN,
    Fork,
    differences,
    fork_server,
    kill,
    output,
    snapshot,
    start_fork,
    totals,
    write_recipes,
)

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")

PATIENCE_SECONDS = 300  # a busy machine is no failure
STAGES = ["rl", "reuse", "select", "pretrain", "sft", "pipeline"]
Start = Callable[[str, Path], Fork]
Snapshot = dict[str, bytes]


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_recipes(tmp_path_factory.mktemp("workshop"))


@pytest.fixture(scope="module")
def start(recipes: dict[str, Path]) -> Start:
    """Starts a process that trains a stage in a folder, or resumes the run that is there."""
    server = fork_server()
    return lambda stage, folder: start_fork(server, folder, recipes[stage], num_documents=200)


@pytest.fixture(scope="module")
def left_alone(start: Start, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of every stage, run once without a break."""
    folders = {stage: tmp_path_factory.mktemp(stage) for stage in STAGES}
    processes = {stage: start(stage, folders[stage]) for stage in STAGES}
    for stage, process in processes.items():
        assert process.wait(PATIENCE_SECONDS) == 0, output(folders[stage])
    return folders


@pytest.fixture(scope="module")
def unbroken(left_alone: dict[str, Path]) -> dict[str, Snapshot]:
    return {stage: snapshot(folder / RUN) for stage, folder in left_alone.items()}


def metrics_of(files: Snapshot, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(files[name])
    return rows


def wait_for_lines(run_dir: Path, process: Fork, count: int) -> None:
    """Until the run has logged so many lines (0: until its folder is there)."""
    path = run_dir / ("metrics.jsonl" if count else "run.json")
    end = time.monotonic() + PATIENCE_SECONDS
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert process.wait(0) is None, output(run_dir.parent)
        assert time.monotonic() < end, f"line {count} never came"
        time.sleep(0.002)


def finish(start: Start, stage: str, folder: Path) -> Snapshot:
    assert start(stage, folder).wait(PATIENCE_SECONDS) == 0, output(folder)
    return snapshot(folder / RUN)


def test_the_unbroken_runs_are_worth_comparing(unbroken: dict[str, Snapshot]) -> None:
    for stage in ("rl", "reuse", "select", "pretrain", "sft"):
        rows = metrics_of(unbroken[stage])
        # rl measures before step 1
        assert [row["step"] for row in rows] == list(range(stage in ("pretrain", "sft"), 10))
        assert all(row["optim/grad_norm"] > 0 for row in rows if row["step"])
        assert {"model/model.safetensors", "checkpoints/step_000009/optimizer.pt"} <= set(
            unbroken[stage]
        )
    assert unbroken["rl"]["transcripts.jsonl"].count(b"\n") == NUM_STEPS * 4
    assert len({row["loss/mean"] for row in metrics_of(unbroken["sft"])}) == NUM_STEPS
    assert "checkpoints/step_000006/rollouts.json" in unbroken["reuse"]
    for name in ("select/skipped_frac", "select/replayed_frac", "select/batches"):
        assert len({row[name] for row in metrics_of(unbroken["select"])[1:]}) > 1, name
    models = [unbroken[stage]["model/model.safetensors"] for stage in [*STAGES[:3], "sft"]]
    assert len(set(models)) == 4
    assert metrics_of(unbroken["pipeline"], "2-rl/metrics.jsonl")


# The first third of a run, the second and the last: every phase between two checkpoints. Those of
# "reuse" stand in the middle of a batch of rollouts.
MOMENTS = [
    *[("rl", third) for third in range(3)],
    *[("reuse", third) for third in (1, 2)],
    *[("select", third) for third in (1, 2)],
    ("pretrain", 1),
]


@pytest.mark.parametrize(("stage", "third"), MOMENTS)
def test_a_killed_run_resumes_to_the_same_bits(
    stage: str, third: int, start: Start, unbroken: dict[str, Snapshot], tmp_path: Path
) -> None:
    rng = Random()  # another moment every time
    lines = third * CHECKPOINT_EVERY + rng.randrange(CHECKPOINT_EVERY)
    pause = rng.random() * 0.05
    process = start(stage, tmp_path)
    wait_for_lines(tmp_path / RUN, process, lines)
    time.sleep(pause)
    kill(process)
    assert process.wait(0) in (-signal.SIGKILL, 0), output(tmp_path)  # 0: done before it came
    found = finish(start, stage, tmp_path)
    assert differences(found, unbroken[stage]) == [], (lines, pause)


def test_a_run_killed_again_and_again_resumes_to_the_same_bits(
    start: Start, unbroken: dict[str, Snapshot], tmp_path: Path
) -> None:
    for lines in (0, 2, 5, 8):
        process = start("sft", tmp_path)
        wait_for_lines(tmp_path / RUN, process, lines)
        kill(process)
    assert differences(finish(start, "sft", tmp_path), unbroken["sft"]) == []


def test_a_pipeline_killed_in_its_second_stage_has_the_totals_of_both(
    start: Start, unbroken: dict[str, Snapshot], left_alone: dict[str, Path], tmp_path: Path
) -> None:
    process = start("pipeline", tmp_path)
    wait_for_lines(tmp_path / RUN / "2-rl", process, Random().randrange(1, 9))
    kill(process)
    found = finish(start, "pipeline", tmp_path)
    assert differences(found, unbroken["pipeline"]) == []
    assert totals(tmp_path) == totals(left_alone["pipeline"])
    assert {"sft/total/tokens", "rl/total/rollouts"} <= totals(tmp_path).keys()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_an_interrupted_run_stops_at_a_checkpoint_and_resumes_to_the_same_bits(
    number: int, start: Start, unbroken: dict[str, Snapshot], tmp_path: Path
) -> None:
    process = start("rl", tmp_path)
    wait_for_lines(tmp_path / RUN, process, 3)
    os.kill(process.pid, number)
    assert process.wait(PATIENCE_SECONDS) == 130, output(tmp_path)
    text = output(tmp_path)
    assert f"continue with: forethought train --resume {RUN}" in text
    assert "Traceback" not in text
    lines = (tmp_path / RUN / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])["step"]
    assert last < NUM_STEPS
    assert (tmp_path / RUN / "checkpoints" / f"step_{last:06d}" / "manifest.json").exists()
    assert differences(finish(start, "rl", tmp_path), unbroken["rl"]) == []


@pytest.mark.parametrize("name", ["weights.safetensors", "rollouts.json"])
def test_a_damaged_checkpoint_is_passed_over(
    name: str, start: Start, unbroken: dict[str, Snapshot], tmp_path: Path
) -> None:
    process = start("reuse", tmp_path)
    wait_for_lines(tmp_path / RUN, process, 8)
    kill(process)
    damaged = tmp_path / RUN / "checkpoints" / "step_000006" / name
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    assert differences(finish(start, "reuse", tmp_path), unbroken["reuse"]) == []
    assert "the checkpoint of step 6 is damaged: it is left out" in output(tmp_path)


def test_one_of_two_that_resume_at_once_goes_on(
    start: Start, unbroken: dict[str, Snapshot], tmp_path: Path
) -> None:
    process = start("sft", tmp_path)
    wait_for_lines(tmp_path / RUN, process, 4)
    kill(process)
    both = [start("sft", tmp_path) for _ in range(2)]
    assert sorted(process.wait(PATIENCE_SECONDS) or 0 for process in both) == [0, 2]
    assert f"run folder '{RUN}' is being written by process" in output(tmp_path)
    assert differences(snapshot(tmp_path / RUN), unbroken["sft"]) == []


@pytest.fixture
def finished(left_alone: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the run folder of a finished sft."""
    return Path(shutil.copytree(left_alone["sft"] / RUN, tmp_path / RUN))


def test_resuming_a_finished_run_changes_nothing(
    finished: Path, unbroken: dict[str, Snapshot], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--resume", str(finished)]) == 0
    assert "all 9 steps of this run are done; nothing is left to train" in capfd.readouterr().err
    assert differences(snapshot(finished), unbroken["sft"]) == []


def test_a_resumed_run_takes_no_changes(
    finished: Path, recipes: dict[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--resume", str(finished), "--set", "num_steps=20"]) == 2
    assert "--set num_steps=20 cannot change a run that is resumed" in capfd.readouterr().err
    assert main(["train", str(recipes["sft"]), "--set", f"run_dir={finished}"]) == 2
    assert f"continue it with --resume {finished}" in capfd.readouterr().err
    assert main(["train", str(recipes["sft"]), "--resume", str(finished)]) == 2
    assert "but not both" in capfd.readouterr().err
    text = (finished / "recipe.toml").read_text()
    (finished / "recipe.toml").write_text(text.replace("num_steps = 9", "num_steps = 20"))
    assert main(["train", "--resume", str(finished)]) == 0
    said = capfd.readouterr().err
    assert f"changes of {finished / 'recipe.toml'} have no effect" in said
    assert "all 9 steps of this run are done" in said


def test_a_run_resumed_elsewhere_says_that_bits_may_differ(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    info = json.loads((finished / "run.json").read_text())
    assert main(["train", "--resume", str(finished)]) == 0
    assert "differ" not in capfd.readouterr().err
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    info["versions"]["torch"] = "1.0"
    info["commit"] = None  # unknown then: nothing to compare
    (finished / "run.json").write_text(json.dumps(info))
    assert main(["train", "--resume", str(finished)]) == 0
    said = capfd.readouterr().err.splitlines()[0]
    assert said.startswith("results may differ in their last bits: the run began with torch 1.0 (")
    assert said.endswith("threads 1 (now 3)")


def test_a_limit_of_file_size_stops_a_run_that_goes_on_without_it(
    start: Start, unbroken: dict[str, Snapshot], tmp_path: Path
) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    process = start("sft", tmp_path)
    # the optimizer's file is larger, the weights' is smaller
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (200_000, before[1]))
    assert process.wait(PATIENCE_SECONDS) == 2, output(tmp_path)
    assert output(tmp_path) == (
        "error: could not write the checkpoint of step 3 to 'run' (file too large): make room or"
        " restore access, then continue with --resume run\n"
    )
    assert differences(finish(start, "sft", tmp_path), unbroken["sft"]) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder whose run folder is a disk of its own, of 8 MB."""
    (tmp_path / RUN).mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(tmp_path / RUN)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path / RUN)], check=True)


@pytest.mark.parametrize(("stage", "free", "what"), [
    ("sft", 0, "(metrics|checkpoint) of step"),
    ("sft", 60_000, "checkpoint of step"),  # the weights' file fails
    ("sft", 250_000, "checkpoint of step"),  # the optimizer's
    ("pretrain", 350_000, "model"),  # there is room for one checkpoint more, and it stays
])  # fmt: skip
def test_a_full_disk_stops_a_run_that_goes_on_when_there_is_room(
    stage: str,
    free: int,
    what: str,
    start: Start,
    unbroken: dict[str, Snapshot],
    small_disk: Path,
) -> None:
    process, disk = start(stage, small_disk), small_disk / RUN
    wait_for_lines(disk, process, 4)
    os.kill(process.pid, signal.SIGSTOP)
    with (disk / "ballast").open("wb", buffering=0) as file:
        file.write(b"x" * (shutil.disk_usage(disk).free - free))
    os.kill(process.pid, signal.SIGCONT)
    assert process.wait(PATIENCE_SECONDS) == 2, output(small_disk)
    (disk / "ballast").unlink()
    said = output(small_disk)
    assert re.fullmatch(
        rf"error: could not write the {what}.* to 'run' \(the disk is full\): make room or restore"
        r" access, then continue with --resume run\n",
        said,
    )
    assert differences(finish(start, stage, small_disk), unbroken[stage]) == []
