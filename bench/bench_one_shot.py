r"""What one example teaches the bundled model, beside the controls that it has to beat.

    python bench/bench_one_shot.py [--seeds 0 1 2] [--jobs 2] [--steps 60]

Every arm starts from the bundled model and makes the same number of updates of 16 prompts x 8
rollouts by the recipes named below; they differ in the examples and in what is paid:

    format      the whole set, paid for the format alone        recipes/one-shot-format.toml
    think       the whole set, paid for thinking alone          bench/think_reward.py
    random      the whole set, paid by a coin                   recipes/one-shot-random.toml
    wrong       one example with a wrong reference              recipes/one-shot-wrong.toml
    best        the example of highest historical variance      recipes/one-shot.toml
    median      the one in the middle of the ranking
    worst       the one at its end
    sixteen     the first 16 of the ranking                     recipes/one-shot-16.toml
    full        the whole set                                   recipes/one-shot-full.toml
    long        as best, for three times as many updates

The ranking is recipes/data/one-shot.jsonl. Accuracy is that of the last step, on test problems of
the family that was trained on and of two that were not; nothing is chosen by it. Copies of the
weights on the way make the curves of some arms. Results are kept in .bench/one-shot, so that an
interrupted bench goes on. Writes docs/results/one-shot.json.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from safetensors.torch import load_file

from arms import ROOT, Bench, Exam, exam_of_folder, main, over_seeds, pooled, take_exam
from forethought.config import dump_recipe, load_recipe
from forethought.durable import read_lines
from forethought.models.load import load_model
from forethought.schema import RlRecipe
from forethought.training.stages import run_stage, start_run

RANKING = ROOT / "recipes" / "data" / "one-shot.jsonl"
TRAINED, OTHERS = "sum", ("story", "equation")
EXAM = Exam(families=(TRAINED, *OTHERS), problems=200, samples=2)
BASE = "bundled:seedling"
ARMS = ("format", "think", "random", "wrong", "best", "median", "worst", "sixteen", "full", "long")
CURVES = ("wrong", "full", "long")  # arms whose weights are measured on the way
CURVE_EXAM = Exam(families=EXAM.families, problems=100, samples=1)
EVERY = 20  # steps between two points of a curve
LONGER = 3

RECIPES = {
    "format": "one-shot-format",
    "think": "one-shot-format",
    "random": "one-shot-random",
    "wrong": "one-shot-wrong",
    "sixteen": "one-shot-16",
    "full": "one-shot-full",
}


def recipe_of(arm: str, seed: int, steps: int, folder: Path) -> RlRecipe:
    path = ROOT / "recipes" / f"{RECIPES.get(arm, 'one-shot')}.toml"
    steps *= LONGER if arm == "long" else 1
    changes = [f"seed={seed}", f"num_steps={steps}", f"run_dir={json.dumps(str(folder))}"]
    changes += [f"checkpoint_every={EVERY}", f"keep_every={EVERY}", "eval_problems=0"]
    if arm == "think":
        own = json.dumps(f"{ROOT / 'bench' / 'think_reward.py'}:thinks")
        changes.append(f"reward.parts={{accuracy=0.0,{own}=1.0}}")
    if arm in ("median", "worst"):
        changes.append(f"task={json.dumps(f'jsonl:{one_example(arm)}')}")
    recipe = load_recipe(path, changes)
    assert isinstance(recipe, RlRecipe), "the recipes of the arms are of RL"
    return recipe


def one_example(arm: str) -> Path:
    """A file of the one example of the ranking that the arm trains on."""
    path = ROOT / ".bench" / "one-shot" / f"{arm}.jsonl"
    path.write_text(ranking()[place_of(arm)] + "\n", encoding="utf-8")
    return path


def place_of(arm: str) -> int:
    return {"best": 0, "median": len(ranking()) // 2, "worst": len(ranking()) - 1}[arm]


def ranking() -> list[str]:
    return RANKING.read_text(encoding="utf-8").splitlines()


def settings_of(arm: str, seed: int, steps: int) -> list[Any]:
    recipe = recipe_of(arm, seed, steps, Path("."))
    data = RANKING.read_text(encoding="utf-8")
    return [dump_recipe(recipe), data, repr(CURVE_EXAM), EVERY, arm in CURVES]


def train(arm: str, seed: int, steps: int, folder: Path) -> dict[str, Any]:
    recipe = recipe_of(arm, seed, steps, folder)
    with start_run(recipe, ["bench_one_shot"]) as run:
        totals = run_stage(recipe, run)
        metrics = [row for row in run.metrics() if "reward/accuracy" in row]
    examples = read_lines(folder / "examples.jsonl")
    return {
        "exam": exam_of_folder(folder / "model", EXAM),
        "curve": curve(folder) if arm in CURVES else [],
        "train_accuracy": [round(fmean(row["accuracies"]), 4) for row in examples],
        "think": [round(row["rollout/think_frac"], 4) for row in metrics],
        "entropy": [round(row["policy/entropy"], 4) for row in metrics],
        "sampled_tokens": totals["total/sampled_tokens"],
    }


def curve(folder: Path) -> list[dict[str, Any]]:
    """The small exam at every checkpoint of the run."""
    loaded = load_model(BASE, dtype="float32")
    model: Any = loaded.model
    points = []
    for checkpoint in sorted((folder / "checkpoints").glob("step_*")):
        weights = load_file(checkpoint / "weights.safetensors")
        for name, parameter in model.named_parameters():
            parameter.data.copy_(weights[name])
        exam = take_exam(model, loaded.tokenizer, CURVE_EXAM)
        points.append({"step": int(checkpoint.name[5:])} | means_of(exam))
    return points


def means_of(exam: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Percent right in the family that was trained on, and in the others together."""
    others = pooled(exam, OTHERS)
    return {
        f"{name}_{kind}": round(100 * fmean(part[kind]), 1)
        for name, part in (("trained", exam[TRAINED]), ("others", others))
        for kind in ("greedy", "sampled")
    }


def summarize(cells: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """By arm: the exam over seeds by family, the others pooled, and the curves of their mean."""
    summary: dict[str, Any] = {}
    for arm, runs in cells.items():
        exams = [run["exam"] for run in runs]
        found: dict[str, Any] = {
            family: over_seeds([exam[family] for exam in exams]) for family in EXAM.families
        }
        found["others"] = over_seeds([pooled(exam, OTHERS) for exam in exams])
        if arm != "base":
            last = [fmean(run["train_accuracy"][-5:]) for run in runs]
            found["train_accuracy"] = round(100 * fmean(last), 1)
            found["curve"] = mean_curve([run["curve"] for run in runs])
        summary[arm] = found
    return summary


def mean_curve(curves: Sequence[Sequence[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """By step_N: the means over seeds."""
    return {
        f"step_{points[0]['step']}": {
            name: round(fmean(point[name] for point in points), 1)
            for name in points[0]
            if name != "step"
        }
        for points in zip(*curves, strict=True)
    }


def chosen() -> dict[str, Any]:
    """The examples of the arms that train on one, and where they stand in the ranking."""
    rows = {arm: json.loads(ranking()[place_of(arm)]) for arm in ("best", "median", "worst")}
    for arm, row in rows.items():
        row["place"] = 1 + place_of(arm)
    return rows


BENCH = Bench(
    name="one-shot",
    arms=ARMS,
    base=BASE,
    exam=EXAM,
    settings_of=settings_of,
    train=train,
    summarize=summarize,
    facts=lambda: {"examples": chosen()},
)

if __name__ == "__main__":
    main(BENCH, __doc__ or "", steps=60)
