"""Write a measured result to docs/results/NAME.json: what, where, with which versions, and raw."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from forethought.machine import describe_machine, load_average, source_commit, versions

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"


def gpu() -> dict[str, str]:
    """The GPU by its name, where there is one."""
    import torch  # not sooner: some benches set how its threads wait before it loads

    return {"device": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}


def write_result(
    name: str,
    *,
    command: str,
    seeds: Sequence[int],
    raw: Any,
    summary: Mapping[str, Any],
) -> Path:
    """One JSON file: command, commit, date, machine, versions, seeds, raw values, summary."""
    content = {
        "name": name,
        "command": command,
        "commit": source_commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": asdict(describe_machine()) | {"load_average": load_average()} | gpu(),
        "versions": versions(),
        "seeds": list(seeds),
        "summary": dict(summary),
        "raw": raw,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {path}", file=sys.stderr)
    return path
