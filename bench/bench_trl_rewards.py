"""Forethought's rewards inside TRL's GRPOTrainer, and TRL's reward functions inside Forethought.

    python bench/bench_trl_rewards.py        under a minute; needs .bench/trl (make bench-env)

Fails unless TRL logged every reward at every step and both libraries' formulas agree to 1e-6.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from forethought.models.resolve import resolve
from record import write_result

ROOT = Path(__file__).resolve().parent.parent
PEER = ROOT / ".bench" / "trl" / "bin" / "python"


def run_peer() -> dict[str, Any]:
    """What bench/peers/trl_rewards.py prints, run on the bundled model."""
    with tempfile.TemporaryDirectory() as folder:
        model = str(resolve("bundled:seedling"))
        command = [str(PEER), str(ROOT / "bench" / "peers" / "trl_rewards.py"), model, folder]
        environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
        done = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True, env=environment, timeout=300
        )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    began = time.perf_counter()
    found = run_peer()
    seconds = time.perf_counter() - began
    means = found["trained"]["means"]
    differences = found["compared"]["largest_difference"]
    assert found["trained"]["steps"] == 2 and all(len(logged) == 2 for logged in means.values())
    assert any(means["accuracy"]), "the bundled model answers some of these"
    assert max(differences.values()) < 1e-6, differences
    assert found["compared"]["think_format_mean"] == 1.0
    write_result(
        "trl_rewards",
        command="python bench/bench_trl_rewards.py",
        seeds=[0],
        raw=found,
        summary={
            "rewards_logged": len(means),
            "accuracy": [round(value, 4) for value in means["accuracy"]],
            "largest_difference": max(differences.values()),
            "seconds": round(seconds, 1),
        },
    )


if __name__ == "__main__":
    sys.exit(main())
