"""Seconds of training until the bundled model answers as well as TRL 1.16 makes it.

    python bench/bench_accuracy.py [--seeds 0 1 2] [--steps 30] [--peers RATE:UPDATES ...]
        [--set KEY=VALUE ...]

Both sides start from the bundled model and train on one family with the same examples and rewards,
32 prompts x 8 rollouts a batch, with a learning rate that falls linearly. TRL's setting is the best
of PEERS on the first seed, by the accuracy of its last copies. Ours is rloo with that
fall and four updates a batch, chosen on other seeds; --set changes it. After every few batches the
weights are kept, off the clock; afterwards our engine answers the same held-out problems with each
copy, two samples a problem. A target is reached at the first copy from which on accuracy stays
above a share of TRL's final gain. Writes docs/results/accuracy.json, on CUDA accuracy_cuda.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from forethought.config import parse_recipe
from forethought.evaluation.evaluate import evaluate
from forethought.models.load import load_model
from forethought.models.save import save_model
from forethought.sampling.local import LocalEngine
from forethought.schema import RlRecipe
from forethought.tasks.base import load_task
from forethought.training.held import updates_per_batch
from forethought.training.learner import build_learner
from forethought.training.rl import start_or_resume, train_step
from forethought.training.stages import start_run
from record import write_result
from trl_side import train_trl

TASK, EVERY, MAX_TOKENS = "sum", 3, 80
PEERS = ["1e-4:1", "4e-4:1", "1e-3:1", "4e-4:4"]  # learning rate, updates a batch
NAME = "accuracy_cuda" if torch.cuda.is_available() else "accuracy"
PROBLEMS, SAMPLES = 300, 2
SHARES = [0.5, 0.75, 0.9]


def train_own(seed: int, steps: int, folder: Path, changes: list[str]) -> dict[int, float]:
    recipe = parse_recipe(
        {
            "stage": "rl",
            "run_dir": str(folder / "run"),
            "seed": seed,
            "model": "bundled:seedling",
            "task": TASK,
            "num_steps": steps,
            "prompts_per_step": 32,
            "group_size": 8,
            "max_tokens": MAX_TOKENS,
            "stop_at_boxed": False,
            "eval_problems": 0,
            "minibatches": 4,
            "optimizer": {"learning_rate": 4e-4, "warmup_steps": 5, "schedule": "linear"},
            "reward": {"parts": {"accuracy": 1.0, "format": 0.1}},
        },
        changes,
    )
    assert isinstance(recipe, RlRecipe), "the recipe above is one of RL"
    updates = updates_per_batch(recipe)
    recipe = recipe.model_copy(update={"num_steps": steps * updates})
    seconds, spent = {}, 0.0
    with start_run(recipe, ["bench_accuracy"]) as run:
        learner = build_learner(recipe, run)
        start_or_resume(learner, run, 0)
        for step in range(1, steps + 1):
            began = time.perf_counter()
            for update in range(updates):
                train_step(learner, run, (step - 1) * updates + update + 1)
            spent += time.perf_counter() - began
            if step % EVERY == 0:
                save_model(learner.policy, learner.tokenizer, folder / f"step-{step}")
                seconds[step] = spent
    return seconds


def accuracy_of(model: str, base: str) -> float:
    """Percent of samples right on the held-out problems."""
    load_model(base).tokenizer.save_pretrained(model)  # TRL's copies have none
    loaded = load_model(model)
    engine = LocalEngine(loaded.model, loaded.tokenizer)
    found = evaluate(
        engine,
        load_task(TASK, split="test"),
        num_samples=SAMPLES,
        max_tokens=MAX_TOKENS,
        limit=PROBLEMS,
        stop_at_boxed=False,
    )
    scores = [score or 0.0 for result in found.results for score in result.scores]
    return 100 * sum(scores) / len(scores)


def curve(folder: Path, seconds: dict[int, float], base: str) -> list[dict[str, float]]:
    return [
        {"step": s, "seconds": spent, "accuracy": accuracy_of(str(folder / f"step-{s}"), base)}
        for s, spent in seconds.items()
    ]


def reached(points: list[dict[str, float]], target: float) -> float | None:
    """Seconds of the first point from which on accuracy stays at or above the target."""
    found = None
    for point in reversed(points):
        if point["accuracy"] < target:
            break
        found = point["seconds"]
    return found


def final(points: list[dict[str, float]]) -> float:
    """The accuracy of the last three points."""
    return statistics.mean(point["accuracy"] for point in points[-3:])


def compare(start: float, peer: list[dict[str, float]], own: list[dict[str, float]]) -> Any:
    gain = final(peer) - start
    result: dict[str, Any] = {"trl_final": round(final(peer), 1), "own_final": round(final(own), 1)}
    batches = [round(side[-1]["seconds"] / side[-1]["step"], 3) for side in (peer, own)]
    result |= {"trl_batch_seconds": batches[0], "own_batch_seconds": batches[1]}
    for share in SHARES:
        target = start + share * gain
        theirs, ours = reached(peer, target), reached(own, target)
        result[f"at_{share:.0%}".rstrip("%")] = {
            "target": round(target, 1),
            "trl_seconds": theirs and round(theirs, 1),
            "own_seconds": ours and round(ours, 1),
            "ratio": round(theirs / ours, 2) if theirs and ours else None,
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--peers", nargs="+", default=PEERS, metavar="RATE:UPDATES")
    parser.add_argument("--set", action="append", default=[], dest="changes", metavar="KEY=VALUE")
    arguments = parser.parse_args()
    base, steps, first = "bundled:seedling", arguments.steps, arguments.seeds[0]
    curves: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        model = Path(temporary) / "seedling"
        loaded = load_model(base)
        save_model(loaded.model, loaded.tokenizer, model)
        start = accuracy_of(str(model), base)

        def peer(setting: str, seed: int) -> list[dict[str, float]]:
            rate, updates = setting.split(":")
            name = f"trl_{rate}_{updates}_{seed}"
            if name not in curves:
                folder = Path(temporary) / name
                until = train_trl(
                    model, TASK, rate, seed, steps, EVERY, folder, "--updates", updates
                )
                curves[name] = curve(folder, until, base)
                print(name, curves[name][-1], file=sys.stderr)
            return curves[name]

        tried = {setting: final(peer(setting, first)) for setting in arguments.peers}
        best = max(tried, key=tried.__getitem__)
        seeds = {}
        for seed in arguments.seeds:
            theirs, folder = peer(best, seed), Path(temporary) / f"own-{seed}"
            own = curve(folder, train_own(seed, steps, folder, arguments.changes), base)
            curves[f"own_{seed}"] = own
            seeds[f"seed_{seed}"] = compare(start, theirs, own)
            print(json.dumps(seeds[f"seed_{seed}"]), file=sys.stderr)
    rate, updates = best.split(":")
    ratios = {
        f"median_ratio_at_{share:.0%}".rstrip("%"): statistics.median(
            found[f"at_{share:.0%}".rstrip("%")]["ratio"] or 0.0 for found in seeds.values()
        )
        for share in SHARES
    }
    write_result(
        NAME,
        command=" ".join(["python", f"bench/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        seeds=arguments.seeds,
        raw=curves,
        summary={"start": round(start, 1), "trl_rate": rate, "trl_updates": int(updates)}
        | {"tried": {name.replace(":", "_"): round(value, 1) for name, value in tried.items()}}
        | seeds
        | ratios,
    )


if __name__ == "__main__":
    main()
