"""Train a model with TRL's GRPOTrainer, keeping a copy of the weights every few steps.

    .bench/trl/bin/python bench/peers/trl_train.py MODEL TASK LEARNING_RATE SEED STEPS EVERY FOLDER
        [--prompts 32] [--group 8] [--max-tokens 80] [--micro-batch 256] [--dtype float32]
        [--updates 1] [--warmup 5] [--layers N]

Run by race.py and bench_smollm2_step.py in an environment with trl 1.16.0 and
PYTHONPATH=src: examples and rewards are Forethought's own. A step is a batch of rollouts, with so
many updates each. The dtype "autocast" is weights in float32 and arithmetic in bfloat16; with
--layers only the last N learn. Writes FOLDER/step-N and prints a JSON line with the seconds until
each.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from forethought.grading.rewards import load_reward, score_rollouts
from forethought.models.trained_layers import train_last
from forethought.tasks.base import load_task


class Keep(TrainerCallback):
    """Seconds of training, without those it takes to save a copy."""

    def __init__(self, folder: Path, every: int, updates: int) -> None:
        self.folder, self.every, self.updates = folder, every, updates
        self.seconds: dict[int, float] = {}
        self.spent = 0.0

    def on_step_begin(self, *_: object, **__: object) -> None:
        self.began = time.perf_counter()

    def on_step_end(self, args, state, control, model=None, **_):  # type: ignore[no-untyped-def]
        self.spent += time.perf_counter() - self.began
        step, update = divmod(state.global_step, self.updates)
        if update == 0 and step % self.every == 0:
            model.save_pretrained(self.folder / f"step-{step}")
            self.seconds[step] = self.spent


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    kinds = {"model": str, "task": str, "rate": float, "seed": int, "steps": int, "every": int}
    for name, kind in (kinds | {"folder": str}).items():
        parser.add_argument(name, type=kind)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=80)
    parser.add_argument("--micro-batch", type=int, default=256)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--updates", type=int, default=1)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--layers", type=int)
    return parser.parse_args()


def main() -> None:
    options = read_options()
    task = load_task(options.task, split="train", seed=options.seed)
    examples = [task[i] for i in range(min(len(task), options.prompts * options.steps))]
    parts = [load_reward("accuracy", weight=1.0), load_reward("format", weight=0.1)]

    def reward(completions, place, **_):  # type: ignore[no-untyped-def]
        texts = [completion[0]["content"] for completion in completions]
        asked = [examples[i] for i in place]
        grades = [task.grade(example, text) for example, text in zip(asked, texts, strict=True)]
        return [result.reward for result in score_rollouts(parts, asked, texts, grades)]

    rollouts = options.prompts * options.group
    micro_batch = min(options.micro_batch, rollouts // options.updates)
    accumulated = rollouts // options.updates // micro_batch
    autocast = options.dtype == "autocast"
    dtype = "float32" if autocast else options.dtype
    keep = Keep(Path(options.folder), options.every, options.updates)
    config = GRPOConfig(
        output_dir=options.folder,
        model_init_kwargs=None if options.layers else {"dtype": dtype},
        use_cpu=not torch.cuda.is_available(),
        bf16=autocast,
        gradient_checkpointing=False,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=accumulated,
        steps_per_generation=accumulated * options.updates,
        num_generations=options.group,
        max_completion_length=options.max_tokens,
        max_steps=options.steps * options.updates,
        learning_rate=options.rate,
        lr_scheduler_type="linear",
        warmup_steps=min(options.warmup, options.steps - 1),
        seed=options.seed,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    # its gradient under a mask is not a number at some lengths: pytorch#196678
    torch.backends.cuda.enable_cudnn_sdp(False)
    prompts = [[dict(message) for message in example.messages] for example in examples]
    data = Dataset.from_dict({"prompt": prompts, "place": list(range(len(examples)))})
    model = options.model
    if options.layers:
        model = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
        train_last(model, options.layers)
    trainer = GRPOTrainer(
        model=model, reward_funcs=reward, args=config, train_dataset=data, callbacks=[keep]
    )
    trainer.train()
    print(json.dumps(keep.seconds))


if __name__ == "__main__":
    main()
