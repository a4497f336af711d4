"""How near the parts of a training step come to the machine's own limits, on SmolLM2-135M.

    python bench/bench_floor.py

Limits: what the fastest of a few matrix products keeps up here, in float32 and in bfloat16 where a
processor has that arithmetic, and a copy of memory, each for a few tenths of a second right before
and right after each part, as the speed of a shared machine moves within seconds; their mean counts.
Of five rounds, each the middle of a few repeats, the one in the middle by its share is told, and
what its share would be of the highest limit that any round saw. The floor of a part is the longer
of its fewest operations (2 a weight and token forward, 6 forward and backward; the head only where
a token is learned or drawn; attention left out) at the limit of its format and its fewest bytes at
the other. Operations in int8 count as those of the format next to it. Reading prompts and the
backward pass are in the format that a run has here. Writes docs/results/floor.json,
floor_bf16.json or floor_amx.json; the first two were written with one limit for all parts, the
fastest single product, and the update as what it adds to a backward pass.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch

from device import half, is_bf16, name_here
from forethought.models.load import load_model
from forethought.models.pages import keep_pages
from forethought.models.precision import compute_in, keep_casts
from forethought.sampling.decoder import Decoder
from forethought.schema_tables import Optimizer
from forethought.training.batch import batch_logprobs, flat_step, pack_batches, pairs_per_token
from forethought.training.strips import Row
from forethought.training.update import apply_update, build_optimizers
from record import write_result

MODEL = "smollm2-135m"
PROMPT, OWN, STEPS = 80, 64, 8
ROUNDS = 5  # of each part
LIMIT_SECONDS = 0.3
SHAPES = [(512, 576, 1536), (1024, 576, 3072), (2048, 2048, 2048), (512, 1536, 576)]
CELLS = 2048  # of a batch
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}


def typical(function: Callable[[], object], repeats: int = 3) -> float:
    """Seconds of the repeat in the middle."""
    function()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def rate(function: Callable[[], object]) -> float:
    """How often a second, for LIMIT_SECONDS."""
    function()
    count, began = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - began) < LIMIT_SECONDS:
        function()
        count += 1
    return count / elapsed


def limits() -> dict[str, float]:
    """Billions of operations and of bytes a second."""
    source, target = copied()
    found = {
        "gflops": product_rate(torch.float32),
        "gigabytes": 2e-9 * source.nbytes * rate(lambda: target.copy_(source)),
    }
    return found | ({"gflops_bfloat16": product_rate(torch.bfloat16)} if is_bf16() else {})


@cache
def copied() -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.zeros(1 << 26)  # 256 MB
    return source, torch.empty_like(source)


def product_rate(dtype: torch.dtype) -> float:
    """Billions of operations a second."""
    left, right = fastest_product(dtype)
    return 2e-9 * left.numel() * right.shape[1] * rate(lambda: left @ right)


@cache
def fastest_product(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Of a few shapes, tried twice."""
    found = []
    for m, k, n in SHAPES * 2:
        left, right = torch.randn(m, k).to(dtype), torch.randn(k, n).to(dtype)
        found.append((m * k * n * rate(lambda a=left, b=right: a @ b), left, right))  # type: ignore[misc]
    return max(found, key=lambda one: one[0])[1:]


def mean(several: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.fmean(limit[name] for limit in several) for name in several[0]}


def highest(several: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: max(limit[name] for limit in several) for name in several[0]}


