"""The backward pass of strips, attended to as a whole and in pieces, and by lean layers behind each
other, in turn.

    python bench/bench_pieces.py

The model, prompts and lengths of the step bench (`step_workload.py`): two groups of eight rollouts
of at most 256 tokens, sampled by the model itself, micro-batches of 1,024 cells; and the bundled
model with 32 prompts x 8 rollouts, micro-batches of 4,096; in the format that `dtype = "auto"` has
here. As in a run, each update is of other rollouts (seven eighths of them), and follows one of yet
others: what oneDNN has compiled for that one is there, and nothing else. On a processor with AMX
lean layers are timed with torch's products too, and so by their parts ("library"). Medians of 9.
Writes docs/results/pieces.json, pieces_bf16.json on a processor with that arithmetic, or
pieces_amx.json on one with AMX.
"""

from __future__ import annotations

import os
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

import step_workload as work
from device import is_bf16, name_here
from forethought.models.load import LoadedModel, load_model
from forethought.models.precision import compute_in, keep_casts
from forethought.sampling.lanes import may_use_amx
from forethought.sampling.local import LocalEngine
from forethought.tasks.base import load_task
from forethought.training import batch as batching
from forethought.training import lean_head, lean_products
from forethought.training.batch import batch_logprobs, flat_step, pack_batches, pairs_per_token
from forethought.training.strips import Row
from forethought.types import Request, SamplingParams
from record import write_result

REPEATS = 9
LONG_CELLS, SHORT_CELLS = 1024, 4096
_KEPT_PRODUCTS = "64"  # as the command sets it
IN_PIECES, LEAN_LAYERS = batching.in_pieces, batching.lean_layers
FILLS_WORDS = lean_products.fills_words
Times = dict[str, list[float]]


def long_requests(tokenizer: Any) -> list[Request]:
    prompts = [tuple(tokenizer(prompt).input_ids) for prompt in work.prompts()[:2]]
    return [
        Request(prompt_ids=ids, params=params(work.MAX_TOKENS, work.GROUP_SIZE, seed))
        for seed, ids in enumerate(prompts)
    ]


def short_requests() -> list[Request]:
    task = load_task("sum", size=32)
    return [Request(messages=task[i].messages, params=params(80, 8, i)) for i in range(len(task))]


def params(max_tokens: int, n: int, seed: int) -> SamplingParams:
    return SamplingParams(
        max_tokens=max_tokens, n=n, seed=seed, stop_at_boxed=False, detect_loops=False
    )


def sampled_rows(loaded: LoadedModel, requests: Sequence[Request]) -> list[Row]:
    engine = LocalEngine(loaded.model, loaded.tokenizer)
    return [
        Row(
            token_ids=[*c.prompt_ids, *c.token_ids],
            weights=[0.0] * len(c.prompt_ids) + [1.0] * len(c.token_ids),
            num_prompt=len(c.prompt_ids),
        )
        for siblings in engine.generate(requests)
        for c in siblings
    ]


def backward(model: Any, rows: Sequence[Row], way: str, cells: int, dtype: torch.dtype) -> float:
    began = time.perf_counter()
    is_lean = way in ("lean", "library")
    batches = pack_batches(
        rows,
        max_batch_tokens=cells,
        pad_id=0,
        pairs_per_token=pairs_per_token(model) if is_lean else 6 * model.config.hidden_size,
        flat_step=flat_step(model, dtype) if is_lean else 0,
    )
    with keep_casts("cpu", dtype):
        for batch in batches:
            with compute_in("cpu", dtype):
                logprobs = batch_logprobs(model, batch)
            (-(logprobs * batch.weights).sum()).backward()  # type: ignore[no-untyped-call]
    seconds = time.perf_counter() - began
    model.zero_grad(set_to_none=True)
    return seconds


def forget_products() -> None:
    """Let oneDNN compile as many others as it keeps."""
    for rows in range(100, 101 + int(_KEPT_PRODUCTS)):
        torch.ones(rows, 64, dtype=torch.bfloat16) @ torch.ones(64, 64, dtype=torch.bfloat16)


def some_of(rows: Sequence[Row], seed: int) -> list[Row]:
    chosen = set(random.Random(seed).sample(range(len(rows)), len(rows) * 7 // 8))
    return [row for i, row in enumerate(rows) if i in chosen]


def measure(
    loaded: LoadedModel, requests: Sequence[Request], names: Sequence[str], cells: int
) -> Times:
    """Seconds of each way, in turn."""
    dtype = torch.bfloat16 if is_bf16() else torch.float32
    rows = sampled_rows(loaded, requests)
    torch.set_grad_enabled(True)
    seconds: Times = {name: [] for name in names}
    for repeat in range(REPEATS + 1):
        for name in names:
            batching.in_pieces = nothing if name == "whole" else IN_PIECES
            batching.lean_layers = LEAN_LAYERS if name in ("lean", "library") else nothing
            lean_products.fills_words = lean_head.fills_words = (
                never if name == "library" else FILLS_WORDS
            )
            forget_products()
            backward(loaded.model, some_of(rows, -repeat - 1), name, cells, dtype)
            took = backward(loaded.model, some_of(rows, repeat), name, cells, dtype)
            if repeat:
                seconds[name].append(took)
    return seconds


def nothing(*_: object) -> AbstractContextManager[None]:
    return nullcontext()


def never(*_: object) -> bool:
    return False


def medians(seconds: Times) -> dict[str, float]:
    return {name: round(statistics.median(times), 3) for name, times in seconds.items()}


def saved(seconds: Times, way: str, other: str) -> float:
    """Percent of the time that `way` saves against the other."""
    least = statistics.median(seconds[way]) / statistics.median(seconds[other])
    return round(100 * (1 - least), 1)


def by_products(seconds: Times) -> dict[str, float]:
    known = "library" in seconds
    return {"products_saved_percent": saved(seconds, "lean", "library")} if known else {}


def main() -> None:
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", _KEPT_PRODUCTS)
    with tempfile.TemporaryDirectory() as folder:
        work.build(Path(folder))
        loaded = load_model(f"{folder}/model", dtype="float32")
    also = ["library"] if is_bf16() and may_use_amx() else []
    ways = ["whole", "pieces", "lean", *also]
    long = measure(loaded, long_requests(loaded.tokenizer), ways, LONG_CELLS)
    small = load_model("bundled:seedling", dtype="float32")
    short = measure(small, short_requests(), ["whole", "lean", *also], SHORT_CELLS)
    write_result(
        name_here("pieces"),
        command="python bench/bench_pieces.py",
        seeds=[0],
        raw={"step": long, "seedling": short},
        summary=medians(long)
        | {
            "saved_percent": saved(long, "pieces", "whole"),
            "lean_saved_percent": saved(long, "lean", "pieces"),
            "seedling": medians(short)
            | {"lean_saved_percent": saved(short, "lean", "whole")}
            | by_products(short),
        }
        | by_products(long),
    )


if __name__ == "__main__":
    main()
