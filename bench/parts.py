"""A long measurement in parts: each is kept in a file, found again, and can run beside another.

python bench/bench_X.py                the parts that are not there yet, then the results
python bench/bench_X.py --jobs 2       two at a time, each on its share of the cores
python bench/bench_X.py --part NAME    that part, anew
python bench/bench_X.py --write        only the results of the parts that are there
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

Raw = dict[str, Any]


def run_parts(
    script: str,
    folder: Path,
    names: Sequence[str],
    measure: Callable[[str], Raw],
    write: Callable[[dict[str, Raw]], None],
    *,
    first: Callable[[], object] = lambda: None,
) -> None:
    """The command line above. `measure(name)` is one part, `first()` what all of them need, and
    `write(parts by name)` makes the results of those that there are."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--part", action="append", default=[], choices=names)
    parser.add_argument("--jobs", type=int, default=1, help="parts at a time")
    parser.add_argument("--write", action="store_true", help="measure nothing")
    arguments = parser.parse_args()
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / f"{name}.json" for name in names}
    if arguments.part:
        for name in arguments.part:
            first()
            files[name].write_text(json.dumps(measure(name)) + "\n", encoding="utf-8")
            print(f"measured {name}", flush=True)
        return
    if not arguments.write:
        first()
        missing = [name for name, file in files.items() if not file.exists()]
        threads = max(1, (os.cpu_count() or 1) // arguments.jobs)
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        if arguments.jobs > 1:
            environment |= {"MKL_NUM_THREADS": str(threads), "NUMBA_NUM_THREADS": str(threads)}

        def run(name: str) -> None:
            command = [sys.executable, script, "--part", name]
            subprocess.run(command, check=True, env=environment)

        with ThreadPoolExecutor(arguments.jobs) as pool:
            list(pool.map(run, missing))
    write({name: json.loads(file.read_text()) for name, file in files.items() if file.exists()})
