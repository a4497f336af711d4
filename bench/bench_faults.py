"""Requests to a server that fails in every way: what is lost, counted twice, and what it costs.

    python bench/bench_faults.py

1,000 requests of four completions for each seed, against the server of tests/fault_server.py on
this machine: storms of 429s, 500s, connections closed before and within a body, garbage, half a
JSON, stalls, one choice too few, two too many. Writes docs/results/faults.json.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from record import write_result

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from fault_run import FaultRecord, num_lost, num_twice, run_with_faults
from fault_server import LOST, REFUSED

NUM_REQUESTS = 1000
N = 4
SEEDS = (0, 1, 2)


def describe(record: FaultRecord) -> dict[str, Any]:
    """The two books of one run, and what differs between them."""
    server, traffic = record.server, record.traffic
    faults = server["faults"]
    pairs = {
        "calls": (traffic.num_calls, server["calls"]),
        "replies": (traffic.num_replies, server["replies"]),
        "refused": (traffic.num_refused, sum(faults.get(kind, 0) for kind in REFUSED)),
        "lost_replies": (traffic.num_lost, sum(faults.get(kind, 0) for kind in LOST)),
        "prompt_tokens": (record.usage.prompt_tokens, server["prompt_tokens"]),
        "sampled_tokens": (record.usage.sampled_tokens, server["sampled_tokens"]),
    }
    return {
        "num_requests": len(record.requests),
        "num_completions": sum(map(len, record.found)),
        "num_lost": num_lost(record),
        "num_twice": num_twice(record),
        "num_failed": len(record.failures),
        "seconds": record.seconds,
        "faults": faults,
        "num_differences": sum(mine != theirs for mine, theirs in pairs.values()),
        "engine_and_server": pairs,
        "server_tokens_never_told": server["lost_tokens"],
        "usage": asdict(record.usage),
        "connections": server["connections"],
        "most_at_once": server["most_at_once"],
    }


def main() -> None:
    runs = [describe(run_with_faults(NUM_REQUESTS, N, seed)) for seed in SEEDS]
    faults = {k: sum(run["faults"].get(k, 0) for run in runs) for k in sorted(runs[0]["faults"])}
    total = {
        key: sum(run[key] for run in runs)
        for key in ("num_requests", "num_completions", "num_lost", "num_twice", "num_failed")
    }
    calls = sum(run["engine_and_server"]["calls"][0] for run in runs)
    never_told = sum(run["server_tokens_never_told"] for run in runs)
    sampled = sum(run["usage"]["sampled_tokens"] for run in runs)
    write_result(
        "faults",
        command="python bench/bench_faults.py",
        seeds=SEEDS,
        raw=runs,
        summary={
            **total,
            "num_calls": calls,
            "num_faults": sum(count for kind, count in faults.items() if kind != "none"),
            "faults": faults,
            "num_differences": sum(run["num_differences"] for run in runs),
            "max_seconds": max(run["seconds"] for run in runs),
            "mean_seconds": fmean(run["seconds"] for run in runs),
            "calls_a_request": calls / total["num_requests"],
            "never_told_percent": 100 * never_told / (never_told + sampled),
        },
    )


if __name__ == "__main__":
    main()
