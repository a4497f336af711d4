"""A model and recipes so small that a whole training run takes a second or less."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from forethought.cli.app import main
from forethought.config import parse_recipe
from forethought.models.save import save_model
from forethought.models.tiny import build_model, train_tokenizer
from forethought.run import Run
from forethought.tasks.base import load_task
from forethought.training import pretrain
from forethought.training.stages import run_stage, start_run

NARROWEST = "auto" if torch.cuda.is_available() else "int8"  # of rollouts; int8 is a processor's

# Pays for even token ids: something that differs between the siblings of a model of nothing.
EVEN_REWARD = """
def even(completion_ids, **kwargs):
    return [sum(t % 2 == 0 for t in ids) / len(ids) for ids in completion_ids]
"""


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Of the shape of the bundled model's; 300 tokens."""
    task = load_task("sum+story", split="train", size=40)
    return train_tokenizer([task[i].messages[0]["content"] for i in range(40)], 300)


def tiny_policy(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> LlamaForCausalLM:
    return build_model(
        tokenizer,
        hidden_size=32,
        num_layers=2,
        num_heads=2,
        intermediate_size=64,
        max_context=256,
        seed=seed,
    )


def save_tiny(folder: Path) -> Path:
    """A complete model folder of random weights."""
    tokenizer = tiny_tokenizer()
    save_model(tiny_policy(tokenizer), tokenizer, folder)
    return folder


def rl_tables(model: Path, run_dir: Path, **changes: Any) -> dict[str, Any]:
    """The tables of a tiny RL recipe."""
    return {
        "stage": "rl",
        "run_dir": str(run_dir),
        "model": str(model),
        "task": "sum:difficulty=1",
        "num_steps": 4,
        "prompts_per_step": 4,
        "group_size": 4,
        "max_tokens": 8,
        "max_rows": 8,
        "dtype": "float32",
        "preflight_problems": 0,
        "eval_problems": 0,
        "checkpoint_every": 2,
        "optimizer": {"learning_rate": 3e-3},
    } | changes


def sft_tables(model: Path, run_dir: Path, **changes: Any) -> dict[str, Any]:
    """The tables of a tiny SFT recipe on generated traces."""
    source = {} if "data" in changes else {"mixture": {"families": {"sum": 1}}}
    return {
        "stage": "sft",
        "run_dir": str(run_dir),
        "model": str(model),
        "num_steps": 4,
        "traces_per_step": 4,
        "dtype": "float32",
        "checkpoint_every": 2,
        "optimizer": {"learning_rate": 1e-2},
        **source,
    } | changes


def pretrain_tables(run_dir: Path, **changes: Any) -> dict[str, Any]:
    """The tables of a tiny pretraining recipe."""
    return {
        "stage": "pretrain",
        "run_dir": str(run_dir),
        "num_steps": 6,
        "tokens_per_step": 400,
        "max_batch_tokens": 256,
        "dtype": "float32",
        "checkpoint_every": 2,
        "optimizer": {"learning_rate": 1e-2, "muon_learning_rate": 0.02, "warmup_steps": 1},
        "architecture": {
            "vocab_size": 300,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 2,
            "intermediate_size": 64,
            "max_context": 256,
        },
        "mixture": {"families": {"sum": 1, "rule": 1}},
    } | changes


def run_command(arguments: list[str], log: str) -> None:
    """The body of a process of its own: `forethought` with `arguments`, its output in `log`."""
    torch.set_num_threads(1)
    pretrain._TOKENIZER_DOCUMENTS = 200
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.exit(main(arguments))


def train_in_two(tables: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The same, broken off behind the first checkpoint."""
    recipe = parse_recipe(tables)
    log = Run.log

    def break_off(self: Run, step: int, metrics: Any) -> None:
        if step == 3:
            raise RuntimeError("broken off")
        log(self, step, metrics)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", break_off)
        with pytest.raises(RuntimeError, match="broken off"), start_run(recipe, ["test"]) as run:
            run_stage(recipe, run)
    with Run.open(Path(recipe.run_dir)) as run:
        run_stage(recipe, run)
        return run.metrics()


def without_clock(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    clocks = ("time/", "data/tokens_per", "rollout/tokens_per")
    return [{k: v for k, v in row.items() if not k.startswith(clocks)} for row in metrics]
