"""A step of RL on a real model against TRL 1.16: SmolLM2-135M after the recipe's cold start.

    python bench/bench_smollm2_step.py [--model RUN] [--rounds 3]

Both sides make the steps of recipes/smollm2-arithmetic.toml: 16 prompts x 8 rollouts of at most 64
tokens, the same problems and rewards; TRL in micro-batches of 32, ours with rollouts in the format
that is the default here (float16, or bfloat16 on a processor with that arithmetic) and in int8,
each in a process of its own. On such a processor a step of TRL is tried in float32 and in bfloat16,
and the faster is the peer. Sides take turns, as the speed of a shared machine moves: in each round
every side makes two steps, of which the first does not count; medians are of the rounds. The cold
start is made first, unless --model names one. Writes docs/results/smollm2_step.json,
smollm2_step_bf16.json on a processor with that arithmetic, smollm2_step_amx.json on one with AMX;
the first two were written when each side made its steps at once, ours first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from cold_start import cold_start, save_float32
from device import half, is_bf16, name_here
from record import write_result
from trl_side import train_trl

DTYPES = ["float32", "bfloat16"] if is_bf16() else ["float32"]  # of TRL
STEPS = 2
TASK, PROMPTS, GROUP, MAX_TOKENS, RATE = "sum:difficulty=2", 16, 8, 64, 2e-5


def trl(model: Path, folder: Path, dtype: str) -> float:
    """Seconds of TRL's second step."""
    until = train_trl(
        model, TASK, RATE, 0, STEPS, 1, folder,
        "--prompts", PROMPTS, "--group", GROUP, "--max-tokens", MAX_TOKENS, "--micro-batch", 32,
        "--dtype", dtype,
    )  # fmt: skip
    first, second = until.values()
    return second - first


def ours(model: Path, folder: Path, rollout_dtype: str) -> float:
    """Seconds of our second step."""
    changes = {
        "stage": "rl", "model": model, "run_dir": folder, "task": TASK, "num_steps": STEPS,
        "prompts_per_step": PROMPTS, "group_size": GROUP, "max_tokens": MAX_TOKENS,
        "max_rows": 128, "max_batch_tokens": 2048, "eval_problems": 0,
        "rollout_dtype": rollout_dtype, "optimizer.learning_rate": RATE,
    }  # fmt: skip
    recipe = folder.with_suffix(".toml")
    recipe.write_text("", encoding="utf-8")
    command = [sys.executable, "-m", "forethought", "train", str(recipe)]
    for key, value in changes.items():
        command += ["--set", f"{key}={value}"]
    subprocess.run(command, check=True, stdout=sys.stderr)
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps_of = [json.loads(line) for line in lines]
    found = [float(row["time/step_seconds"]) for row in steps_of if "time/step_seconds" in row]
    return found[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="a model folder, or a run folder of the cold start")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in (half(), "int8", "trl")}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if arguments.model:
            save_float32(arguments.model, folder / "model")
        model = cold_start(folder)
        several = DTYPES if len(DTYPES) > 1 else []
        tried = {dtype: trl(model, folder / f"trl-{dtype}", dtype) for dtype in several}
        print("trl", tried, file=sys.stderr, flush=True)
        peer = min(tried, key=tried.__getitem__, default=DTYPES[0])
        for number in range(arguments.rounds):
            for name, found in seconds.items():
                run = folder / f"{name}-{number}"
                found.append(trl(model, run, peer) if name == "trl" else ours(model, run, name))
                print(name, found, file=sys.stderr, flush=True)
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    write_result(
        name_here("smollm2_step"),
        command="python bench/bench_smollm2_step.py",
        seeds=[0],
        raw=seconds | {"tried": tried},
        summary={name: round(value, 1) for name, value in medians.items()}
        | {f"{n}_ratio": round(medians["trl"] / medians[n], 2) for n in (half(), "int8")}
        | {"peer": peer, "tried": {dtype: round(s, 1) for dtype, s in tried.items()}},
    )


if __name__ == "__main__":
    main()
