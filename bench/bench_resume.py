"""The killer: kill -9 at random moments of every stage, resume, compare with an unbroken run.

    python bench/bench_resume.py [--strikes 20]    writes docs/results/resume.json
    python bench/bench_resume.py --stages rl,sft   prints only

Moments are uniform over the life of a process: its start, its steps, writing checkpoints, its end.
One strike in five meets the command as it is installed, with its start of some seconds; the others
meet a fork that has imported everything, or few would meet its work. Some runs are struck up to
four times. Whoever is struck loses its whole process group. Afterwards the run is resumed until it
ends, and every file of its folder must equal that of the unbroken run byte for byte (weights,
optimizer, counters, rollouts in use, state of the choice of examples, the saved model, transcripts;
metrics without clocks), and so must the totals it prints.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import chain, cycle
from pathlib import Path
from random import Random
from tempfile import mkdtemp
from typing import Any

from record import write_result

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from forethought.toml import to_toml
from killer import (
    RUN,
    Worker,
    differences,
    fork_server,
    kill,
    output,
    snapshot,
    start_command,
    start_fork,
    totals,
    write_recipes,
)
from tiny_runs import rl_tables

STRIKES = 20
FORKS_PER_COMMAND = 4
RUN_LENGTHS = (1, 2, 1, 3, 1, 4)  # strikes at one run, in turn
PATIENCE_SECONDS = 300
LAPS = ("sample", "grade", "score", "update", "publish", "eval")  # of a step of RL, in order
PHASES = ("start", "step", *LAPS, "checkpoint", "model", "end")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A recipe, and what an unbroken run of it left. `life` is in seconds, by mode."""

    name: str
    recipe: Path
    files: Mapping[str, bytes]
    totals: Mapping[str, float]
    rows: Mapping[str, Sequence[Mapping[str, Any]]]  # of metrics.jsonl, by folder
    num_steps: int
    life: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Strike:
    """One kill -9. `moment` and `life` are seconds since the process began."""

    stage: str
    mode: str
    run: str
    number: int
    moment: float
    life: float
    step: int
    phase: str
    equal: bool = False


