"""Strategies on the quickstart model: accuracy and cost on four families of problems.

    python bench/bench_strategies.py --jobs 2         (parts.py says what else it takes)

A part is votes-FAMILY-SEED (majority, ASC, ESC and DeepConf of 16 on 500 problems), forcing-FAMILY-
SEED (thinking cut, continued and left early) or speed (the requests of majority 16 by the driver,
and straight through the engine), of seeds 0 to 2. The model is trained first, where there is none.
Within a part a completion that several strategies ask for is sampled once: draws depend on seed and
sibling alone, so each gets what it would have got. Writes docs/results/strategies.json.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any

from forethought.evaluation.curves import Cell, compare, sweep
from forethought.models.load import load_model
from forethought.sampling.local import LocalEngine
from forethought.strategies.base import problem_of
from forethought.strategies.deepconf import NUM_TOP
from forethought.tasks.base import load_task
from forethought.types import (
    Capabilities,
    Completion,
    Engine,
    Request,
    SamplingParams,
    Task,
    Usage,
)
from parts import Raw, run_parts
from record import write_result

PARTS = Path(__file__).resolve().parent.parent / "runs" / "bench-strategies"
FAMILIES = ("story", "sum", "equation", "rule")
SEEDS = range(3)
EARLIER = ["num_steps=90", "group_size=8", "optimizer.schedule=constant"]
PROBLEMS, MAX_TOKENS, VOTES = 500, 80, 16
VOTING = {
    "sample": "sample",
    "majority_2": "majority:n=2",
    "majority_4": "majority:n=4",
    "majority_8": "majority:n=8",
    "majority_12": "majority:n=12",
    "majority": f"majority:n={VOTES}",
    "asc": f"asc:n={VOTES}",
    "esc": f"esc:n={VOTES},window=4",
    "deepconf": f"deepconf:n={VOTES},window=16,keep=50",
    "deepconf_online": f"deepconf:n={VOTES},mode=online,window=16,keep=50,warmup=8",
}
FORCING = {
    "no_thinking": "no_thinking:thought=",
    "cap_8": "budget_forcing:max_thinking=8",
    "cap_16": "budget_forcing:max_thinking=16",
    "cap_24": "budget_forcing:max_thinking=24",
    "cap_32": "budget_forcing:max_thinking=32",
    "cap_64": "budget_forcing:max_thinking=64",
    "wait": "budget_forcing:max_thinking=64,waits=1",
    "exit_95": "early_exit:at=newline,threshold=0.95",
    "exit_999": "early_exit:at=newline,threshold=0.999",
    "exit_9999": "early_exit:at=newline,threshold=0.9999",
}
EVERY = [f"{kind}-{f}-{s}" for kind in ("votes", "forcing") for f in FAMILIES for s in SEEDS]


class Remembering:
    """An engine that samples no completion twice. What is asked for again costs in `usage` what it
    cost the first time, but for the call, which is the first sibling's."""

    def __init__(self, engine: LocalEngine) -> None:
        self._engine = engine
        self._known: dict[object, Completion] = {}

    @property
    def capabilities(self) -> Capabilities:
        return replace(self._engine.capabilities, streams=False)

    def count_prompt(self, request: Request) -> int:
        return self._engine.count_prompt(request)

    def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        asked = [request for whole in requests for request in self._missing(whole)]
        for request, group in zip(asked, self._engine.generate(asked), strict=True):
            self._known |= dict(zip(_keys(request), group, strict=True))
        return [[_as_sibling(i, self._known[key]) for i, key in enumerate(_keys(request))]
                for request in requests]  # fmt: skip

    def _missing(self, request: Request) -> list[Request]:
        """The siblings that are not known, one by one; the engine shares their prompt."""
        found = []
        for place, key in enumerate(_keys(request)):
            if key not in self._known:
                first = request.params.first_sibling + place
                params = replace(request.params, n=1, first_sibling=first, top_logprobs=NUM_TOP)
                found.append(replace(request, params=params))
        return found


def _keys(request: Request) -> list[object]:
    """What decides each completion of a request."""
    params = request.params
    same = replace(params, n=1, first_sibling=0, top_logprobs=NUM_TOP)
    texts = tuple(message["content"] for message in request.messages or ())
    siblings = range(params.first_sibling, params.first_sibling + params.n)
    return [(texts, request.prefix, same, sibling) for sibling in siblings]


def _as_sibling(place: int, completion: Completion) -> Completion:
    usage = replace(completion.usage, num_calls=0 if place else 1)
    return replace(completion, usage=usage)


def measure(engine: Engine, task: Task, specs: Mapping[str, str], seed: int) -> dict[str, Cell]:
    params = SamplingParams(max_tokens=MAX_TOKENS, seed=seed)
    cells = sweep(engine, task, list(specs.values()), [None], params)
    return dict(zip(specs, cells, strict=True))


