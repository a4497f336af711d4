"""SmolLM2-135M: cold start on worked traces, then RL; is RL better than the cold start alone?

    python bench/bench_smollm2.py [--seeds 0 1] [--keep FOLDER]

Both checkpoints answer the same 500 held-out problems, greedily and with two samples each at
temperature 1. Writes docs/results/smollm2.json. Under an hour a seed on 2 cores; a run that stands
in FOLDER goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from record import write_result

TASK = "sum:difficulty=2"
PROBLEMS = 500
SAMPLES = 2
MAX_TOKENS = 64


def forethought(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "forethought", *arguments, "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def evaluate(model: str, *flags: str, num_samples: int) -> dict[str, Any]:
    found = forethought(
        "eval", "--model", model, "--task", TASK, "--limit", str(PROBLEMS),
        "--max-tokens", str(MAX_TOKENS), "--samples", str(num_samples), *flags,
    )  # fmt: skip
    for side in (found, found.get("against", {})):
        if "model" in side:  # the stage, not where this machine keeps it
            side["model"] = Path(side["model"]).parent.name
    return found


def run_seed(seed: int, folder: Path) -> dict[str, Any]:
    run = folder / f"seed-{seed}"
    sft, rl = run / "1-sft", run / "2-rl"
    if (run / "run.json").exists():
        forethought("train", "--resume", str(run))  # at once where it is finished
    else:
        forethought(
            "train", "smollm2-arithmetic", "--set", f"seed={seed}", "--set", f"run_dir={run}"
        )
    compared = str(rl / "model"), "--against", str(sft / "model")
    return {
        "steps": {stage.name: read_steps(stage) for stage in (sft, rl)},
        "greedy": evaluate(*compared, num_samples=1),
        "samples": evaluate(*compared, num_samples=SAMPLES),
    }


def read_steps(stage: Path) -> list[dict[str, float]]:
    """The metrics of every step that tell how it went."""
    wanted = ("step", "loss/mean", "reward/accuracy", "rollout/signal_frac", "time/step_seconds")
    lines = (stage / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [{name: row[name] for name in wanted if name in row} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--keep", type=Path, help="keep the runs in this folder")
    arguments = parser.parse_args()
    forethought("model", "get", "smollm2-135m")
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


def summarise(found: dict[str, Any]) -> dict[str, float]:
    """Accuracies in percent on the same problems, and minutes of training steps."""
    summary: dict[str, float] = {}
    for kind in ("samples", "greedy"):
        compared = found[kind]
        difference = compared["difference"]
        summary |= {
            f"{kind}_sft": round(100 * compared["against"]["accuracy"], 1),
            f"{kind}_rl": round(100 * compared["accuracy"], 1),
            f"{kind}_gain": round(100 * difference["mean"], 1),
            f"{kind}_gain_low": round(100 * difference["low"], 1),
            f"{kind}_gain_high": round(100 * difference["high"], 1),
        }
    seconds = [row["time/step_seconds"] for steps in found["steps"].values() for row in steps]
    return summary | {"train_minutes": round(sum(seconds) / 60, 1)}


if __name__ == "__main__":
    main()
