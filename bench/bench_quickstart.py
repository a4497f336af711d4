"""The quickstart with three seeds: does the bundled model learn to reason, every time?

    python bench/bench_quickstart.py [--seeds 0 1 2]

Writes docs/results/quickstart.json, quickstart_bf16.json on a processor with that arithmetic,
quickstart_amx.json on one with AMX.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile

from device import name_here
from record import write_result


def run_quickstart(seed: int, folder: str) -> dict[str, float]:
    command = [sys.executable, "-m", "forethought", "quickstart", "--json"]
    command += ["--seed", str(seed), "--out", folder]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return {key: value for key, value in figures.items() if key not in ("model", "report")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    seeds = parser.parse_args().seeds
    with tempfile.TemporaryDirectory() as folder:
        raw = {f"seed_{seed}": run_quickstart(seed, folder) for seed in seeds}
    percent = {
        name: {
            key: round(100 * value, 1)
            for key, value in figures.items()
            if key.startswith(("accuracy", "greedy", "majority", "gain"))
        }
        | {key: round(figures[key], 1) for key in ("length_before", "length_after")}
        | {"seconds": round(figures["seconds_total"])}
        for name, figures in raw.items()
    }
    summary = percent | {
        "smallest_gain_low": min(p["gain_low"] for p in percent.values()),
        "smallest_gain": min(p["gain"] for p in percent.values()),
        "smallest_greedy_gain": min(p["greedy_gain"] for p in percent.values()),
        "smallest_greedy_gain_low": min(p["greedy_gain_low"] for p in percent.values()),
        "longest_seconds": max(p["seconds"] for p in percent.values()),
    }
    write_result(
        name_here("quickstart"),
        command="python bench/bench_quickstart.py",
        seeds=seeds,
        raw=raw,
        summary=summary,
    )
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