class Killer:
    """Starts processes of either mode in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._server = fork_server()

    def start(self, mode: str, folder: Path, recipe: Path) -> Worker:
        if mode == "command":
            return start_command(folder, recipe)
        return start_fork(self._server, folder, recipe)

    def finish(self, mode: str, folder: Path, recipe: Path) -> float:
        """Run or resume until the end; the seconds it took."""
        began = time.monotonic()
        code = self.start(mode, folder, recipe).wait(PATIENCE_SECONDS)
        if code != 0:
            raise SystemExit(f"{recipe.stem} ended with {code} in {folder}: {output(folder)}")
        return time.monotonic() - began


def unbroken(killer: Killer, name: str, recipe: Path) -> Stage:
    """Run the stage by both modes, which must agree."""
    life, found = {}, {}
    for mode in ("command", "fork"):
        folder = killer.folder / f"{name}-unbroken-{mode}"
        folder.mkdir()
        life[mode] = killer.finish(mode, folder, recipe)
        found[mode] = snapshot(folder / RUN), totals(folder)
    files, counted = found["command"]
    if different := differences(found["fork"][0], files):
        raise SystemExit(f"{name}: two unbroken runs differ in {different}")
    rows = {inner.name: rows_of(inner) for inner in inner_runs(folder / RUN)}
    steps = sum(row["step"] > 0 for row in chain(*rows.values()))
    return Stage(
        name=name, recipe=recipe, files=files, totals=counted, rows=rows, num_steps=steps, life=life
    )


def inner_runs(run_dir: Path) -> list[Path]:
    """The folders with a training run of their own: those of a pipeline, or the run itself."""
    return sorted(run_dir.glob("[0-9]-*")) or [run_dir]


def rows_of(run_dir: Path) -> list[dict[str, Any]]:
    path = run_dir / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def strike_runs(killer: Killer, stage: Stage, mode: str, length: int, seed: str) -> list[Strike]:
    """`length` strikes at one run, or at several where one ends before it is struck so often."""
    rng, found, number = Random(f"{stage.name}/{seed}"), list[Strike](), 0
    while len(found) < length:
        name = f"{stage.name}-{mode}-{seed}-{number}"
        found += strike_run(killer, stage, mode, length - len(found), rng, name)
        number += 1
    return found


def strike_run(
    killer: Killer, stage: Stage, mode: str, length: int, rng: Random, name: str
) -> list[Strike]:
    """Strike a new run up to `length` times, let it end, and compare."""
    folder = killer.folder / name
    folder.mkdir()
    strikes: list[Strike] = []
    has_ended = False
    while len(strikes) < length and not has_ended:
        life = expected_life(stage, mode, folder / RUN)
        moment = rng.uniform(0, life)
        began = time.time()
        worker = killer.start(mode, folder, stage.recipe)
        if (code := worker.wait(moment)) is not None:
            if code != 0:
                raise SystemExit(f"{name} ended with {code}: {output(folder)}")
            has_ended = True  # before the blow came
            continue
        struck = time.time()
        kill(worker)
        step, phase = describe(stage, folder / RUN, began, struck)
        strikes.append(
            Strike(
                stage=stage.name, mode=mode, run=name, number=len(strikes) + 1,
                moment=round(struck - began, 3), life=round(life, 3), step=step, phase=phase,
            )
        )  # fmt: skip
    if not has_ended:
        killer.finish(mode, folder, stage.recipe)
    different = differences(snapshot(folder / RUN), stage.files)
    if totals(folder) != stage.totals:
        different.append("totals")
    if different:
        print(f"{name} DIFFERS in {different}; see {folder}", file=sys.stderr)
    else:
        shutil.rmtree(folder)
    return [Strike(**asdict(strike) | {"equal": not different}) for strike in strikes]


def expected_life(stage: Stage, mode: str, run_dir: Path) -> float:
    """Seconds until a process that goes on with this run would end."""
    done = 0
    for inner in inner_runs(run_dir):
        found = sorted((inner / "checkpoints").glob("step_*"))
        done += int(found[-1].name[5:]) if found else 0
    steps = sum(row.get("time/step_seconds", 0.0) for row in chain(*stage.rows.values()))
    return stage.life[mode] - min(steps, 0.9 * stage.life[mode]) * done / stage.num_steps


def describe(stage: Stage, run_dir: Path, began: float, struck: float) -> tuple[int, str]:
    """(steps logged, what the process was at), as far as the folder tells."""
    inner = inner_runs(run_dir)[-1]
    step = sum(row["step"] > 0 for run in inner_runs(run_dir) for row in rows_of(run))
    lines = inner / "metrics.jsonl"
    if is_newer(inner.glob("checkpoints/.tmp-*"), began):
        return step, "checkpoint"
    if is_newer(inner.glob(".*.tmp-*"), began):  # the folder of a model, or of an adapter
        return step, "model"
    if not is_newer([lines], began):
        return step, "start"
    if (inner / "model").exists():
        return step, "end"
    return step, lap_at(stage, inner, struck - lines.stat().st_mtime)


def is_newer(paths: Iterable[Path], began: float) -> bool:
    """True when one of the paths is there and was written since."""
    return any(path.exists() and path.stat().st_mtime >= began for path in paths)


def lap_at(stage: Stage, run_dir: Path, elapsed: float) -> str:
    """The part of a step that took place `elapsed` seconds after the last line was logged, by the
    clock of the unbroken run."""
    last = max((row["step"] for row in rows_of(run_dir)), default=0)
    rows = {row["step"]: row for row in stage.rows.get(run_dir.name, ())}
    row = rows.get(last + 1)
    if row is None:
        return "end"
    if "time/sample_seconds" not in row and "time/update_seconds" not in row:
        return "step"
    for lap in LAPS:
        elapsed -= row.get(f"time/{lap}_seconds", 0.0)
        if elapsed < 0:
            return lap
    return "step"


def lengths(total: int) -> Iterator[int]:
    """How often each run is struck, `total` strikes in all."""
    for length in cycle(RUN_LENGTHS):
        if total <= 0:
            return
        yield min(length, total)
        total -= length


def recipes(folder: Path) -> dict[str, Path]:
    """Those of the tests, on a model of nothing, and one on the bundled base model."""
    found = write_recipes(folder)
    seedling = rl_tables(
        Path("bundled:seedling"), folder / "none", task="sum:difficulty=2,size=200", num_steps=6,
        max_tokens=48, eval_problems=4, eval_samples=1, eval_every=3, minibatches=2,
        optimizer={"learning_rate": 1e-3},
    )  # fmt: skip
    (folder / "seedling.toml").write_text(to_toml(seedling))
    return found | {"seedling": folder / "seedling.toml"}


def summarise(strikes: Sequence[Strike], seconds: float) -> dict[str, Any]:
    """Counts in all, by stage and by phase."""
    stages = {strike.stage: [s for s in strikes if s.stage == strike.stage] for strike in strikes}
    return {
        "num_strikes": len(strikes),
        "num_equal": sum(s.equal for s in strikes),
        "num_runs": len({s.run for s in strikes}),
        "num_commands": sum(s.mode == "command" for s in strikes),
        "most_at_one_run": max(s.number for s in strikes),
        "minutes": seconds / 60,
        "phases": dict.fromkeys(PHASES, 0) | Counter(s.phase for s in strikes),
        "stages": {
            name: {
                "strikes": len(mine),
                "equal": sum(s.equal for s in mine),
                "runs": len({s.run for s in mine}),
                "commands": sum(s.mode == "command" for s in mine),
                "phases": dict(Counter(s.phase for s in mine).most_common()),
            }
            for name, mine in stages.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--stages", help="comma-separated; all of them when left out")
    parser.add_argument("--strikes", type=int, default=STRIKES, help="at each stage")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    began = time.monotonic()
    folder = Path(mkdtemp(prefix="killer-"))
    known = recipes(folder)
    names = options.stages.split(",") if options.stages else list(known)
    killer = Killer(folder)
    with ThreadPoolExecutor(options.workers) as pool:
        stages = list(pool.map(lambda name: unbroken(killer, name, known[name]), names))
        jobs = []
        for stage in stages:
            commands = max(1, options.strikes // (FORKS_PER_COMMAND + 1))
            for mode, count in (("command", commands), ("fork", options.strikes - commands)):
                for number, length in enumerate(lengths(count)):
                    seed = f"{options.seed}-{number}"
                    jobs.append(pool.submit(strike_runs, killer, stage, mode, length, seed))
        strikes = [strike for job in jobs for strike in job.result()]
    summary = summarise(strikes, time.monotonic() - began)
    print(json.dumps(summary, indent=1))
    if not options.stages:
        write_result(
            "resume", command=" ".join(["python bench/bench_resume.py", *sys.argv[1:]]),
            seeds=[options.seed],
            raw=[asdict(s) for s in strikes], summary=summary,
        )  # fmt: skip
    if summary["num_equal"] < summary["num_strikes"]:
        sys.exit(1)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
