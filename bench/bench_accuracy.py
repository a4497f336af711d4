"""Seconds of training until the bundled model answers as well as TRL 1.16 makes it.

    python bench/bench_accuracy.py [--seeds 0 1 2] [--batches 30] [--rates SETTING ...]
        [--further SETTING ...] [--set KEY=VALUE ...]

Both sides start from the bundled model and train on one family with the same examples and rewards,
with a learning rate that falls linearly. A batch is 256 rollouts, and a SETTING of TRL is
RATE[:UPDATES[:PROMPTSxGROUP[:DTYPE]]], where a smaller step, as 32x4, is a share of a batch.
Two peers are the best on the first seed by the accuracy of the last copies: one of --rates, which
differ in the rate alone, and one of all. Ours, chosen on other seeds, is the quickstart's 32
prompts x 4, with rloo and two updates; --set changes it. After every third batch the weights are
kept, off the clock; afterwards our engine answers the same held-out problems with each copy, two
samples a problem. A target is reached at the first copy from which on accuracy stays above a share
of TRL's final gain. Writes docs/results/accuracy.json, accuracy_bf16.json on a processor with that
arithmetic and accuracy_cuda.json on CUDA.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from device import name_here
from forethought.config import parse_recipe
from forethought.evaluation.evaluate import evaluate
from forethought.models.load import load_model
from forethought.models.pages import keep_pages
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

TASK, EVERY, MAX_TOKENS, BATCH = "sum", 3, 80, 256
RATES = ["1e-4", "4e-4", "1e-3"]  # in float32; bfloat16 pays on few processors
FURTHER = ["4e-4:4:32x8", "4e-4:4:64x4", "4e-4:2:32x4"]
NAME = name_here("accuracy")
PROBLEMS, SAMPLES = 300, 2
SHARES = [0.5, 0.75, 0.9]


@dataclass(frozen=True)
class Setting:
    """One of TRL's; see above."""

    rate: str
    updates: str
    prompts: int
    group: int
    dtype: str

    @staticmethod
    def read(text: str) -> Setting:
        given = text.split(":")
        rate, updates, shape, dtype = given + ["", "1", "32x8", "float32"][len(given) :]
        prompts, group = shape.split("x")
        return Setting(rate, updates, int(prompts), int(group), dtype)

    @property
    def name(self) -> str:
        return f"{self.rate}_{self.updates}_{self.prompts}x{self.group}_{self.dtype}"

    def train(self, model: Path, seed: int, batches: int, folder: Path) -> dict[int, float]:
        """Seconds of training until each copy, by its batch."""
        steps = steps_a_batch(self.prompts, self.group)
        until = train_trl(
            model, TASK, self.rate, seed, batches * steps, EVERY * steps, folder,
            "--updates", self.updates, "--prompts", self.prompts, "--group", self.group,
            "--dtype", self.dtype,
        )  # fmt: skip
        return rename_copies(folder, until, steps)


def steps_a_batch(prompts: int, group: int) -> int:
    assert BATCH % (prompts * group) == 0, "a step is a share of a batch"
    return BATCH // (prompts * group)


