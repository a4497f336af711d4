"""The backward pass of strips, attended to as a whole and in pieces, in turn.

    python bench/bench_pieces.py

The model, prompts and lengths of the step bench (`step_workload.py`): two groups of eight rollouts
of at most 256 tokens, sampled by the model itself, micro-batches of 1,024 cells, in the format that
`dtype = "auto"` takes here. Medians of 7. Writes docs/results/pieces.json, or pieces_bf16.json.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

import step_workload as work
from device import is_bf16, name_here
from forethought.models.load import load_model
from forethought.models.precision import compute_in, keep_casts
from forethought.sampling.local import LocalEngine
from forethought.training import batch as batching
from forethought.training.batch import batch_logprobs, pack_batches, pairs_per_token
from forethought.training.strips import Row
from forethought.types import Request, SamplingParams
from record import write_result

REPEATS, CELLS = 7, 1024


def sampled_rows(model: Any, tokenizer: Any) -> list[Row]:
    engine = LocalEngine(model, tokenizer)
    requests = [
        Request(
            prompt_ids=tuple(tokenizer(prompt).input_ids),
            params=SamplingParams(
                max_tokens=work.MAX_TOKENS,
                n=work.GROUP_SIZE,
                seed=i,
                stop_at_boxed=False,
                detect_loops=False,
            ),
        )
        for i, prompt in enumerate(work.prompts()[:2])
    ]
    return [
        Row(
            token_ids=[*c.prompt_ids, *c.token_ids],
            weights=[0.0] * len(c.prompt_ids) + [1.0] * len(c.token_ids),
            num_prompt=len(c.prompt_ids),
        )
        for siblings in engine.generate(requests)
        for c in siblings
    ]


def backward(model: Any, rows: Sequence[Row], pairs: float, dtype: torch.dtype) -> float:
    began = time.perf_counter()
    with keep_casts("cpu", dtype):
        for batch in pack_batches(rows, max_batch_tokens=CELLS, pad_id=0, pairs_per_token=pairs):
            with compute_in("cpu", dtype):
                logprobs = batch_logprobs(model, batch)
            (-(logprobs * batch.weights).sum()).backward()  # type: ignore[no-untyped-call]
    seconds = time.perf_counter() - began
    model.zero_grad(set_to_none=True)
    return seconds


def main() -> None:
    dtype = torch.bfloat16 if is_bf16() else torch.float32
    with tempfile.TemporaryDirectory() as folder:
        work.build(Path(folder))
        loaded = load_model(f"{folder}/model")
    rows = sampled_rows(loaded.model, loaded.tokenizer)
    torch.set_grad_enabled(True)
    pairs = pairs_per_token(loaded.model)
    ways: dict[str, Any] = {
        "whole": lambda *_: nullcontext(),
        "pieces": batching.in_pieces,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(REPEATS + 1):
        for name, way in ways.items():
            batching.in_pieces = way
            took = backward(loaded.model, rows, pairs, dtype)
            if repeat:
                seconds[name].append(took)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    saved = 100 * (1 - medians["pieces"] / medians["whole"])
    write_result(
        name_here("pieces"),
        command="python bench/bench_pieces.py",
        seeds=[0],
        raw=seconds,
        summary={name: round(value, 2) for name, value in medians.items()}
        | {"saved_percent": round(saved, 1)},
    )


if __name__ == "__main__":
    main()
