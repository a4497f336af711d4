"""Two ratios in some four minutes: our step against TRL's, our sampler against transformers'.

    python bench/quick.py        (make bench-quick)

The last line is JSON: {"step_ratio_vs_trl": x, "sampler_ratio_vs_transformers": y}. One repeat of
each: for figures to quote, run bench_step.py and bench_sampling.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def run_quick(name: str) -> dict[str, Any]:
    command = [sys.executable, str(HERE / name), "--quick"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    print(name, done.stdout.strip())
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    step, sampler = run_quick("bench_step.py"), run_quick("bench_sampling.py")
    ratios = {
        "step_ratio_vs_trl": step["seconds_ratio"],
        "sampler_ratio_vs_transformers": sampler["ratio"],
    }
    print(json.dumps(ratios))