def rename_copies(folder: Path, until: dict[int, float], steps: int) -> dict[int, float]:
    """The copies kept after so many steps of a batch each, by batches."""
    for step in until:
        (folder / f"step-{step}").rename(folder / f"batch-{step // steps}")
    return {step // steps: seconds for step, seconds in until.items()}


def train_own(seed: int, batches: int, folder: Path, changes: list[str]) -> dict[int, float]:
    recipe = parse_recipe(
        {
            "stage": "rl",
            "run_dir": str(folder / "run"),
            "seed": seed,
            "model": "bundled:seedling",
            "task": TASK,
            "num_steps": BATCH,  # until the recipe tells how many make a batch
            "prompts_per_step": 32,
            "group_size": 4,
            "max_tokens": MAX_TOKENS,
            "stop_at_boxed": False,
            "eval_problems": 0,
            "minibatches": 2,
            "optimizer": {"learning_rate": 4e-4, "warmup_steps": 5, "schedule": "linear"},
            "reward": {"parts": {"accuracy": 1.0, "format": 0.1}},
        },
        changes,
    )
    assert isinstance(recipe, RlRecipe), "the recipe above is one of RL"
    steps = steps_a_batch(recipe.prompts_per_step, recipe.group_size)
    updates = updates_per_batch(recipe) * steps  # of a batch
    recipe = recipe.model_copy(update={"num_steps": batches * updates})
    seconds, spent = {}, 0.0
    with start_run(recipe, ["bench_accuracy"]) as run:
        learner = build_learner(recipe, run)
        keep_pages(learner.policy)  # as a run does
        start_or_resume(learner, run, 0)
        for batch in range(1, batches + 1):
            began = time.perf_counter()
            for update in range(updates):
                train_step(learner, run, (batch - 1) * updates + update + 1)
            spent += time.perf_counter() - began
            if batch % EVERY == 0:
                save_model(learner.policy, learner.tokenizer, folder / f"batch-{batch}")
                seconds[batch] = spent
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
        {"batch": n, "seconds": spent, "accuracy": accuracy_of(str(folder / f"batch-{n}"), base)}
        for n, spent in seconds.items()
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
    batches = [round(side[-1]["seconds"] / side[-1]["batch"], 3) for side in (peer, own)]
    result |= {"trl_batch_seconds": batches[0], "own_batch_seconds": batches[1]}
    for share in SHARES:
        target = start + share * gain
        theirs, ours = reached(peer, target), reached(own, target)
        result[f"at_{100 * share:.0f}"] = {
            "target": round(target, 1),
            "trl_seconds": theirs and round(theirs, 1),
            "own_seconds": ours and round(ours, 1),
            "ratio": round(theirs / ours, 2) if theirs and ours else None,
        }
    return result


def medians(seeds: dict[str, Any]) -> dict[str, float]:
    keys = [f"at_{100 * share:.0f}" for share in SHARES]
    return {
        f"median_ratio_{key}": statistics.median(
            seed[key]["ratio"] or 0.0 for seed in seeds.values()
        )
        for key in keys
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--batches", type=int, default=30)
    parser.add_argument("--rates", nargs="+", default=RATES, metavar="SETTING")
    parser.add_argument("--further", nargs="*", default=FURTHER, metavar="SETTING")
    parser.add_argument("--set", action="append", default=[], dest="changes", metavar="KEY=VALUE")
    arguments = parser.parse_args()
    base, batches, first = "bundled:seedling", arguments.batches, arguments.seeds[0]
    curves: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        model = Path(temporary) / "seedling"
        loaded = load_model(base)
        save_model(loaded.model, loaded.tokenizer, model)
        start = accuracy_of(str(model), base)

        def peer(setting: Setting, seed: int) -> list[dict[str, float]]:
            name = f"trl_{setting.name}_{seed}"
            if name not in curves:
                folder = Path(temporary) / name
                curves[name] = curve(folder, setting.train(model, seed, batches, folder), base)
                print(name, curves[name][-1], file=sys.stderr, flush=True)
            return curves[name]

        def own(seed: int) -> list[dict[str, float]]:
            name = f"own_{seed}"
            if name not in curves:
                folder = Path(temporary) / name
                until = train_own(seed, batches, folder, arguments.changes)
                curves[name] = curve(folder, until, base)
                print(name, curves[name][-1], file=sys.stderr, flush=True)
            return curves[name]

        rates, further = (list(map(Setting.read, a)) for a in (arguments.rates, arguments.further))
        tried = {setting: final(peer(setting, first)) for setting in [*rates, *further]}
        best = {
            "by_rate": max(rates, key=tried.__getitem__),
            "by_all": max(tried, key=tried.__getitem__),
        }
        found: dict[str, dict[str, Any]] = {kind: {} for kind in best}
        for seed in arguments.seeds:  # in turn, so that a busy while falls on all
            for kind, setting in best.items():
                found[kind][f"seed_{seed}"] = compare(start, peer(setting, seed), own(seed))
    summary = {
        "start": round(start, 1),
        "tried": {setting.name: round(value, 1) for setting, value in tried.items()},
    } | {
        kind: {"setting": setting.name, **found[kind], **medians(found[kind])}
        for kind, setting in best.items()
    }
    print(json.dumps(summary, indent=1), file=sys.stderr)
    write_result(
        NAME,
        command=" ".join(["python", f"bench/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        seeds=arguments.seeds,
        raw=curves,
        summary=summary,
    )


if __name__ == "__main__":
    main()
