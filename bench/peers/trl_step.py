"""One TRL GRPO run on the step workload; prints a JSON line with the last step's figures.

    .bench/trl/bin/python bench/peers/trl_step.py FOLDER DTYPE MICRO_BATCH MODE STEPS

DTYPE: float32, bfloat16 or autocast (float32 weights, bfloat16 arithmetic);
MODE: static, or paged for continuous batching.
Run by bench_step.py in an environment with trl 1.16.0.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import step_workload as work


class Clock(TrainerCallback):
    """Seconds of every step, and what went through the model in it."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.counts = {"decoded_rows": 0, "backbone_positions": 0, "head_positions": 0}

    def on_step_begin(self, *_: object, **__: object) -> None:
        self.counts = dict.fromkeys(self.counts, 0)
        self._began = time.perf_counter()

    def on_step_end(self, *_: object, **__: object) -> None:
        self.seconds.append(time.perf_counter() - self._began)


def count_positions(model: torch.nn.Module, clock: Clock) -> None:
    def backbone(
        _: object, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor]
    ) -> None:
        cells = kwargs.get("input_ids", args[0] if args else None)
        if cells is None:
            cells = kwargs["inputs_embeds"][..., 0]
        clock.counts["backbone_positions"] += cells.numel()
        if cells.shape[1] == 1:
            clock.counts["decoded_rows"] += cells.shape[0]
        # the chunked head of trl 1.16 projects every position on a CPU; generate only the last
        clock.counts["head_positions"] += cells.numel() if torch.is_grad_enabled() else len(cells)

    model.model.register_forward_pre_hook(backbone, with_kwargs=True)


def main() -> None:
    folder, dtype, micro, mode = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
    index = {prompt: i for i, prompt in enumerate(work.prompts())}
    num_tokens: list[int] = []

    def reward(prompts, completions, completion_ids, **_):  # type: ignore[no-untyped-def]
        num_tokens.append(sum(map(len, completion_ids)))
        pairs = zip(prompts, completions, strict=True)
        return [work.reward(index[prompt], completion) for prompt, completion in pairs]

    rows = work.PROMPTS_PER_STEP * work.GROUP_SIZE
    config = GRPOConfig(
        output_dir=str(folder / "trl"),
        model_init_kwargs={"dtype": "float32" if dtype == "autocast" else dtype},
        use_cpu=not torch.cuda.is_available(),
        bf16=dtype == "autocast",
        gradient_checkpointing=False,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=rows // micro,
        num_generations=work.GROUP_SIZE,
        max_completion_length=work.MAX_TOKENS,
        max_steps=int(sys.argv[5]),
        shuffle_dataset=False,
        use_transformers_continuous_batching=mode == "paged",
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    # its gradient under a mask is not a number at some lengths, and the next step's sampling fails:
    # pytorch#196678; ours leaves it out too (models/precision.py)
    torch.backends.cuda.enable_cudnn_sdp(False)
    clock = Clock()
    trainer = GRPOTrainer(
        model=str(folder / "model"),
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": list(index)}),
        callbacks=[clock],
    )
    count_positions(trainer.model, clock)
    trainer.train()
    print(
        json.dumps(
            {
                "seconds": clock.seconds[-1],
                "sampled_tokens": num_tokens[-1],
                "peak_megabytes": work.peak_megabytes(),
                **clock.counts,
            }
        )
    )


if __name__ == "__main__":
    main()
