"""The control of bench_smollm2: a cold start of traces alone, which needs no RL to think.

    python bench/bench_smollm2_control.py

As many steps as the recipe's cold start, seed 0, the same problems. Writes
docs/results/smollm2_control.json.
"""

from __future__ import annotations

import tempfile
import tomllib
from pathlib import Path

from bench_smollm2 import SAMPLES, evaluate, forethought
from forethought.cli.recipes import find_recipe
from forethought.toml import to_toml
from record import write_result


def main() -> None:
    forethought("model", "get", "smollm2-135m")
    tables = tomllib.loads(find_recipe("smollm2-arithmetic").read_text(encoding="utf-8"))
    cold_start = tables["sft"]
    cold_start["mixture"]["writers"] = {"trace": 1.0}
    with tempfile.TemporaryDirectory() as folder:
        run, recipe = Path(folder) / "run", Path(folder) / "control.toml"
        recipe.write_text(to_toml(cold_start | {"model": tables["model"], "run_dir": str(run)}))
        forethought("train", str(recipe))
        raw = {
            "greedy": evaluate(str(run / "model"), num_samples=1),
            "samples": evaluate(str(run / "model"), num_samples=SAMPLES),
        }
    write_result(
        "smollm2_control",
        command="python bench/bench_smollm2_control.py",
        seeds=[0],
        raw=raw,
        summary={kind: round(100 * found["accuracy"], 1) for kind, found in raw.items()},
    )


if __name__ == "__main__":
    main()
