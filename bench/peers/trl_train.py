"""Train the bundled model with TRL's GRPOTrainer, keeping a copy of the weights every few steps.

    .bench/trl/bin/python bench/peers/trl_train.py MODEL TASK LEARNING_RATE SEED STEPS EVERY FOLDER

Run by bench_accuracy.py in an environment with trl 1.16.0 and PYTHONPATH=src: examples and rewards
are Forethought's own. Writes FOLDER/step-N and prints a JSON line with the seconds until each.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from forethought.grading.rewards import load_reward, score_rollouts
from forethought.tasks.base import load_task

PROMPTS, GROUP, MAX_TOKENS, WARMUP = 32, 8, 80, 5


class Keep(TrainerCallback):
    """Seconds of training, without those it takes to save a copy."""

    def __init__(self, folder: Path, every: int) -> None:
        self.folder, self.every = folder, every
        self.seconds: dict[int, float] = {}
        self.spent = 0.0

    def on_step_begin(self, *_: object, **__: object) -> None:
        self.began = time.perf_counter()

    def on_step_end(self, args, state, control, model=None, **_):  # type: ignore[no-untyped-def]
        self.spent += time.perf_counter() - self.began
        if state.global_step % self.every == 0:
            model.save_pretrained(self.folder / f"step-{state.global_step}")
            self.seconds[state.global_step] = self.spent


def main() -> None:
    model, name, rate, seed, steps, every, folder = sys.argv[1:]
    task = load_task(name, split="train", seed=int(seed))
    examples = [task[i] for i in range(min(len(task), PROMPTS * int(steps)))]
    parts = [load_reward("accuracy", weight=1.0), load_reward("format", weight=0.1)]

    def reward(completions, place, **_):  # type: ignore[no-untyped-def]
        texts = [completion[0]["content"] for completion in completions]
        asked = [examples[i] for i in place]
        grades = [task.grade(example, text) for example, text in zip(asked, texts, strict=True)]
        return [result.reward for result in score_rollouts(parts, asked, texts, grades)]

    keep = Keep(Path(folder), int(every))
    config = GRPOConfig(
        output_dir=folder,
        model_init_kwargs={"dtype": "float32"},
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=PROMPTS * GROUP,
        num_generations=GROUP,
        max_completion_length=MAX_TOKENS,
        max_steps=int(steps),
        learning_rate=float(rate),
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=WARMUP,
        seed=int(seed),
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    prompts = [[dict(message) for message in example.messages] for example in examples]
    data = Dataset.from_dict({"prompt": prompts, "place": list(range(len(examples)))})
    trainer = GRPOTrainer(
        model=model, reward_funcs=reward, args=config, train_dataset=data, callbacks=[keep]
    )
    trainer.train()
    print(json.dumps(keep.seconds))


if __name__ == "__main__":
    main()
