"""How near the parts of a training step come to the machine's own limits, on SmolLM2-135M.

    python bench/bench_floor.py

Limits: the fastest float32 matrix product found here and the fastest copy of memory. The floor of a
part is the longer of its fewest operations (2 a weight and token forward, 6 forward and backward;
the head only where a token is learned or drawn; attention left out) at the one limit and its fewest
bytes at the other. Best of several repeats. Writes docs/results/floor.json.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from forethought.models.load import load_model
from forethought.sampling.cache import prefill
from forethought.sampling.decoder import Decoder
from forethought.schema_tables import Optimizer
from forethought.training.batch import batch_logprobs, pack_batches, pairs_per_token
from forethought.training.strips import Row
from forethought.training.update import apply_update, build_optimizers
from record import write_result

MODEL = "smollm2-135m"
PROMPT, OWN, STEPS = 80, 64, 8
BYTES = {"float32": 4, "float16": 2, "int8": 1}


def best(function: Callable[[], object], repeats: int) -> float:
    function()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def limits() -> dict[str, float]:
    """Billions of operations and of bytes a second."""
    flops = []
    for m, k, n in ((512, 576, 1536), (1024, 576, 3072), (2048, 2048, 2048), (512, 1536, 576)):
        left, right = torch.randn(m, k), torch.randn(k, n)
        flops.append(2e-9 * m * k * n / best(lambda a=left, b=right: a @ b, 8))  # type: ignore[misc]
    source = torch.zeros(1 << 26)  # 256 MB
    target = torch.empty_like(source)
    copied = 2e-9 * source.nbytes / best(lambda: target.copy_(source), 5)
    return {"gflops": max(flops), "gigabytes": copied}


def part(
    seconds: float, gflop: float, gigabytes: float, limit: dict[str, float]
) -> dict[str, float]:
    floor = max(gflop / limit["gflops"], gigabytes / limit["gigabytes"])
    return {
        "seconds": round(seconds, 4),
        "gflop": round(gflop, 1),
        "gigabytes": round(gigabytes, 2),
        "floor_seconds": round(floor, 4),
        "share_percent": round(100 * floor / seconds, 1),
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
        ready = [found for prompt in prompts for found in prefill(model, [prompt])]
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


def main() -> None:
    model: Any = load_model(MODEL, dtype="float32").model.eval()
    limit = limits()
    print(json.dumps(limit), file=sys.stderr)
    total = sum(p.numel() for p in model.parameters())
    head = model.get_output_embeddings().weight.numel()
    body = total - head  # the table of embeddings is the head's
    parts: dict[str, dict[str, float]] = {}
    prompts = [[7 + i] * 128 for i in range(8)]
    with torch.inference_mode():
        seconds = best(lambda: prefill(model, prompts), 3)
    gflop = 2e-9 * (8 * 128 * body + 8 * head)
    parts["prefill"] = part(seconds, gflop, 4e-9 * total, limit)
    for weights, size in BYTES.items():
        for rows in (64, 128):
            seconds = decode_seconds(model, weights, rows, 8)
            found = part(seconds, 2e-9 * rows * total, 1e-9 * size * total, limit)
            parts[f"decode_{weights}_{rows}"] = found
    config = Optimizer(learning_rate=1e-6)
    optimizers, rows_, pairs = (
        build_optimizers(model, config),
        training_rows(),
        pairs_per_token(model),
    )
    counts = [0, 0]

    def backward() -> None:
        counts[:] = [0, 0]
        for batch in pack_batches(rows_, max_batch_tokens=4096, pad_id=0, pairs_per_token=pairs):
            (-(batch.weights * batch_logprobs(model, batch)).sum()).backward()
            counts[0] += batch.input_ids.numel()
            counts[1] += len(batch.targets)

    seconds = best(backward, 3)
    gflop = 6e-9 * (counts[0] * body + counts[1] * head)
    parts["backward"] = part(seconds, gflop, 12e-9 * total, limit)
    seconds = best(lambda: (backward(), apply_update(model, optimizers, config, 0, 9)), 2) - seconds
    parts["update"] = part(max(seconds, 1e-3), 0.0, 28e-9 * total, limit)
    write_result(
        "floor",
        command="python bench/bench_floor.py",
        seeds=[0],
        raw=parts,
        summary={name: round(value, 1) for name, value in limit.items()} | parts,
    )


if __name__ == "__main__":
    main()
