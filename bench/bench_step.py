"""One GRPO step against TRL 1.16: seconds, peak memory, and what goes through the model.

    python bench/bench_step.py [--repeats 3] [--quick]

The workload is `step_workload.py`'s. Both sides run in turn, each repeat in a process of its own.
TRL makes two steps, of which the second counts; ours makes eight, once through the prompts, and
gives the mean of all but the first. TRL is tried in float32 and bfloat16, in micro-batches of 32
and of 8, and with transformers' continuous batching; its fastest setting is the peer and is
measured again in turn with ours. TRL's environment is .bench/trl (make bench-env), and the trial's
results are kept in .bench for the next time. On CUDA the model is a larger one, and our rollouts
are in bfloat16. Writes docs/results/step.json, step_bf16.json on a processor with that arithmetic,
step_amx.json on one with AMX, step_avx2.json on one that the environment keeps from more than AVX2
and step_cuda.json on CUDA; with --quick (ours in the default format and TRL's best setting of that
file, one repeat each) it writes nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import step_workload as work
from device import half, is_bf16, name_here
from record import RESULTS, write_result
from trl_side import TRL

HERE = Path(__file__).resolve().parent
ON_CUDA = torch.cuda.is_available()
ON_CPU_TRIED = [
    ("float32", "32", "static"),
    ("float32", "8", "static"),
    ("float32", "32", "paged"),
    ("bfloat16", "32", "static"),
]
ON_CUDA_TRIED = [
    ("bfloat16", "32", "static"),
    ("bfloat16", "8", "static"),
    ("bfloat16", "32", "paged"),
    ("autocast", "32", "static"),  # float32 weights, bfloat16 arithmetic: TRL's default there
]
SETTINGS = ON_CUDA_TRIED if ON_CUDA else ON_CPU_TRIED
FORMATS = (half(),) if ON_CUDA else (half(), "int8")  # of our rollouts
NAME = name_here("step")
LIMIT = 300.0  # seconds for two steps of TRL and its start, or for ours, before it is given up
RECIPE = """
stage = "rl"
run_dir = "{run}"
seed = 7
model = "{folder}/model"
task = "jsonl:{folder}/prompts.jsonl"
num_steps = {steps}
prompts_per_step = {prompts}
group_size = {group}
max_tokens = {max_tokens}
stop_at_boxed = false
estimator = "grpo"
eval_problems = 0
max_batch_tokens = {cells}
rollout_dtype = "{rollout_dtype}"
[optimizer]
learning_rate = 1e-6
[reward.parts]
"{here}/step_workload.py:rewards" = 1.0
"""


def run(command: list[str], limit: float) -> str | None:
    """What a command prints; None when it overran or failed."""
    try:
        done = subprocess.run(
            command,
            check=True,
            capture_output=True,
            timeout=limit,
            text=True,
        )
    except subprocess.TimeoutExpired:
        return None
    except subprocess.CalledProcessError as error:
        print(error.stderr[-3000:], file=sys.stderr)
        return None
    return done.stdout


def ours(folder: Path, rollout_dtype: str, steps: int = work.NUM_STEPS) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as temporary:
        folder_of_run = Path(temporary) / "run"
        recipe = Path(temporary) / "recipe.toml"
        recipe.write_text(
            RECIPE.format(
                run=folder_of_run,
                steps=steps,
                folder=folder,
                prompts=work.PROMPTS_PER_STEP,
                group=work.GROUP_SIZE,
                max_tokens=work.MAX_TOKENS,
                rollout_dtype=rollout_dtype,
                cells=16384 if ON_CUDA else 1024 if is_bf16() else 512,
                here=HERE,
            )
        )
        command = [sys.executable, str(HERE / "own_train.py"), str(recipe)]
        output = run(command, LIMIT)
        if output is None:
            sys.exit("error: our own step failed; run its recipe by hand")
        lines = (folder_of_run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return describe(rows) | json.loads(output.splitlines()[-1])


def describe(rows: list[dict[str, float]]) -> dict[str, float]:
    """A step on average, the first left out where there are more. Its prompts are prefilled once,
    in one padded batch."""
    counted = rows[1:] or rows
    first = rows[0] if len(rows) > 1 else {}

    def mean(name: str) -> float:
        return statistics.fmean(row[name] for row in counted)

    def total(name: str) -> float:
        return (rows[-1][f"total/{name}"] - first.get(f"total/{name}", 0.0)) / len(counted)

    sampled = total("sampled_tokens")
    decoded = sampled - work.PROMPTS_PER_STEP * work.GROUP_SIZE
    prefilled = work.PROMPTS_PER_STEP * 128  # at most
    return {
        "seconds": mean("time/step_seconds"),
        "sample_seconds": mean("time/sample_seconds"),
        "update_seconds": mean("time/update_seconds"),
        "sampled_tokens": sampled,
        "decoded_rows": decoded,
        "backbone_positions": prefilled + decoded + total("computed_tokens"),
        "head_positions": work.PROMPTS_PER_STEP + decoded + total("learned_tokens"),
        "sampler_gap": mean("policy/sampler_gap"),
    }


def trl(folder: Path, setting: tuple[str, str, str], steps: int = 2) -> dict[str, float] | None:
    command = [str(TRL), str(HERE / "peers" / "trl_step.py"), str(folder), *setting, str(steps)]
    output = run(command, LIMIT)
    if output is None:
        return None
    figures: dict[str, float] = json.loads(output.splitlines()[-1])
    return figures


def median(runs: list[dict[str, float]]) -> dict[str, float]:
    return {name: round(statistics.median(run[name] for run in runs), 4) for name in runs[0]}


def name_of(setting: tuple[str, str, str]) -> str:
    dtype, micro_batch, mode = setting
    return f"{dtype}_{micro_batch}_{mode}"


def compare(peer: dict[str, float], own: dict[str, float]) -> dict[str, float]:
    return {
        "seconds_ratio": round(peer["seconds"] / own["seconds"], 2),
        "memory_ratio": round(peer["peak_megabytes"] / own["peak_megabytes"], 2),
    }


def quick(folder: Path) -> dict[str, float]:
    """One step of TRL's best setting and ours, the first of both, without writing anything."""
    stored = json.loads((RESULTS / f"{NAME}.json").read_text(encoding="utf-8"))
    dtype, micro_batch, mode = stored["summary"]["trl_setting"].split("_")
    peer, own = trl(folder, (dtype, micro_batch, mode), 1), ours(folder, "auto", 1)
    if peer is None:
        sys.exit("error: TRL's step failed; is .bench/trl there? make bench-env")
    return compare(peer, own)


