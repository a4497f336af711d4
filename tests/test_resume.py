"""A run that was killed or interrupted ends in the same bits as one that was left alone.

Every run is a process of its own that really dies; they are forked from one server that has
imported everything, because importing takes longer than a tiny run.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from random import Random
from typing import Any

import pytest

from forethought.toml import to_toml
from tiny_runs import EVEN_REWARD, pretrain_tables, rl_tables, run_command, save_tiny, sft_tables

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")

NUM_STEPS = 9
CHECKPOINT_EVERY = 3
PRELOADED = [
    "tiny_runs",
    "forethought.cli.train",
    "forethought.training.rl",
    "forethought.training.sft",
    "forethought.training.pretrain",
    "transformers.models.llama",
]
PATIENCE_SECONDS = 300  # a busy machine is no failure
STAGES = ["rl", "pretrain", "sft"]
KILLED = ["rl", "pretrain"]  # at three moments each


@dataclass(frozen=True)
class Finished:
    """What a finished run leaves, but for what the clock says."""

    weights: bytes
    optimizer: bytes
    counters: bytes
    metrics: list[dict[str, Any]]
    transcripts: bytes
    examples: bytes


@pytest.fixture(scope="module")
def processes() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # the server does not get it from us
        forkserver.ensure_running()
    return context


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a reward and one recipe a stage."""
    folder = tmp_path_factory.mktemp("workshop")
    model = save_tiny(folder / "model")
    # dropout draws from torch's own generator, which a resumed process starts anew
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.2}))
    (folder / "even.py").write_text(EVEN_REWARD)
    shared: dict[str, Any] = {"num_steps": NUM_STEPS, "checkpoint_every": CHECKPOINT_EVERY}
    schedule = {"learning_rate": 1e-2, "schedule": "cosine", "warmup_steps": 2}
    recipes = {
        "rl": rl_tables(
            model,
            folder / "none",
            reward={"parts": {f"{folder}/even.py:even": 1.0, "format": 0.1}},
            eval_problems=2,
            eval_samples=1,
            eval_every=4,
            kl_coefficient=0.01,
            optimizer=schedule,
            **shared,
        ),
        "pretrain": pretrain_tables(folder / "none", **shared),
        "sft": sft_tables(model, folder / "none", optimizer=schedule, **shared),
    }
    for name, tables in recipes.items():
        (folder / f"{name}.toml").write_text(to_toml(tables))
    return folder


@pytest.fixture(scope="module")
def unbroken(processes: Any, workshop: Path) -> dict[str, Finished]:
    """Every stage run once without a break."""
    started = {s: start(processes, workshop, s, workshop / f"unbroken-{s}") for s in STAGES}
    for stage, process in started.items():
        process.join(PATIENCE_SECONDS)
        assert process.exitcode == 0, output(workshop / f"unbroken-{stage}")
    return {stage: read(workshop / f"unbroken-{stage}") for stage in STAGES}


def start(processes: Any, workshop: Path, stage: str, run_dir: Path) -> Any:
    """A process that trains `stage` in `run_dir`, or resumes the run that is there."""
    arguments = ["train", str(workshop / f"{stage}.toml"), "--set", f"run_dir={run_dir}"]
    if (run_dir / "run.json").exists():
        arguments = ["train", "--resume", str(run_dir)]
    process = processes.Process(target=run_command, args=(arguments, f"{run_dir}.log"))
    process.start()
    return process


def output(run_dir: Path) -> str:
    log = Path(f"{run_dir}.log")
    return log.read_text() if log.exists() else "the process has not begun"


def read(run_dir: Path) -> Finished:
    last = run_dir / "checkpoints" / f"step_{NUM_STEPS:06d}"
    transcripts, examples = run_dir / "transcripts.jsonl", run_dir / "examples.jsonl"
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return Finished(
        weights=(run_dir / "model" / "model.safetensors").read_bytes()
        + (last / "weights.safetensors").read_bytes(),
        optimizer=(last / "optimizer.pt").read_bytes(),
        counters=(last / "counters.json").read_bytes(),
        metrics=[{name: v for name, v in row.items() if not is_clock(name)} for row in rows],
        transcripts=transcripts.read_bytes() if transcripts.exists() else b"",
        examples=examples.read_bytes() if examples.exists() else b"",
    )


