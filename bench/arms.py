"""Arms of a training bench: every (arm, seed) is a process of its own and leaves its result in a
file, so that a bench that was interrupted goes on where it was.

A bench hands a `Bench` to `main`. Its process runs `python BENCH.py --cell ARM:SEED` once for each
cell that has no result yet in .bench/NAME, `--jobs` at a time with one thread each; `--prefix` is
put before each of these commands (`--prefix "nice -n 5"`). Every result names the settings it was
made with, and one of other settings is made again. The arm `base` is the model before training.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from forethought.evaluation.evaluate import Evaluation, evaluate
from forethought.evaluation.metrics import mean_interval
from forethought.grading.built_in_rewards import is_well_formed
from forethought.models.load import load_model
from forethought.sampling.local import LocalEngine
from forethought.tasks.base import load_task
from forethought.tasks.traces import THINK_OPEN
from record import write_result

ROOT = Path(__file__).resolve().parent.parent
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
BASE = "base"
Cell = tuple[str, int]  # arm, seed


@dataclass(frozen=True, kw_only=True)
class Exam:
    """How a model is measured: the first test problems of each family, greedily and sampled."""

    families: tuple[str, ...]
    problems: int
    samples: int
    max_tokens: int = 80


def take_exam(model: Any, tokenizer: Any, exam: Exam) -> dict[str, dict[str, Any]]:
    """By family: a score a problem, greedy and as the mean of samples at temperature 1, and the
    shares of samples that are well formed, that think, and their mean length."""
    engine = LocalEngine(model, tokenizer)
    return {family: _take(engine, family, exam) for family in exam.families}


def _take(engine: LocalEngine, family: str, exam: Exam) -> dict[str, Any]:
    def ask(num_samples: int, temperature: float) -> Evaluation:
        return evaluate(
            engine,
            load_task(family, split="test"),
            num_samples=num_samples,
            temperature=temperature,
            max_tokens=exam.max_tokens,
            limit=exam.problems,
            stop_at_boxed=False,
        )

    greedy, sampled = ask(1, 0.0), ask(exam.samples, 1.0)
    texts = [text for result in sampled.results for text in result.texts]
    return {
        "greedy": [result.score for result in greedy.results],
        "sampled": [result.score for result in sampled.results],
        "format": fmean(map(is_well_formed, texts)),
        "think": fmean(text.lstrip().startswith(THINK_OPEN) for text in texts),
        "tokens": sampled.mean_tokens,
        "greedy_tokens": greedy.mean_tokens,
    }


def exam_of_folder(folder: str | Path, exam: Exam) -> dict[str, dict[str, Any]]:
    loaded = load_model(str(folder), dtype="float32")
    return take_exam(loaded.model, loaded.tokenizer, exam)


def over_seeds(exams: Sequence[Mapping[str, Any]]) -> dict[str, float | list[float]]:
    """Percent right of one family in the exams of several seeds, and what else they show.

    Scores of a problem are averaged over seeds before the 95% interval over problems is taken:
    the interval says how far other problems could move the mean of these runs, not how far
    another seed could; `*_seeds` has the runs apart.
    """
    found: dict[str, float | list[float]] = {}
    for kind in ("greedy", "sampled"):
        columns = zip(*(exam[kind] for exam in exams), strict=True)
        interval = mean_interval([fmean(column) for column in columns])
        found[kind] = _percent(interval.mean)
        found[f"{kind}_low"] = _percent(max(0.0, interval.low))
        found[f"{kind}_high"] = _percent(min(1.0, interval.high))
        found[f"{kind}_seeds"] = [_percent(fmean(exam[kind])) for exam in exams]
    for share in ("format", "think"):
        found[share] = _percent(fmean(exam[share] for exam in exams))
    for length in ("tokens", "greedy_tokens"):
        found[length] = round(fmean(exam[length] for exam in exams), 1)
    return found


def _percent(share: float) -> float:
    return round(100 * share, 1)


def pooled(exam: Mapping[str, Mapping[str, Any]], families: Sequence[str]) -> dict[str, Any]:
    """The exam over several families as if they were one."""
    parts = [exam[family] for family in families]
    joined = {kind: [s for p in parts for s in p[kind]] for kind in ("greedy", "sampled")}
    means = ("format", "think", "tokens", "greedy_tokens")
    return joined | {name: fmean(part[name] for part in parts) for name in means}


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What is particular about a bench.

    `settings_of(arm, seed, steps)` is all that a result depends on but for the code;
    `train(arm, seed, steps, folder)` makes it, with an "exam" in it; `summarize` sees the results
    of every arm, one a seed. `facts` stand beside the summary.
    """

    name: str
    arms: tuple[str, ...]
    base: str
    exam: Exam
    settings_of: Callable[[str, int, int], list[Any]]
    train: Callable[[str, int, int, Path], dict[str, Any]]
    summarize: Callable[[dict[str, list[dict[str, Any]]]], dict[str, Any]]
    facts: Callable[[], dict[str, Any]] = dict

    @property
    def folder(self) -> Path:
        return ROOT / ".bench" / self.name

    def fingerprint(self, cell: Cell, steps: int) -> str:
        arm, seed = cell
        settings = [self.base] if arm == BASE else self.settings_of(arm, seed, steps)
        text = json.dumps([*settings, repr(self.exam)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def read(self, cell: Cell, steps: int) -> dict[str, Any] | None:
        """The result of a cell, None when it was not made yet or with other settings."""
        path = self.folder / f"{cell[0]}-{cell[1]}.json"
        if not path.exists():
            return None
        content = json.loads(path.read_text(encoding="utf-8"))
        result: dict[str, Any] = content["result"]
        return result if content["settings"] == self.fingerprint(cell, steps) else None

    def make(self, cell: Cell, steps: int) -> None:
        """Do the work of a cell in a new folder and keep its result beside it."""
        arm, seed = cell
        scratch = self.folder / f"{arm}-{seed}"
        shutil.rmtree(scratch, ignore_errors=True)
        began = time.perf_counter()
        if arm == BASE:
            result: dict[str, Any] = {"exam": exam_of_folder(self.base, self.exam)}
        else:
            result = self.train(arm, seed, steps, scratch)
        result["seconds"] = round(time.perf_counter() - began)
        content = {"settings": self.fingerprint(cell, steps), "result": result}
        temporary = scratch.with_suffix(".tmp")
        temporary.write_text(json.dumps(content), encoding="utf-8")
        temporary.replace(scratch.with_suffix(".json"))
        shutil.rmtree(scratch, ignore_errors=True)


def main(bench: Bench, description: str, *, steps: int) -> None:
    """Make what is missing, and write docs/results/NAME.json from all of it."""
    arguments = _parse(description, steps)
    bench.folder.mkdir(parents=True, exist_ok=True)
    if arguments.cell:
        arm, seed = arguments.cell.rsplit(":", 1)
        bench.make((arm, int(seed)), arguments.steps)
        return
    arms = arguments.arms or bench.arms
    cells = [(BASE, 0), *((arm, seed) for seed in arguments.seeds for arm in arms)]
    _make_missing(bench, cells, arguments)
    results = {
        arm: [
            result
            for seed in ([0] if arm == BASE else arguments.seeds)
            if (result := bench.read((arm, seed), arguments.steps)) is not None
        ]
        for arm in (BASE, *arms)
    }
    summary = bench.summarize(results)
    print(json.dumps(summary, indent=1))
    if arguments.arms:
        return
    write_result(
        bench.name,
        command=f"python bench/{Path(sys.argv[0]).name}",
        seeds=arguments.seeds,
        raw={arm: [_without_exam(run) for run in runs] for arm, runs in results.items()},
        summary={
            "steps": arguments.steps,
            "problems": bench.exam.problems,
            **bench.facts(),
            **summary,
        },
    )


def _without_exam(run: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in run.items() if name != "exam"}


def _make_missing(bench: Bench, cells: Sequence[Cell], arguments: argparse.Namespace) -> None:
    """One process for each cell that is not there. Exits when one failed, once the rest is done."""
    waiting = [cell for cell in cells if bench.read(cell, arguments.steps) is None]
    print(f"{len(cells) - len(waiting)} of {len(cells)} arms are there already", file=sys.stderr)
    paths = [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | dict.fromkeys(THREADS, "1")
    environment |= {"PYTHONPATH": os.pathsep.join(filter(None, paths))}

    def run(cell: Cell) -> int:
        command = [*shlex.split(arguments.prefix), sys.executable, sys.argv[0]]
        command += ["--steps", str(arguments.steps), "--cell", f"{cell[0]}:{cell[1]}"]
        began = time.perf_counter()
        code = subprocess.run(command, env=environment, check=False).returncode
        took = time.perf_counter() - began
        print(f"{cell[0]} {cell[1]}: {took:.0f} s, exit {code}", file=sys.stderr, flush=True)
        return code

    with ThreadPoolExecutor(arguments.jobs) as pool:
        codes = list(pool.map(run, waiting))
    if failed := [cell for cell, code in zip(waiting, codes, strict=True) if code]:
        sys.exit(f"failed: {failed}")


def _parse(description: str, steps: int) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--arms", nargs="+", help="only these; no result is written")
    parser.add_argument("--jobs", type=int, default=2, help="processes at once")
    parser.add_argument("--prefix", default="", help="put before the command of each process")
    parser.add_argument("--cell", help="ARM:SEED, for the processes of this bench")
    return parser.parse_args()
