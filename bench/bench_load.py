"""Decoding beside another busy process: how much slower, with threads that give way and without.

    python bench/bench_load.py

SmolLM2-135M, 64 rows, 40 tokens each, in a process of its own; alone, beside one process that does
nothing but count, and beside it with the number of threads left alone (OMP_NUM_THREADS set, which
turns giving way off). 3 repeats in turn, medians. Writes docs/results/load.json.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from forethought.machine import usable_cores
from record import write_result

REPEATS, ROWS, TOKENS = 3, 64, 40
SPIN = "30000"  # as the forethought command sets it
WAYS = {
    "alone": (False, {}),
    "beside": (True, {}),
    "beside_fixed": (True, {"OMP_NUM_THREADS": str(usable_cores())}),
}


def sample() -> None:
    """What a measured process does: print its seconds."""
    import time

    from forethought.models.load import load_model
    from forethought.sampling.local import LocalEngine
    from forethought.types import Request, SamplingParams

    loaded = load_model("smollm2-135m")
    engine = LocalEngine(loaded.model, loaded.tokenizer)
    engine._end_ids = frozenset()
    params = SamplingParams(max_tokens=TOKENS, n=8, stop_at_boxed=False, detect_loops=False)
    prompts = [tuple(range(1000 + 50 * i, 1040 + 50 * i)) for i in range(ROWS // 8)]
    began = time.perf_counter()
    engine.generate([Request(prompt_ids=prompt, params=params) for prompt in prompts])
    print(json.dumps({"seconds": time.perf_counter() - began}))


def measure(is_beside: bool, settings: dict[str, str]) -> float:
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if is_beside else None
    kept = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    try:
        done = subprocess.run(
            [sys.executable, str(Path(__file__).resolve()), "--sample"],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            env=kept | {"GOMP_SPINCOUNT": SPIN} | settings,
        )
    finally:
        if busy is not None:
            busy.kill()
            busy.wait()
    return float(json.loads(done.stdout.splitlines()[-1])["seconds"])


def main() -> None:
    raw: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(REPEATS):
        for name, (is_beside, settings) in WAYS.items():
            raw[name].append(measure(is_beside, settings))
            print(name, round(raw[name][-1], 1), file=sys.stderr)
    medians = {name: statistics.median(seconds) for name, seconds in raw.items()}
    summary = {name: round(seconds, 1) for name, seconds in medians.items()} | {
        "slower": round(medians["beside"] / medians["alone"], 2),
        "slower_fixed": round(medians["beside_fixed"] / medians["alone"], 2),
    }
    write_result("load", command="python bench/bench_load.py", seeds=[0], raw=raw, summary=summary)


if __name__ == "__main__":
    sample() if "--sample" in sys.argv else main()
