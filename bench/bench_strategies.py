"""Strategies on the quickstart model: accuracy and cost, and the driver's share of raw speed.

    python bench/bench_strategies.py                  every part, then the results
    python bench/bench_strategies.py --part votes-0   one part, kept in a folder of its own
    python bench/bench_strategies.py --write          the results of the parts there are

A part is votes-SEED (majority, ASC, ESC and DeepConf of 16 on 500 stories, and the same requests
straight through the engine), forcing-SEED (thinking cut, continued and left early) or s2a-SEED
(stories with an irrelevant sentence), of seeds 0 to 2. The model is trained first, where it is not
there. Writes docs/results/strategies.json and s2a.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from forethought.evaluation.curves import Cell, compare, sweep
from forethought.models.load import load_model
from forethought.sampling.local import LocalEngine
from forethought.strategies.base import problem_of
from forethought.tasks.base import load_task
from forethought.types import Example, Grade, Message, Request, SamplingParams, Task
from record import write_result

PARTS = Path(__file__).resolve().parent.parent / "runs" / "bench-strategies"
SHOWN = ("accuracy", "completions", "total_tokens", "points_mean", "p", "seconds", "share_percent")
PROBLEMS, MAX_TOKENS, VOTES = 500, 80, 16
VOTING = {
    "sample": "sample",
    "majority": f"majority:n={VOTES}",
    "asc": f"asc:n={VOTES}",
    "esc": f"esc:n={VOTES},window=4",
    "deepconf": f"deepconf:n={VOTES},window=16,keep=50",
    "majority_8": "majority:n=8",
}
FORCING = {
    "no_thinking": "no_thinking:thought=",
    "cap_8": "budget_forcing:max_thinking=8",
    "cap_16": "budget_forcing:max_thinking=16",
    "cap_24": "budget_forcing:max_thinking=24",
    "cap_32": "budget_forcing:max_thinking=32",
    "cap_64": "budget_forcing:max_thinking=64",
    "wait": "budget_forcing:max_thinking=64,waits=1",
    "exit_80": "early_exit:at=newline,threshold=0.8",
    "exit_95": "early_exit:at=newline,threshold=0.95",
    "exit_99": "early_exit:at=newline,threshold=0.99",
}
S2A = {
    "plain": "sample",
    "s2a": "s2a:prompts=brief,variant=relevance",
    "s2a_unguarded": "s2a:prompts=brief,variant=relevance,guard=0",
    "instructed": "s2a:prompts=brief,variant=instructed",
    "keep_original": "s2a:prompts=brief,variant=keep_original",
}


class Oracle:
    """The task with its irrelevant sentences already gone."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self.name = f"{task.name} without the irrelevant sentence"

    def __len__(self) -> int:
        return len(self._task)

    def __getitem__(self, index: int) -> Example:
        example = self._task[index]
        message = Message(role="user", content=example.meta["plain"])
        return replace(example, messages=(message,))

    def grade(self, example: Example, completion: str) -> Grade:
        return self._task.grade(example, completion)


def measure(engine: LocalEngine, task: Task, specs: dict[str, str], seed: int) -> dict[str, Cell]:
    params = SamplingParams(max_tokens=MAX_TOKENS, seed=seed)
    cells = sweep(engine, task, list(specs.values()), [None], params)
    return dict(zip(specs, cells, strict=True))


def raw_speed(engine: LocalEngine, task: Task, seed: int) -> float:
    """Tokens a second of the requests of majority 16, straight through the engine."""
    params = SamplingParams(max_tokens=MAX_TOKENS, seed=seed)
    problems = [problem_of(task[i], params, engine.capabilities) for i in range(len(task))]
    asked = [Request(messages=p.messages, params=replace(p.params, n=VOTES)) for p in problems]
    began = time.perf_counter()
    groups = engine.generate(asked)
    seconds = time.perf_counter() - began
    return sum(len(c.token_ids) for group in groups for c in group) / seconds


