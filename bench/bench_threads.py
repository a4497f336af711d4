"""How long should torch's threads spin? Pretraining steps under four settings, in turn.

    python bench/bench_threads.py

Writes docs/results/threads.json: trained tokens per second, idle machine, 3 repeats.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from record import write_result

SETTINGS = {
    "endless": {"OMP_WAIT_POLICY": "active", "GOMP_SPINCOUNT": "INFINITY"},
    "spin_30000": {"GOMP_SPINCOUNT": "30000"},
    "spin_3000": {"GOMP_SPINCOUNT": "3000"},
    "none": {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"},
}
STEPS, WARMUP, REPEATS = 14, 4, 3


def tokens_per_second(setting: dict[str, str]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        arguments = ["train", "seedling-pretrain", "--json", "--set", f"run_dir={run}"]
        arguments += ["--set", f"num_steps={STEPS}", "--set", "optimizer.warmup_steps=2"]
        command = [sys.executable, "-m", "forethought", *arguments]
        subprocess.run(command, check=True, env=os.environ | setting, stdout=subprocess.DEVNULL)
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return statistics.median(row["data/tokens_per_second"] for row in rows[WARMUP:])


def main() -> None:
    raw: dict[str, list[float]] = {name: [] for name in SETTINGS}
    for _ in range(REPEATS):
        for name, setting in SETTINGS.items():
            raw[name].append(tokens_per_second(setting))
    summary = {name: round(statistics.median(values)) for name, values in raw.items()}
    write_result(
        "threads", command="python bench/bench_threads.py", seeds=[0], raw=raw, summary=summary
    )
    print(summary)


if __name__ == "__main__":
    main()
