"""One decoding step of SmolLM2-135M on a processor: transformers' forward, compiled, and ours.

    python bench/bench_compile.py [--repeats 3]

transformers' forward pass runs over a static cache, as it is and through torch.compile (it needs
a C++ compiler); ours is the lean step, in float32 too. Every row has 80 tokens of prompt and half
of 64 of its own, eight rows share a prompt. Milliseconds are medians over repeats, in turn. Writes
docs/results/compile.json.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import StaticCache

from bench_floor import OWN, PROMPT, STEPS, decode_seconds
from forethought.models.load import load_model
from record import write_result

MODEL, ROWS, SIBLINGS = "smollm2-135m", (8, 64), 8


def static_step(model: Any, forward: Callable[..., Any], rows: int) -> Callable[[], float]:
    """A function that decodes a few steps from the middle of a completion: seconds of one."""
    ids = torch.randint(1000, 40_000, (rows, PROMPT + OWN // 2))

    @torch.inference_mode()
    def run() -> float:
        cache = StaticCache(model.config, PROMPT + OWN)
        model(ids, past_key_values=cache, logits_to_keep=1)
        began = time.perf_counter()
        for _ in range(STEPS):
            forward(ids[:, :1], past_key_values=cache)
        return (time.perf_counter() - began) / STEPS

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    model: Any = load_model(MODEL, dtype="float32").model.eval()
    raw: dict[str, dict[str, list[float]]] = {}
    summary: dict[str, Any] = {}
    for rows in ROWS:
        compiled = torch.compile(model, dynamic=False)
        ways: dict[str, Callable[[], float]] = {
            "forward": static_step(model, model, rows),
            "compiled": static_step(model, compiled, rows),
            "lean": lambda rows=rows: decode_seconds(model, "float32", rows, SIBLINGS),  # type: ignore[misc]
        }
        began = time.perf_counter()
        ways["compiled"]()
        compiling = time.perf_counter() - began
        found = raw[f"rows_{rows}"] = {name: [] for name in ways}
        for _ in range(repeats):
            for name, way in ways.items():
                found[name].append(1000 * way())
        medians = {name: round(statistics.median(times), 1) for name, times in found.items()}
        summary[f"rows_{rows}"] = medians | {
            "compiling_seconds": round(compiling, 1),
            "compiled_over_lean": round(medians["compiled"] / medians["lean"], 2),
        }
        print(summary[f"rows_{rows}"], file=sys.stderr, flush=True)
    write_result(
        "compile", command="python bench/bench_compile.py", seeds=[], raw=raw, summary=summary
    )


if __name__ == "__main__":
    main()