def run_part(engine: LocalEngine, part: str) -> dict[str, Any]:
    kind, seed = part.split("-")[0], int(part.split("-")[1])
    if kind == "s2a":
        task = load_task("story:distract=1", size=PROBLEMS)
        cells = measure(engine, task, S2A, seed)
        cells |= measure(engine, Oracle(task), {"oracle": "sample"}, seed)
        return table(cells, "plain")
    task = load_task("story", size=PROBLEMS)
    if kind == "forcing":
        return table(measure(engine, task, FORCING, seed), "cap_64")
    raw = raw_speed(engine, task, seed)
    cells = measure(engine, task, VOTING, seed)
    driven = cells["majority"].usage.sampled_tokens / cells["majority"].seconds
    found = table(cells, "majority")
    speed = {"raw": raw, "driven": driven, "share_percent": 100 * driven / raw}
    return found | {"speed": speed}


def table(cells: dict[str, Cell], base: str) -> dict[str, Any]:
    """Rows by name, each with its difference from `base`, in points."""
    rows = {}
    for name, cell in cells.items():
        against = compare(cells[base], cell)
        difference = {f"points_{k}": 100 * getattr(against.difference, k)
                      for k in ("mean", "low", "high")}  # fmt: skip
        rows[name] = cell.summary() | difference | {"p": against.p}
    return rows


def average(parts: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Means over seeds: accuracies and differences in percent and points, costs a problem."""
    keys = ("total_tokens", "computed_tokens", "sampled_tokens", "completions", "points_mean")
    found: dict[str, dict[str, float]] = {}
    for name in parts[0]:
        rows = [part[name] for part in parts]
        if name == "speed":
            found[name] = {key: round(fmean(r[key] for r in rows), 1) for key in rows[0]}
            continue
        found[name] = {key: round(fmean(r[key] for r in rows), 2) for key in keys}
        found[name]["accuracy"] = round(100 * fmean(r["accuracy"] for r in rows), 2)
    return found


def write() -> None:
    parts = {path.stem: json.loads(path.read_text()) for path in sorted(PARTS.glob("*.json"))}
    for name, kinds in (("strategies", ("votes", "forcing")), ("s2a", ("s2a",))):
        chosen = {p: raw for p, raw in parts.items() if p.split("-")[0] in kinds}
        if not chosen:
            continue
        grouped = {k: [raw for p, raw in chosen.items() if p.startswith(k + "-")] for k in kinds}
        write_result(
            name,
            command="python bench/bench_strategies.py",
            seeds=sorted({int(part.split("-")[1]) for part in chosen}),
            raw=chosen,
            summary={
                kind: average(group) | {"num_seeds": len(group)}
                for kind, group in grouped.items()
                if group
            },
        )


def trained_model() -> str:
    """The model of the quickstart recipe, trained once."""
    folder = PARTS / "quickstart"
    if not (folder / "model").exists():
        command = [sys.executable, "-m", "forethought", "train", "quickstart"]
        subprocess.run([*command, "--set", f"run_dir={folder}"], check=True)
    return str(folder / "model")


def main() -> None:
    parser = argparse.ArgumentParser(description="Strategies on the quickstart model.")
    parser.add_argument("--model", help="another model than the one of the quickstart recipe")
    parser.add_argument("--part", action="append", default=[])
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    every = [f"{kind}-{seed}" for kind in ("votes", "forcing", "s2a") for seed in range(3)]
    parts = arguments.part or ([] if arguments.write else every)
    if parts:
        loaded = load_model(arguments.model or trained_model())
        engine = LocalEngine(loaded.model, loaded.tokenizer)
    for part in parts:
        found = run_part(engine, part)
        PARTS.mkdir(parents=True, exist_ok=True)
        (PARTS / f"{part}.json").write_text(json.dumps(found) + "\n")
        for name, row in found.items():
            print(part, name, {key: value for key, value in row.items() if key in SHOWN})
    if arguments.write or not arguments.part:
        write()


if __name__ == "__main__":
    main()
