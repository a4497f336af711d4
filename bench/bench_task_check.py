"""The conformance test over every task family there is, ours and reasoning-gym's.

    python bench/bench_task_check.py        some two minutes on two processors

Writes docs/results/task_check.json; `forethought task check --all` prints the same.
"""

from __future__ import annotations

import sys
import time
from dataclasses import asdict

from forethought.tasks.check import NUM_PROBLEMS, all_specs, check_task
from record import write_result


def main() -> None:
    began = time.perf_counter()
    found = {}
    for spec in all_specs():
        found[spec] = check_task(spec)
        print(spec, "sound" if found[spec].is_sound else found[spec].faults, file=sys.stderr)
    seconds = time.perf_counter() - began
    sound = [name for name, result in found.items() if result.is_sound]
    write_result(
        "task_check",
        command="python bench/bench_task_check.py",
        seeds=[0],
        raw={name: asdict(result) for name, result in found.items()},
        summary={
            "num_families": len(found),
            "num_sound": len(sound),
            "unsound": {name: r.faults for name, r in found.items() if not r.is_sound},
            "num_problems": NUM_PROBLEMS,
            "num_grades": sum(result.num_grades for result in found.values()),
            "num_timeouts": sum(result.num_timeouts for result in found.values()),
            "slowest_grade_seconds": round(max(r.max_seconds for r in found.values()), 3),
            "minutes": round(seconds / 60, 1),
        },
    )


if __name__ == "__main__":
    main()