def is_clock(name: str) -> bool:
    return name.startswith("time/") or name.endswith("tokens_per_second")


def wait_for_lines(run_dir: Path, process: Any, count: int) -> None:
    """Until the run has logged so many lines (0: until its folder is there)."""
    path = run_dir / ("metrics.jsonl" if count else "run.json")
    end = time.monotonic() + PATIENCE_SECONDS
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert process.is_alive(), output(run_dir)
        assert time.monotonic() < end, f"line {count} never came"
        time.sleep(0.002)


def finish(processes: Any, workshop: Path, stage: str, run_dir: Path) -> Finished:
    process = start(processes, workshop, stage, run_dir)
    process.join(PATIENCE_SECONDS)
    assert process.exitcode == 0, output(run_dir)
    return read(run_dir)


def test_the_unbroken_runs_are_worth_comparing(unbroken: dict[str, Finished]) -> None:
    for stage, run in unbroken.items():
        steps = [row["step"] for row in run.metrics]
        assert steps == list(range(stage != "rl", NUM_STEPS + 1))  # rl measures before step 1
        assert all(row["optim/grad_norm"] > 0 for row in run.metrics if row["step"])
    assert unbroken["rl"].transcripts.count(b"\n") == NUM_STEPS * 4
    assert len({row["loss/mean"] for row in unbroken["sft"].metrics}) == NUM_STEPS


# the first third of a run, the second and the last: every phase between two checkpoints
MOMENTS = [(stage, third) for stage in KILLED for third in range(3)]


@pytest.mark.parametrize(("stage", "third"), MOMENTS)
def test_a_killed_run_resumes_to_the_same_bits(
    stage: str,
    third: int,
    processes: Any,
    workshop: Path,
    unbroken: dict[str, Finished],
    tmp_path: Path,
) -> None:
    rng = Random()  # another moment every time
    lines = third * 3 + rng.randrange(3)
    pause = rng.random() * 0.05
    run_dir = tmp_path / "run"
    process = start(processes, workshop, stage, run_dir)
    wait_for_lines(run_dir, process, lines)
    time.sleep(pause)
    process.kill()
    process.join(PATIENCE_SECONDS)
    assert process.exitcode in (-signal.SIGKILL, 0), output(run_dir)  # 0: done before it came
    assert finish(processes, workshop, stage, run_dir) == unbroken[stage], (lines, pause)


def test_a_run_killed_again_and_again_resumes_to_the_same_bits(
    processes: Any, workshop: Path, unbroken: dict[str, Finished], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    for lines in (2, 5, 8):
        process = start(processes, workshop, "sft", run_dir)
        wait_for_lines(run_dir, process, lines)
        process.kill()
        process.join(PATIENCE_SECONDS)
    assert finish(processes, workshop, "sft", run_dir) == unbroken["sft"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_an_interrupted_run_stops_at_a_checkpoint_and_resumes_to_the_same_bits(
    number: int, processes: Any, workshop: Path, unbroken: dict[str, Finished], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    process = start(processes, workshop, "rl", run_dir)
    wait_for_lines(run_dir, process, 3)
    os.kill(process.pid, number)
    process.join(PATIENCE_SECONDS)
    assert process.exitcode == 130, output(run_dir)
    text = output(run_dir)
    assert f"continue with: forethought train --resume {run_dir}" in text
    assert "Traceback" not in text
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])["step"]
    assert last < NUM_STEPS
    assert (run_dir / "checkpoints" / f"step_{last:06d}" / "manifest.json").exists()
    assert finish(processes, workshop, "rl", run_dir) == unbroken["rl"]


def test_a_damaged_checkpoint_is_passed_over(
    processes: Any, workshop: Path, unbroken: dict[str, Finished], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    process = start(processes, workshop, "sft", run_dir)
    wait_for_lines(run_dir, process, 8)
    process.kill()
    process.join(PATIENCE_SECONDS)
    newest = sorted((run_dir / "checkpoints").glob("step_*"))[-1] / "weights.safetensors"
    damaged = bytearray(newest.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    newest.write_bytes(damaged)
    assert finish(processes, workshop, "sft", run_dir) == unbroken["sft"]