def run_part(part: str) -> Raw:
    loaded = load_model(trained_model())
    engine = LocalEngine(loaded.model, loaded.tokenizer)
    if part == "speed":
        return speed(engine, load_task("story", size=PROBLEMS))
    kind, family, seed = part.split("-")
    task = load_task(family, size=PROBLEMS)
    specs, base = (VOTING, "majority") if kind == "votes" else (FORCING, "cap_64")
    return table(measure(Remembering(engine), task, specs, int(seed)), base)


def speed(engine: LocalEngine, task: Task) -> Raw:
    """Tokens a second of majority 16, straight through the engine and by the driver: medians of
    three runs in turn, after one that does not count."""
    params = SamplingParams(max_tokens=MAX_TOKENS)
    problems = [problem_of(task[i], params, engine.capabilities) for i in range(len(task))]
    asked = [Request(messages=p.messages, params=replace(p.params, n=VOTES)) for p in problems]
    engine.generate(asked)
    raw, driven = [], []
    for _ in range(3):
        began = time.perf_counter()
        groups = engine.generate(asked)
        seconds = time.perf_counter() - began
        usage = sum((c.usage for group in groups for c in group), start=Usage())
        raw.append(usage.sampled_tokens / seconds)
        cell = measure(engine, task, {"majority": VOTING["majority"]}, 0)["majority"]
        driven.append(cell.usage.sampled_tokens / cell.seconds)
    share = 100 * median(driven) / median(raw)
    return {"raw": median(raw), "driven": median(driven), "share_percent": share,
            "raw_runs": raw, "driven_runs": driven}  # fmt: skip


def table(cells: Mapping[str, Cell], base: str) -> Raw:
    """Rows by name, each with its difference from `base`, in points."""
    rows = {}
    for name, cell in cells.items():
        against = compare(cells[base], cell)
        difference = {f"points_{k}": 100 * getattr(against.difference, k)
                      for k in ("mean", "low", "high")}  # fmt: skip
        rows[name] = cell.summary() | difference | {"p": against.p}
    return rows


def average(parts: Sequence[Raw]) -> dict[str, dict[str, float]]:
    """Means over seeds: accuracies and differences in percent and points, costs a problem; the
    difference of the seed where it is least is `points_least`."""
    keys = ("total_tokens", "computed_tokens", "sampled_tokens", "completions", "points_mean")
    found: dict[str, dict[str, float]] = {}
    for name in parts[0]:
        rows = [part[name] for part in parts]
        found[name] = {key: round(fmean(r[key] for r in rows), 2) for key in keys}
        found[name]["accuracy"] = round(100 * fmean(r["accuracy"] for r in rows), 2)
        found[name]["points_least"] = round(min(r["points_mean"] for r in rows), 2)
    return found


def at_equal_tokens(rows: Mapping[str, Mapping[str, float]], name: str) -> float:
    """Accuracy of `name` less that of a majority at the same total tokens, in points, on the line
    through the majorities measured."""
    names = ("sample", "majority_2", "majority_4", "majority_8", "majority_12", "majority")
    tokens = rows[name]["total_tokens"]
    points = [(rows[n]["total_tokens"], rows[n]["accuracy"]) for n in names]
    for (low, before), (high, after) in pairwise(points):
        if low <= tokens <= high:
            line = before + (after - before) * (tokens - low) / (high - low)
            return round(rows[name]["accuracy"] - line, 2)
    raise ValueError(f"{name} takes {tokens} tokens, and no majority that was measured does")


def summary_of(parts: Mapping[str, Raw]) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    for kind in ("votes", "forcing"):
        for family in FAMILIES:
            group = [raw for part, raw in parts.items() if part.startswith(f"{kind}-{family}-")]
            if not group:
                continue
            rows: dict[str, Any] = average(group)
            for name, row in rows.items() if kind == "votes" else ():
                row["at_equal_tokens"] = at_equal_tokens(rows, name)
                row["samples_percent"] = round(100 * row["completions"] / VOTES, 1)
            summary.setdefault(kind, {})[family] = rows | {"num_seeds": len(group)}
    if "speed" in parts:
        summary["speed"] = {
            key: round(parts["speed"][key], 1) for key in ("raw", "driven", "share_percent")
        }
    return summary


def write(parts: dict[str, Raw]) -> None:
    write_result(
        "strategies",
        command="python bench/bench_strategies.py --jobs 2",
        seeds=list(SEEDS),
        raw=parts,
        summary=summary_of(parts),
    )


def trained_model() -> str:
    """The model of the quickstart recipe as it was when these were measured, trained once."""
    folder = PARTS / "quickstart"
    if not (folder / "model").exists():
        command = [sys.executable, "-m", "forethought", "train", "quickstart"]
        changes = [f"run_dir={folder}", *EARLIER]
        subprocess.run(
            [*command, *(x for change in changes for x in ("--set", change))], check=True
        )
    return str(folder / "model")


if __name__ == "__main__":
    run_parts(__file__, PARTS, ["speed", *EVERY], run_part, write, first=trained_model)
