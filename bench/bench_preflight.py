"""What a preflight costs, and how well it foresees a step: a few steps of two recipes.

    python bench/bench_preflight.py

The quickstart's recipe and, where smollm2-135m was fetched, its pipeline's RL stage from the
pretrained model. Writes docs/results/preflight.json: seconds of the preflight, what it foresees of
a step and its memory, and the median step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from forethought.models.registry import is_fetched
from record import write_result

RECIPES = {"seedling": ("quickstart", []), "smollm2": ("smollm2-arithmetic", ["smollm2-135m"])}


def measure(name: str, steps: int, folder: Path) -> dict[str, float]:
    """Seconds and shares of one run of `steps` steps."""
    run = folder / name
    command = [sys.executable, "-m", "forethought", "train", str(recipe_of(name, folder)), "--json"]
    command += ["--set", f"run_dir={run}", "--set", f"num_steps={steps}"]
    command += ["--set", "eval_problems=0", "--set", "optimizer.warmup_steps=0"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    flight = json.loads((run / "preflight.json").read_text())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    step = statistics.median(row["time/step_seconds"] for row in rows if row["step"])
    return {
        "preflight_seconds": round(flight["seconds"]["total"], 2),
        "step_seconds": round(step, 2),
        "foreseen_step_seconds": round(flight["seconds"]["step"], 2),
        "share_of_a_step_percent": round(100 * flight["seconds"]["total"] / step),
        "update_mib": round(flight["memory"]["update_bytes"] / 2**20),
    }


def recipe_of(name: str, folder: Path) -> Path:
    """The recipe as a file: of a pipeline, its RL stage from the pretrained model."""
    from forethought.cli.recipes import find_recipe
    from forethought.config import dump_recipe, load_recipe

    recipe: Any = load_recipe(find_recipe(RECIPES[name][0]), [])
    if recipe.stage == "pipeline":
        recipe = recipe.stages["rl"].model_copy(update={"model": RECIPES[name][1][0]})
    path = folder / f"{name}.toml"
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--only", choices=RECIPES)
    chosen = parser.parse_args()
    names = [chosen.only] if chosen.only else list(RECIPES)
    if not is_fetched("smollm2-135m") and "smollm2" in names:
        names.remove("smollm2")
    with tempfile.TemporaryDirectory() as folder:
        found = {name: measure(name, chosen.steps, Path(folder)) for name in names}
    print(found)
    if chosen.only is None:
        command = "python bench/bench_preflight.py"
        write_result("preflight", command=command, seeds=[0], raw=found, summary=found)


if __name__ == "__main__":
    main()