def try_settings(folder: Path) -> dict[str, dict[str, float] | None]:
    """TRL's step in every setting, once; kept in .bench, for it takes a quarter of an hour."""
    kept = HERE.parent / ".bench" / f"{NAME}_tried.json"
    if not kept.exists():
        kept.parent.mkdir(exist_ok=True)
        found = {name_of(setting): trl(folder, setting) for setting in SETTINGS}
        kept.write_text(json.dumps(found), encoding="utf-8")
    tried: dict[str, dict[str, float] | None] = json.loads(kept.read_text(encoding="utf-8"))
    print(json.dumps(tried), file=sys.stderr)
    return tried


def measure(folder: Path, repeats: int) -> None:
    found = try_settings(folder)
    finished = {name: run for name, run in found.items() if run is not None}
    best = min(finished, key=lambda name: finished[name]["seconds"])
    [setting] = [s for s in SETTINGS if name_of(s) == best]
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in ("trl", *FORMATS)}
    for _ in range(repeats):
        again = trl(folder, setting)
        assert again is not None, "TRL's best setting failed at a repeat"
        runs["trl"].append(again)
        for rollout_dtype in FORMATS:
            runs[rollout_dtype].append(ours(folder, rollout_dtype))
        print(json.dumps({name: sides[-1] for name, sides in runs.items()}), file=sys.stderr)
    medians = {name: median(sides) for name, sides in runs.items()}
    tried = {name: run and round(run["seconds"], 1) for name, run in found.items()}
    ratios = {f"{name}_ratios": compare(medians["trl"], medians[name]) for name in FORMATS}
    summary = medians | {"trl_setting": best, "tried": tried} | ratios
    write_result(
        NAME,
        command="python bench/bench_step.py",
        seeds=list(range(repeats)),
        raw={"tried": found, "runs": runs},
        summary=summary,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        work.build(folder)
        if arguments.quick:
            print(json.dumps(quick(folder)))
        else:
            measure(folder, arguments.repeats)


if __name__ == "__main__":
    main()
