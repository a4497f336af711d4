"""TRL's own advantages, losses and gradients of given rollouts, for bench_parity.py.

    .bench/trl/bin/python bench/peers/trl_losses.py FOLDER

FOLDER holds `policy/` and `reference/` (model folders) and `cases.json`; `trl.safetensors` is
written there. Nothing is computed here: the trainers' `_generate_and_score_completions` and
`_compute_loss` run as they are, with rollouts handed in where they would sample, and with the
log-probabilities of an older policy where a case has them. Needs trl 1.16.0.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import torch
import transformers
import trl
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

SHARED = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": "none",
    "disable_tqdm": True,
    "model_init_kwargs": {"dtype": "float32"},
}


def build_trainer(case: dict[str, Any], folder: Path, batch: list[dict[str, Any]]) -> Any:
    """A trainer that takes `batch` for what it sampled; `batch` may be refilled afterwards."""
    model = str(folder / "policy")
    config, trainer = (RLOOConfig, RLOOTrainer) if case["is_rloo"] else (GRPOConfig, GRPOTrainer)
    settings = {"per_device_train_batch_size": len(batch)} | case["trl"]
    found = trainer(
        model=model,
        reward_funcs=lambda prompts, **_: [row["reward"] for row in batch],
        args=config(output_dir=str(folder / "out"), **SHARED, **settings),
        train_dataset=Dataset.from_list([{"prompt": "?"}] * len(batch)),
        processing_class=AutoTokenizer.from_pretrained(model),
    )
    found.model.train()
    found.current_gradient_accumulation_steps = 1
    if found.ref_model is not None:
        weights = load_file(folder / "reference" / "model.safetensors")
        found.ref_model.load_state_dict(weights, strict=False)  # tied heads are stored once
    hand_in_rollouts(found, case, batch)
    return found


def hand_in_rollouts(trainer: Any, case: dict[str, Any], batch: list[dict[str, Any]]) -> None:
    def tokens(name: str) -> list[Any]:
        return [row[name] for row in batch]

    if case["is_rloo"]:
        trainer._generate = lambda prompts: (
            tokens("prompt_ids"),
            tokens("completion_ids"),
            [""] * len(batch),
        )
        return
    trainer.rollout_func = lambda prompts, _: {
        "prompt_ids": tokens("prompt_ids"),
        "completion_ids": tokens("completion_ids"),
        "logprobs": tokens("sampler_logprobs"),
    }
    if case["has_importance"]:  # as with a vLLM whose weights need no update
        trainer.use_vllm = True
        trainer._last_loaded_step = trainer.state.global_step


def run(trainer: Any, case: dict[str, Any], batch: list[dict[str, Any]]) -> dict[str, Tensor]:
    inputs = trainer._generate_and_score_completions([{"prompt": "?"} for _ in batch])
    if not case["is_fresh"]:
        inputs["old_per_token_logps"] = padded([row["old_logprobs"] for row in batch])
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    named = sorted(trainer.model.named_parameters())
    gradient = torch.cat([p.grad.flatten() for _, p in named])
    trainer.model.zero_grad(set_to_none=True)
    found = {"loss": loss.detach(), "gradient": gradient, "advantages": inputs["advantages"]}
    if case["has_importance"]:
        width = inputs["completion_mask"].shape[1]
        ratio = inputs["importance_sampling_ratio"].expand(-1, width)
        found["importance"] = ratio[inputs["completion_mask"].bool()]
    return found


def padded(rows: list[list[float]]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)


def main() -> None:
    folder = Path(sys.argv[1])
    assert trl.__version__ == "1.16.0", trl.__version__
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)  # the rollout that nobody graded
    transformers.logging.disable_progress_bar()
    found: dict[str, Tensor] = {}
    for case in json.loads((folder / "cases.json").read_text(encoding="utf-8")):
        batch = list(case["batches"][0])
        trainer = build_trainer(case, folder, batch)
        for number, rows in enumerate(case["batches"]):
            batch[:] = rows
            for name, value in run(trainer, case, batch).items():
                found[f"{case['name']}.{number}.{name}"] = value.float().contiguous()
    save_file(found, folder / "trl.safetensors")


if __name__ == "__main__":
    main()
