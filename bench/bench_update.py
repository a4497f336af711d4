"""The backward pass of one RL step, siblings on one strip against one row each, in turn.

    python bench/bench_update.py [--model bundled:seedling]

Rollouts are sampled by the model itself, all of them kept. Writes docs/results/update.json.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from forethought.models.load import load_model
from forethought.sampling.local import LocalEngine
from forethought.tasks.base import load_task
from forethought.training.batch import batch_logprobs, pack_batches, pairs_per_token
from forethought.training.strips import Row
from forethought.types import Request, SamplingParams
from record import write_result

REPEATS = 5
TASK = "sum+story+equation+rule"
PROMPTS, SIBLINGS, MAX_TOKENS, MAX_BATCH_TOKENS = 32, 8, 80, 4096


def sampled_rows(model: PreTrainedModel, tokenizer: object) -> list[Row]:
    task = load_task(TASK, size=PROMPTS)
    engine = LocalEngine(model, tokenizer)  # type: ignore[arg-type]
    requests = [
        Request(
            messages=task[i].messages,
            params=SamplingParams(max_tokens=MAX_TOKENS, n=SIBLINGS, seed=i, stop_at_boxed=False),
        )
        for i in range(PROMPTS)
    ]
    found = engine.generate(requests)
    return [
        Row(
            token_ids=[*c.prompt_ids, *c.token_ids],
            weights=[0.0] * len(c.prompt_ids) + [1.0] * len(c.token_ids),
            num_prompt=len(c.prompt_ids),
        )
        for siblings in found
        for c in siblings
    ]


def backward(model: PreTrainedModel, rows: Sequence[Row], pairs: float) -> tuple[float, int]:
    """Seconds and computed cells of one pass over all rows."""
    began, num_cells = time.perf_counter(), 0
    for batch in pack_batches(
        rows, max_batch_tokens=MAX_BATCH_TOKENS, pad_id=0, pairs_per_token=pairs
    ):
        logprobs = batch_logprobs(model, batch)
        (-(logprobs * batch.weights).sum()).backward()  # type: ignore[no-untyped-call]
        num_cells += batch.input_ids.numel()
    seconds = time.perf_counter() - began
    model.zero_grad(set_to_none=True)
    return seconds, num_cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="bundled:seedling")
    loaded = load_model(parser.parse_args().model)
    rows = sampled_rows(loaded.model, loaded.tokenizer)
    torch.set_grad_enabled(True)
    settings = {"alone": 0.0, "shared": pairs_per_token(loaded.model)}
    for pairs in settings.values():
        backward(loaded.model, rows, pairs)  # the first pass pays for choosing kernels
    seconds: dict[str, list[float]] = {name: [] for name in settings}
    cells: dict[str, int] = {}
    for _ in range(REPEATS):
        for name, pairs in settings.items():
            took, cells[name] = backward(loaded.model, rows, pairs)
            seconds[name].append(took)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    summary = {
        f"milliseconds_{name}": round(1000 * value, 1) for name, value in medians.items()
    } | {f"cells_{name}": count for name, count in cells.items()}
    summary["ratio"] = round(medians["alone"] / medians["shared"], 2)
    write_result(
        "update", command="python bench/bench_update.py", seeds=[0], raw=seconds, summary=summary
    )
    print(summary)


if __name__ == "__main__":
    main()
