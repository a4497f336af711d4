"""What the bundled base model can and cannot do, on held-out problems of every family.

    python bench/bench_seedling.py

Writes docs/results/seedling.json.
"""

from __future__ import annotations

import json

from forethought.evaluation.before_after import measure
from forethought.models.load import load_model
from forethought.sampling.local import LocalEngine
from forethought.tasks.base import load_task
from record import write_result

PROBLEMS = 300
TASKS = {
    "sum": "sum",
    "story": "story",
    "equation": "equation",
    "rule": "rule",
    "countdown": "countdown",
    "easy_sum": "sum:difficulty=2",
    "hard_sum": "sum:difficulty=6",
    "distracted_story": "story:distract=1",
}


def main() -> None:
    loaded = load_model("bundled:seedling")
    engine = LocalEngine(loaded.model, loaded.tokenizer)
    raw = {}
    for name, spec in TASKS.items():
        found = measure(
            engine,
            load_task(spec),
            num_problems=PROBLEMS,
            max_tokens=100,
            stop_at_boxed=False,
        )
        raw[name] = {
            "task": spec,
            "samples": found.samples.summary(),
            "greedy": found.greedy.summary(),
            "majority_16": found.majority,
        }
    summary = {
        name: {
            "samples": round(100 * row["samples"]["accuracy"], 1),
            "greedy": round(100 * row["greedy"]["accuracy"], 1),
            "majority": round(100 * row["majority_16"], 1),
            "pass_at_8": round(100 * row["samples"]["pass_at"]["8"], 1),
            "tokens": round(row["samples"]["mean_tokens"], 1),
        }
        for name, row in raw.items()
    }
    write_result(
        "seedling",
        command="python bench/bench_seedling.py",
        seeds=[0],
        raw=raw,
        summary=summary,
    )
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