def part(
    timed: Callable[[], float], gflop: float, gigabytes: float, dtype: str
) -> tuple[dict[str, float], dict[str, float]]:
    """What `timed` took beside its floor in the middle round, and the limits of all."""
    rounds, every = [], [limits()]
    for _ in range(ROUNDS):
        seconds = timed()
        every.append(limits())
        rounds.append(share(seconds, gflop, gigabytes, mean(every[-2:]), dtype))
        print(json.dumps(rounds[-1]), file=sys.stderr)
    middle = sorted(rounds, key=lambda found: found["share_percent"])[ROUNDS // 2]
    of_highest = share(middle["seconds"], gflop, gigabytes, highest(every), dtype)["share_percent"]
    return middle | {"share_of_highest_percent": of_highest}, highest(every)


def share(
    seconds: float, gflop: float, gigabytes: float, limit: dict[str, float], dtype: str
) -> dict[str, float]:
    gflops = (
        limit["gflops"] if dtype == "float32" else limit.get("gflops_bfloat16", limit["gflops"])
    )
    floor = max(gflop / gflops, gigabytes / limit["gigabytes"])
    return {
        "seconds": round(seconds, 4),
        "gflop": round(gflop, 1),
        "gigabytes": round(gigabytes, 2),
        "floor_seconds": round(floor, 4),
        "share_percent": round(100 * floor / seconds, 1),
        "limit_gflops": round(gflops, 1),
        "limit_gigabytes": round(limit["gigabytes"], 1),
    }


def decode_seconds(model: Any, weights: Any, rows: int, siblings: int) -> float:
    """Of one step, the median over steps of rows that have drawn half of OWN tokens."""
    decoder = Decoder(model, weights, 3 << 30)
    generator = random.Random(0)
    with torch.inference_mode():
        cache = decoder.open(rows, PROMPT, OWN, PROMPT + OWN)
        prompts = [
            tuple(generator.randrange(1000, 40_000) for _ in range(PROMPT))
            for _ in range(rows // siblings)
        ]
        ready = [found for p in prompts for found in decoder.prefill([p], torch.float32)]
        for row in range(rows):
            cache.join(row, prompts[row // siblings], ready[row // siblings])
        seconds = []
        for step in range(STEPS + 2):
            lengths = [PROMPT + OWN // 2 + step] * rows
            began = time.perf_counter()
            decoder.step(cache, [step + 5] * rows, lengths)
            seconds.append(time.perf_counter() - began)
    return sorted(seconds[2:])[STEPS // 2]


def training_rows() -> list[Row]:
    generator = random.Random(0)
    rows = []
    for _ in range(2):
        prompt = [generator.randrange(1000, 40_000) for _ in range(PROMPT)]
        for _ in range(8):
            own = [generator.randrange(1000, 40_000) for _ in range(OWN)]
            weights = [0.0] * PROMPT + [1e-3] * OWN
            rows.append(Row(token_ids=prompt + own, weights=weights, num_prompt=PROMPT))
    return rows


def prefill_seconds(model: Any, prompts: list[tuple[int, ...]]) -> float:
    decoder = Decoder(model, half(), 3 << 30)
    decoder.open(len(prompts), len(prompts[0]), OWN, len(prompts[0]) + OWN)
    with torch.inference_mode():
        return typical(lambda: decoder.prefill(prompts, torch.float32))


def backward(model: Any, rows: list[Row], dtype: torch.dtype) -> tuple[int, int]:
    """One pass over the rows, as in a run; its cells and its targets."""
    cells = targets = 0
    batches = pack_batches(
        rows,
        max_batch_tokens=CELLS,
        pad_id=0,
        pairs_per_token=pairs_per_token(model),
        flat_step=flat_step(model, dtype),
    )
    with keep_casts("cpu", dtype):
        for batch in batches:
            with compute_in("cpu", dtype):
                logprobs = batch_logprobs(model, batch)
            (-(logprobs * batch.weights).sum()).backward()  # type: ignore[no-untyped-call]
            cells += batch.input_ids.numel()
            targets += len(batch.targets)
    return cells, targets


def main() -> None:
    model: Any = load_model(MODEL, dtype="float32").model.eval()
    total = sum(p.numel() for p in model.parameters())
    head = model.get_output_embeddings().weight.numel()
    body = total - head  # the table of embeddings is the head's
    in_run = "bfloat16" if is_bf16() else "float32"
    found: dict[str, tuple[dict[str, float], dict[str, float]]] = {}
    found["prefill"] = part(
        lambda: prefill_seconds(model, [tuple(range(1000 + i, 1128 + i)) for i in range(8)]),
        2e-9 * (8 * 128 * body + 8 * head),
        BYTES[in_run] * 1e-9 * total,
        in_run,
    )
    for weights in ("float32", half(), "int8"):
        for rows in (64, 128):
            found[f"decode_{weights}_{rows}"] = part(
                lambda weights=weights, rows=rows: decode_seconds(model, weights, rows, 8),  # type: ignore[misc]
                2e-9 * rows * total,
                BYTES[weights] * 1e-9 * total,
                weights,
            )
    config, dtype = Optimizer(learning_rate=1e-6), getattr(torch, in_run)
    keep_pages(model)  # as a run does
    optimizers, rollouts = build_optimizers(model, config), training_rows()
    cells, targets = backward(model, rollouts, dtype)
    found["backward"] = part(
        lambda: typical(lambda: backward(model, rollouts, dtype)),
        6e-9 * (cells * body + targets * head),
        12e-9 * total,
        in_run,
    )

    def update() -> float:
        seconds = []
        for _ in range(3):
            backward(model, rollouts, dtype)
            began = time.perf_counter()
            apply_update(model, optimizers, config, 0, 9)
            seconds.append(time.perf_counter() - began)
        return statistics.median(seconds)

    found["update"] = part(update, 0.0, 28e-9 * total, "float32")
    parts = {name: measured for name, (measured, _) in found.items()}
    limit = highest([limit for _, limit in found.values()])
    write_result(
        name_here("floor"),
        command="python bench/bench_floor.py",
        seeds=[0],
        raw=parts,
        summary={name: round(value, 1) for name, value in limit.items()} | parts,
    )


if __name__ == "__main__":
    main()
