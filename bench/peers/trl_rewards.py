"""Rewards both ways between TRL and Forethought; prints a JSON line.

    PYTHONPATH=src .bench/trl/bin/python bench/peers/trl_rewards.py MODEL FOLDER

Two steps of TRL's GRPOTrainer on MODEL whose reward functions are Forethought's, and what TRL
logged of them; then TRL's own reward functions called by Forethought, and how far the two
libraries' formulas are apart. Run by bench_trl_rewards.py in an environment with trl 1.16.0.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer
from trl.rewards import (
    get_repetition_penalty_reward,
    get_soft_overlong_punishment,
    think_format_reward,
)

from forethought.grading.export_rewards import as_trl_reward, trl_rows
from forethought.grading.rewards import RewardPart, load_reward, score_rollouts
from forethought.grading.user_rewards import adapt
from forethought.schema_tables import Reward, SoftOverlong
from forethought.tasks.base import load_task
from forethought.types import Example

PROMPTS, GROUP, MAX_TOKENS, STEPS = 4, 4, 64, 2
SETTINGS = Reward(parts={"soft_overlong": 1.0}, soft_overlong=SoftOverlong(buffer=32))


def train(model: str, folder: Path) -> dict[str, Any]:
    """Train on Forethought's rewards; the means that TRL logged, and how often each was called."""
    task = load_task("sum:difficulty=1", split="train", size=PROMPTS * STEPS)
    rewards = [
        as_trl_reward(task=task),
        *(
            as_trl_reward(name, task=task, settings=SETTINGS, max_tokens=MAX_TOKENS)
            for name in ("format", "cosine_length", "soft_overlong", "repetition")
        ),
    ]
    config = GRPOConfig(
        output_dir=str(folder),
        model_init_kwargs={"dtype": "float32"},
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=PROMPTS * GROUP,
        num_generations=GROUP,
        max_completion_length=MAX_TOKENS,
        max_steps=STEPS,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
    )
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=rewards,
        args=config,
        train_dataset=Dataset.from_list(trl_rows(task)),
    )
    trainer.train()
    logged = [row for row in trainer.state.log_history if "reward" in row]
    names = [reward.__name__ for reward in rewards]
    return {
        "steps": len(logged),
        "means": {name: [row[f"rewards/{name}/mean"] for row in logged] for name in names},
    }


def compare() -> dict[str, Any]:
    """TRL's reward functions, called by Forethought as they are, beside Forethought's own."""
    texts = [f"<think>\n{'one two ' * n}\n</think>\n\\boxed{{{n}}}" for n in range(40)]
    ids = [[token % (n + 1) for token in range(2 * n)] for n in range(40)]
    examples = [Example(id=str(n), messages=(), answer=str(n)) for n in range(40)]
    pairs = {
        "soft_overlong": get_soft_overlong_punishment(MAX_TOKENS, 32),
        "repetition": get_repetition_penalty_reward(ngram_size=3, max_penalty=-1.0),
    }
    task = load_task("sum", size=1)
    grades = [task.grade(example, text) for example, text in zip(examples, texts, strict=True)]

    def values(part: RewardPart) -> list[float | None]:
        found = score_rollouts([part], examples, texts, grades, completion_ids=ids)
        return [result.reward for result in found]

    gaps = {}
    for name, function in pairs.items():
        theirs = values(RewardPart(name=name, weight=1.0, function=adapt(function, name)))
        ours = values(load_reward(name, settings=SETTINGS, max_tokens=MAX_TOKENS))
        gaps[name] = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    thinks = RewardPart(name="thinks", weight=1.0, function=adapt(think_format_reward, "thinks"))
    return {"largest_difference": gaps, "think_format_mean": sum(values(thinks)) / len(texts)}


def main() -> None:
    model, folder = sys.argv[1], Path(sys.argv[2])
    print(json.dumps({"compared": compare(), "trained": train(model, folder)}))


if __name__ == "__main__":
    main()
