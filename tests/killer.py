"""Processes that train and are killed, and what of a run folder must come out the same."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, Protocol

import torch

from forethought.cli.app import main
from forethought.toml import to_toml
from forethought.training import pretrain
from tiny_runs import EVEN_REWARD, pretrain_tables, rl_tables, save_tiny, sft_tables

PRELOADED = [
    "killer",
    "forethought.cli.train",
    "forethought.training.rl",
    "forethought.training.sft",
    "forethought.training.pretrain",
    "transformers.models.llama",
    "warm",
]
RUN = "run"  # the run folder in a process's own folder
_OWN = {"run.json", ".lock"}  # tell who wrote the run, and when
NUM_STEPS = 9
CHECKPOINT_EVERY = 3
# Pays 0 or 1, so that the siblings of some groups are paid alike.
MOSTLY_EVEN = """
def mostly_even(completion_ids, **kwargs):
    return [float(2 * sum(t % 2 == 0 for t in ids) > len(ids)) for ids in completion_ids]
"""
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def write_recipes(folder: Path) -> dict[str, Path]:
    """A model, a reward and one recipe a stage, in `folder`; the recipes by stage."""
    model = save_tiny(folder / "model")
    # dropout draws from torch's own generator, which a resumed process starts anew
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.2}))
    (folder / "even.py").write_text(EVEN_REWARD + MOSTLY_EVEN)
    tables = stage_tables(model, folder)
    for name, content in tables.items():
        (folder / f"{name}.toml").write_text(to_toml(content))
    return {name: folder / f"{name}.toml" for name in tables}


def stage_tables(model: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """The recipe of every stage, by name."""
    run_dir = folder / "none"
    every = {"num_steps": NUM_STEPS, "checkpoint_every": CHECKPOINT_EVERY}
    schedule = {"learning_rate": 1e-2, "schedule": "cosine", "warmup_steps": 2}
    # so few problems that they come again, and that some are skipped then
    learned = {"task": "sum:difficulty=1,size=20", "optimizer": schedule, **every}
    measured = {"eval_problems": 2, "eval_samples": 1, "eval_every": 4}
    parts = {f"{folder}/even.py:even": 1.0, "format": 0.1}
    plain = rl_tables(model, run_dir, **learned, **measured, reward={"parts": parts})
    sft = sft_tables(model, run_dir, optimizer=schedule, **every)
    mostly = {"parts": {f"{folder}/even.py:mostly_even": 1.0}}
    own = ("run_dir", "model")
    inner = [{key: v for key, v in tables.items() if key not in own} for tables in (sft, plain)]
    # four updates a batch of rollouts: checkpoints 3 and 6 stand in the middle of one
    four = {"num_iterations": 2, "minibatches": 2}
    return {
        "pretrain": pretrain_tables(run_dir, **every, keep_checkpoints=1, keep_every=6),
        "sft": sft,
        "rl": plain | {"kl_coefficient": 0.01},
        "reuse": plain | four | {"kl_coefficient": 0.01, "epsilon": 0.1},
        "ppo": plain | four | {"estimator": "ppo"},
        "select": plain
        | {"select": {"examples": "greso", "max_batches": 2, "replay_share": 0.25}}
        | {"reward": mostly},
        "lora": plain | {"lora": {"rank": 4}, "kl_coefficient": 0.01},
        "pipeline": {
            "stage": "pipeline",
            "run_dir": str(run_dir),
            "model": str(model),
            "order": ["sft", "rl"],
            "sft": inner[0] | {"lora": {"rank": 4, "dropout": 0.2}},
            "rl": inner[1],
        },
    }


class Worker(Protocol):
    """A process that trains, the leader of its own process group."""

    pid: int

    def wait(self, seconds: float) -> int | None:
        """Its exit code, None while it runs after so many seconds."""


@dataclass
class Command:
    """The installed command, as a user starts it."""

    process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait(self, seconds: float) -> int | None:
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None


@dataclass
class Fork:
    """A fork of a server that has imported everything: importing takes longer than a tiny run."""

    process: Any

    @property
    def pid(self) -> int:
        return int(self.process.pid)

    def wait(self, seconds: float) -> int | None:
        self.process.join(seconds)
        code: int | None = self.process.exitcode
        return code


def start_command(folder: Path, recipe: Path) -> Command:
    """The real `forethought train` in `folder`, in a session of its own."""
    code = "from forethought.cli.app import run; run()"
    paths = os.pathsep.join(map(os.path.abspath, sys.path))
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments(folder, recipe)],
            cwd=folder,
            env=os.environ | ONE_THREAD | {"PYTHONPATH": paths},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    return Command(process)


def fork_server() -> Any:
    """Where forks come from; it stays for as long as this process lives."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    before = dict(os.environ)
    # the server does not get the path from us, and what it loads on a GPU is lost to its forks
    paths = os.pathsep.join(map(os.path.abspath, sys.path))
    os.environ.update(ONE_THREAD | {"PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": ""})
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return context


def start_fork(
    server: Any, folder: Path, recipe: Path, num_documents: int = pretrain._TOKENIZER_DOCUMENTS
) -> Fork:
    """The same in a fork; a tokenizer is trained from so many documents."""
    work = (str(folder), arguments(folder, recipe), num_documents)
    process = server.Process(target=_train, args=work)
    process.start()
    return Fork(process)


def arguments(folder: Path, recipe: Path) -> list[str]:
    """Train `recipe` in the run folder, or resume the run that is there."""
    if (folder / RUN / "run.json").exists():
        return ["train", "--json", "--resume", RUN]
    return ["train", "--json", str(recipe), "--set", f"run_dir={RUN}"]


def _train(folder: str, arguments: list[str], num_documents: int) -> None:
    os.setsid()
    pretrain._TOKENIZER_DOCUMENTS = num_documents
    os.chdir(folder)
    torch.set_num_threads(1)
    file = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = ["forethought", *arguments]
    sys.exit(main(arguments))


def kill(worker: Worker) -> None:
    """kill -9 the whole process group, and wait for its end."""
    try:
        os.killpg(worker.pid, signal.SIGKILL)
    except ProcessLookupError:  # it has not made its group yet
        os.kill(worker.pid, signal.SIGKILL)
    worker.wait(60)


def output(folder: Path) -> str:
    log = folder / "log"
    return log.read_text() if log.exists() else "the process has not begun"


def totals(folder: Path) -> dict[str, float]:
    """What the run counted, as the command that ended it says."""
    told: dict[str, Any] = json.loads(output(folder).splitlines()[-1])
    return {name: value for name, value in told.items() if "total/" in name}


def snapshot(run_dir: Path) -> dict[str, bytes]:
    """The content of every file below the run folder, but for what the clock says."""
    return {
        path.relative_to(run_dir).as_posix(): _timeless(path)
        for path in sorted(run_dir.rglob("*"))
        if path.is_file() and path.name not in _OWN
    }


def _timeless(path: Path) -> bytes:
    if path.name == "metrics.jsonl":
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        return json.dumps([without_clocks(row) for row in rows], indent=1).encode()
    if path.name == "README.md":
        lines = path.read_text().splitlines()
        return "\n".join(line for line in lines if not line.startswith("| time |")).encode()
    return path.read_bytes()


def without_clocks(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in row.items()
        if not (name.startswith("time/") or name.endswith("tokens_per_second"))
    }


def differences(found: Mapping[str, bytes], expected: Mapping[str, bytes]) -> list[str]:
    """Names of files that are missing, left over or not the same."""
    return sorted(
        name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)
    )
