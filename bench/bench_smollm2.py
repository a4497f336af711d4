"""SmolLM2-135M: cold start on worked traces, then RL; is RL better than the cold start alone?

    forethought model get smollm2-135m
    python bench/bench_smollm2.py [--seeds 0 1]

Writes docs/results/smollm2.json. About an hour a seed at most on 2 cores.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from record import write_result

TASK = "sum:difficulty=3"
PROBLEMS = 500
MAX_TOKENS = 64


def forethought(*arguments: str) -> dict[str, object]:
    command = [sys.executable, "-m", "forethought", *arguments, "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return result


def evaluate(model: str, *extra: str) -> dict[str, object]:
    return forethought(
        "eval", "--model", model, "--task", TASK, "--limit", str(PROBLEMS),
        "--max-tokens", str(MAX_TOKENS), *extra,
    )  # fmt: skip


def run_seed(seed: int, folder: Path) -> dict[str, object]:
    began = time.perf_counter()
    run = folder / f"seed-{seed}"
    trained = forethought(
        "train", "recipes/smollm2-arithmetic.toml", "--set", f"seed={seed}",
        "--set", f"run_dir={run}",
    )  # fmt: skip
    seconds = time.perf_counter() - began
    sft, rl = str(run / "1-sft" / "model"), str(run / "2-rl" / "model")
    compared = evaluate(rl, "--against", sft)
    return {"train": trained, "train_seconds": seconds, "compared": compared}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--keep", type=Path, help="keep the runs in this folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        raw = {f"seed_{seed}": run_seed(seed, folder) for seed in arguments.seeds}
    write_result(
        "smollm2",
        command="python bench/bench_smollm2.py",
        seeds=arguments.seeds,
        raw=raw,
        summary={name: summarise(found) for name, found in raw.items()},
    )


def summarise(found: dict[str, object]) -> dict[str, object]:
    """Greedy accuracy in percent on the same problems, and minutes of training."""
    compared = found["compared"]
    assert isinstance(compared, dict)
    difference = compared["difference"]
    return {
        "sft": round(100 * compared["against"]["accuracy"], 1),
        "rl": round(100 * compared["accuracy"], 1),
        "gain": round(100 * difference["mean"], 1),
        "gain_low": round(100 * difference["low"], 1),
        "gain_high": round(100 * difference["high"], 1),
        "train_minutes": round(found["train_seconds"] / 60, 1),  # type: ignore[operator]
    }


if __name__ == "__main__":
    main()
