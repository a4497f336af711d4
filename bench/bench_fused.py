"""Milliseconds a token on a GPU: the fused decoding step against the model's own forward pass.

    python bench/bench_fused.py [--repeats 3]

Both are captured as CUDA graphs and sample in bfloat16 from the step bench's model on CUDA, the
shape of Qwen2.5-0.5B with random weights: so many rows behind one prompt of 80 tokens, 128 tokens
each, after one pass that captures. In turn, medians. Also the own forward pass without a graph, as
any other device would run it. Writes docs/results/fused.json; needs a GPU and Triton.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import step_workload as work
from forethought.models.load import load_model
from forethought.sampling import decoder as decoding
from forethought.sampling.cache import prefill
from forethought.sampling.decoder import Decoder
from forethought.sampling.rows import Row
from forethought.sampling.stretch import TOKENS as STRETCH
from forethought.types import SamplingParams
from record import write_result

ROWS = (8, 16, 32, 64, 128)
PROMPT = tuple(range(100, 180))
TOKENS = 128  # a row, behind its first one
CACHE_BYTES = 3 << 30


def rows_of(count: int) -> list[Row]:
    """Rows with one token, and room for the stretches."""
    length = TOKENS + 1
    params = SamplingParams(max_tokens=length)
    chances = torch.rand(count, length, generator=torch.Generator().manual_seed(0)).tolist()
    return [
        Row(
            request=0,
            sibling=i,
            prompt_ids=PROMPT,
            before="",
            params=params,
            max_tokens=length,
            shares_prefill=i > 0,
            uniforms=chances[i],
            token_ids=[200 + i],
        )
        for i in range(count)
    ]


@torch.inference_mode()
def milliseconds_a_token(model: Any, decoder: Decoder, count: int) -> float:
    columns = len(PROMPT) + TOKENS + 1
    cache = decoder.open(count, len(PROMPT), TOKENS + 1, columns)
    [ready] = prefill(model, [PROMPT])
    rows = rows_of(count)
    for slot in range(count):
        cache.join(slot, PROMPT, ready)
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(TOKENS // STRETCH):
        stretch = decoder.stretch(cache, rows)
        assert stretch is not None, "a GPU samples in stretches"
        for row, token_ids in zip(rows, stretch.token_ids, strict=True):
            row.token_ids += token_ids
    seconds = time.perf_counter() - began  # the last stretch has been read
    for slot in reversed(range(count)):
        cache.leave(slot, rows[slot].length)
    return 1000 * seconds / TOKENS


def decoders(model: Any) -> dict[str, Callable[[int], float]]:
    """Each way to decode, which fixes its own way at its first call."""
    fused = Decoder(model, "float32", CACHE_BYTES)
    own, uncaptured = (Decoder(model, "float32", CACHE_BYTES) for _ in range(2))

    def by_own_forward(decoder: Decoder, count: int, *, captures: bool) -> float:
        kernels, decoding.fused_kernels = decoding.fused_kernels, lambda model: None
        try:
            if not captures and decoder._stretches is not None:
                decoder._stretches._captures = False
            return milliseconds_a_token(model, decoder, count)
        finally:
            decoding.fused_kernels = kernels

    return {
        "fused": lambda count: milliseconds_a_token(model, fused, count),
        "own_forward": lambda count: by_own_forward(own, count, captures=True),
        "uncaptured": lambda count: by_own_forward(uncaptured, count, captures=False),
    }


def measure(model: Any, repeats: int) -> dict[str, dict[str, list[float]]]:
    found: dict[str, dict[str, list[float]]] = {}
    for count in ROWS:
        ways = decoders(model)
        for way in ways.values():
            way(count)  # which captures, and compiles
        runs = [{name: way(count) for name, way in ways.items()} for _ in range(repeats)]
        found[f"rows_{count}"] = {name: [run[name] for run in runs] for name in ways}
        print(count, json.dumps(runs[-1]), file=sys.stderr)
    return found


def summarize(runs: dict[str, list[float]]) -> dict[str, float]:
    medians = {name: statistics.median(values) for name, values in runs.items()}
    ratio = medians["own_forward"] / medians["fused"]
    return {name: round(value, 3) for name, value in medians.items()} | {"ratio": round(ratio, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU here: nothing to measure", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory() as temporary:
        work.build(Path(temporary))
        model = load_model(f"{temporary}/model", dtype="bfloat16", device="cuda").model
    assert decoding.fused_kernels(model) is not None, "Triton does not work here"
    found = measure(model, arguments.repeats)
    summary = {"device": torch.cuda.get_device_name()}
    write_result(
        "fused",
        command="python bench/bench_fused.py",
        seeds=[0],
        raw=found,
        summary=summary | {count: summarize(runs) for count, runs in found.items()},
    )


if __name__ == "__main__":
    main()
