"""Which examples to sample and which rollouts to keep: every way for the same seconds of training.

    python bench/bench_selection.py [--seeds 0 1 2] [--seconds 50] [--arms default greso ...]
                                     [--tasks sum equation] [--name selection]

All arms start from the bundled model and train one recipe (rloo without the dead groups, 32
prompts x 8 rollouts) on the same few examples, so that each comes back several times;
an arm changes what its name says. A run ends with the first step that begins after so many seconds
of steps. Arms take turns, in an order that moves by one with every seed. At the end the policy
answers the same held-out problems, some samples each at temperature 1.

Intervals are over held-out problems (mean over seeds first), not over seeds: the differences of
single seeds stand beside them. Writes docs/results/NAME.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from forethought.config import parse_recipe
from forethought.evaluation.evaluate import evaluate
from forethought.evaluation.metrics import mean_interval, paired_difference
from forethought.schema import RlRecipe
from forethought.training.learner import Learner, build_learner, check_rl
from forethought.training.rl import start_or_resume, train_step
from forethought.training.stages import start_run
from record import write_result

SIZE = 256  # training examples, of all tasks together
PROBLEMS, SAMPLES = 400, 2
ENDLESS = 100_000  # steps; the clock ends a run

ARMS: dict[str, dict[str, Any]] = {
    "default": {},
    "threshold": {"min_advantage": 0.3},
    "pods": {"group_size": 16, "select": {"keep_per_group": 8}},
    "greso": {"select": {"examples": "greso"}},
    "difficulty": {"select": {"examples": "difficulty"}},
    "replay": {"select": {"replay_share": 0.5}},
    "dynamic": {"select": {"max_batches": 4}},
    "clip_2": {"num_iterations": 2},
    "clip_4": {"num_iterations": 4},
    "reuse_2": {"estimator": "cispo", "scale_rewards": "none", "num_iterations": 2},
    "reuse_4": {"estimator": "cispo", "scale_rewards": "none", "num_iterations": 4},
}


def recipe_of(arm: str, seed: int, tasks: Sequence[str], run_dir: Path) -> RlRecipe:
    each = SIZE // len(tasks)
    tables = {
        "stage": "rl",
        "run_dir": str(run_dir),
        "seed": seed,
        "model": "bundled:seedling",
        "task": "+".join(f"{task}{',' if ':' in task else ':'}size={each}" for task in tasks),
        "eval_task": "+".join(tasks),
        "num_steps": ENDLESS,
        "prompts_per_step": 32,
        "group_size": 8,
        "max_tokens": 80,
        "stop_at_boxed": False,
        "eval_problems": 0,
        "transcripts_per_step": 0,
        "optimizer": {"learning_rate": 4e-4, "warmup_steps": 5},
        "reward": {"parts": {"accuracy": 1.0, "format": 0.1}},
    }
    recipe = parse_recipe(tables | ARMS[arm])
    assert isinstance(recipe, RlRecipe), "the recipe above is one of RL"
    return recipe


def train(recipe: RlRecipe, seconds: float) -> dict[str, Any]:
    """What a run of so many seconds spent and learned; 0 seconds measure the start."""
    rows: list[dict[str, float]] = []
    spent = 0.0
    with start_run(recipe, ["bench_selection"]) as run:
        learner = build_learner(recipe, run)
        start_or_resume(learner, run, 0)
        while spent < seconds:
            began = time.perf_counter()
            rows.append(train_step(learner, run, len(rows) + 1))
            spent += time.perf_counter() - began
        scores = answer(learner)
    found = {
        "updates": len(rows),
        "seconds": spent,
        "sampled_tokens": total(rows, "total/sampled_tokens"),
        "learned_tokens": total(rows, "total/learned_tokens"),
        "kept_frac": average(rows, "rollout/kept_frac"),
        "signal_frac": average(rows, "rollout/signal_frac"),
        "sample_seconds": total(rows, "time/sample_seconds"),
        "update_seconds": total(rows, "time/update_seconds"),
        "accuracy": 100 * fmean(scores),
    }
    print(recipe.run_dir, json.dumps(found), file=sys.stderr)
    return found | {"scores": scores}


def total(rows: Sequence[dict[str, float]], name: str) -> float:
    return sum(row.get(name, 0.0) for row in rows)


def average(rows: Sequence[dict[str, float]], name: str) -> float | None:
    """Over the steps that have it: those that sampled."""
    values = [row[name] for row in rows if name in row]
    return fmean(values) if values else None


def answer(learner: Learner) -> list[float]:
    """The mean score of every held-out problem."""
    _, held_out, _ = check_rl(learner.recipe)
    found = evaluate(
        learner.engine,
        held_out,
        num_samples=SAMPLES,
        max_tokens=learner.recipe.max_tokens,
        limit=PROBLEMS,
        stop_at_boxed=learner.recipe.stop_at_boxed,
    )
    return [sum(score or 0.0 for score in result.scores) / SAMPLES for result in found.results]


def over_seeds(runs: Sequence[dict[str, Any]]) -> list[float]:
    """The mean score of every problem, over the seeds too."""
    return [fmean(scores) for scores in zip(*(found["scores"] for found in runs), strict=True)]


def summarize(raw: dict[str, list[dict[str, Any]]], start: float) -> dict[str, Any]:
    first = next(iter(raw))
    base = over_seeds(raw[first])
    summary: dict[str, Any] = {"start": round(start, 1), "against": first}
    for arm, runs in raw.items():
        scores = over_seeds(runs)
        found, gap = mean_interval(scores), paired_difference(base, scores)
        by_seed = [
            round(own["accuracy"] - other["accuracy"], 1)
            for own, other in zip(runs, raw[first], strict=True)
        ]
        summary[arm] = {
            "accuracy": round(100 * found.mean, 1),
            "accuracy_low": round(100 * found.low, 1),
            "accuracy_high": round(100 * found.high, 1),
            "difference": round(100 * gap.mean, 1),
            "difference_low": round(100 * gap.low, 1),
            "difference_high": round(100 * gap.high, 1),
            "difference_of_seeds": by_seed,
            "smallest_difference": min(by_seed),
            "largest_difference": max(by_seed),
            "updates": round(fmean(run["updates"] for run in runs), 1),
            "sampled_thousands": round(fmean(run["sampled_tokens"] for run in runs) / 1000),
            "learned_thousands": round(fmean(run["learned_tokens"] for run in runs) / 1000),
            "kept_percent": round(100 * fmean(run["kept_frac"] for run in runs), 1),
            "signal_percent": round(100 * fmean(run["signal_frac"] for run in runs), 1),
        }
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=50.0)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--tasks", nargs="+", default=["sum", "equation"])
    parser.add_argument("--name", default="selection")
    arguments = parser.parse_args()
    arms = arguments.arms
    raw: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
    with tempfile.TemporaryDirectory() as temporary:

        def run(arm: str, seed: int, seconds: float, name: str) -> dict[str, Any]:
            recipe = recipe_of(arm, seed, arguments.tasks, Path(temporary) / name)
            return train(recipe, seconds)

        run(arms[0], 0, 1.0, "warm")  # what is compiled once is compiled
        start = run(arms[0], 0, 0.0, "start")
        for turn, seed in enumerate(arguments.seeds):
            for place in range(len(arms)):
                arm = arms[(place + turn) % len(arms)]
                raw[arm].append(run(arm, seed, arguments.seconds, f"{arm}-{seed}"))
    summary = summarize(raw, start["accuracy"])
    write_result(
        arguments.name,
        command=" ".join(["python", f"bench/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        seeds=arguments.seeds,
        raw={
            arm: [{key: v for key, v in run.items() if key != "scores"} for run in runs]
            for arm, runs in raw.items()
        },
        summary=summary,
    )
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
