"""Steps of RL with the memory that a step frees kept for the next, and given back to the kernel.

    python bench/bench_pages.py [--steps 16] [--repeats 4]

The bundled model in the recipe of bench_dash.py's row f; every run in a process of its own, in
turn. Seconds, page faults of a step and peak memory are medians of the runs; the first two steps
are not counted. Writes docs/results/pages.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench_dash import WAYS, recipe_of
from forethought.models.pages import keep_pages
from forethought.training.learner import build_learner
from forethought.training.rl import start_or_resume, train_step
from forethought.training.stages import start_run
from record import write_result

WARM = 2


def steps(number: int, is_kept: bool) -> dict[str, float]:
    """What the steps of one run took, in this process."""
    [own] = [way for way in WAYS if way.is_own]
    sampling, faults = 0.0, 0
    with tempfile.TemporaryDirectory() as folder:
        recipe = recipe_of(own, 0, number, Path(folder))
        with start_run(recipe, ["bench_pages"]) as run:
            learner = build_learner(recipe, run)
            assert not is_kept or keep_pages(learner.policy), "this machine's memory allows it"
            start_or_resume(learner, run, 0)
            for step in range(1, number + 1):
                if step == WARM + 1:
                    began, faults, sampling = time.perf_counter(), _faults(), 0.0
                sampling += train_step(learner, run, step)["time/sample_seconds"]
            seconds = time.perf_counter() - began
    return {
        "seconds": seconds,
        "sample_seconds": sampling,
        "faults": (_faults() - faults) / (number - WARM),
        "peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--one", choices=["kept", "given_back"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(steps(arguments.steps, arguments.one == "kept")))
        return
    raw: dict[str, list[dict[str, float]]] = {"given_back": [], "kept": []}
    for _ in range(arguments.repeats):
        for name, found in raw.items():
            command = [sys.executable, __file__, "--one", name, "--steps", str(arguments.steps)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
            print(name, found[-1], file=sys.stderr, flush=True)
    summary = {
        name: {key: round(statistics.median(run[key] for run in found), 1) for key in found[0]}
        for name, found in raw.items()
    }
    pairs = zip(raw["kept"], raw["given_back"], strict=True)
    ratios = [kept["seconds"] / given_back["seconds"] for kept, given_back in pairs]
    write_result(
        "pages",
        command="python bench/bench_pages.py",
        seeds=[0],
        raw=raw,
        summary=summary | {"saved_percent": round(100 * (1 - statistics.median(ratios)), 1)},
    )


if __name__ == "__main__":
    main()
