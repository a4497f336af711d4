"""TRL's side of a training bench: bench/peers/trl_train.py in the environment .bench/trl."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TRL = ROOT / ".bench" / "trl" / "bin" / "python"
if find_spec("trl"):  # in this environment, as on a borrowed machine
    TRL = Path(sys.executable)


def train_trl(*arguments: object) -> dict[int, float]:
    """Seconds of training until each copy, by its step; the arguments are those of the script."""
    command = [TRL, ROOT / "bench" / "peers" / "trl_train.py", *arguments]
    done = subprocess.run(
        [str(part) for part in command],
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
    )
    seconds = json.loads(done.stdout.splitlines()[-1])
    return {int(step): spent for step, spent in seconds.items()}
