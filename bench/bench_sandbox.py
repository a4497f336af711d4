"""The sandbox: what one judgement costs, how many a second, and whether HumanEval's tests hold.

    python bench/bench_sandbox.py

One call of a one-line function, 30 times for each isolation that works here, in turn: medians, and
the time of a bare interpreter beside them. Then HumanEval: the reference solutions of all 164
problems, one at a time and with one thread a core, and three mutants of each, none of which should
pass. Writes docs/results/sandbox.json.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from forethought.grading.code import Call, CallTests
from forethought.grading.isolation import INTERPRETER, IsolationKind, why_not
from forethought.grading.sandbox import LocalSandbox
from forethought.grading.sandbox_process import Limits
from forethought.machine import usable_cores
from forethought.tasks.code import CodeProblem, CodeTask, humaneval_task
from record import write_result

REPEATS = 30
MUTANTS: dict[str, Callable[[CodeProblem], str]] = {
    "prompt_alone": lambda p: p.prompt,
    "returns_none": lambda p: f"def {p.example.meta['entry_point']}(*args): return None",
    "returns_argument": lambda p: f"def {p.example.meta['entry_point']}(*args): return args[0]",
}


def one_call() -> dict[str, list[float]]:
    tests = CallTests(entry_point="f", cases=(Call(args=(1,), expected=2),))
    kinds = [kind for kind in IsolationKind if why_not(kind) is None]
    seconds: dict[str, list[float]] = {kind.value: [] for kind in kinds}
    seconds["interpreter"] = []
    for _ in range(REPEATS):
        for kind in kinds:
            sandbox = LocalSandbox(Limits(seconds=30), allow_weak_sandbox=True, kind=kind)
            verdict = sandbox.run("def f(x): return x + 1", tests)
            assert verdict.score == 1.0, verdict
            seconds[kind.value].append(verdict.seconds)
        began = time.perf_counter()
        subprocess.run([INTERPRETER, "-I", "-S", "-B", "-c", "pass"], env={}, check=True)
        seconds["interpreter"].append(time.perf_counter() - began)
    return seconds


def judge_all(
    task: CodeTask, answer: Callable[[CodeProblem], str], num_threads: int
) -> tuple[float, list[float | None]]:
    """(seconds, scores) of one answer to each problem."""

    def judge(problem: CodeProblem) -> float | None:
        return task.grade(problem.example, f"```python\n{answer(problem)}\n```").score

    began = time.perf_counter()
    with ThreadPoolExecutor(num_threads) as pool:
        scores = list(pool.map(judge, task.problems))
    return time.perf_counter() - began, scores


def main() -> None:
    calls = one_call()
    print({name: statistics.median(seconds) for name, seconds in calls.items()}, file=sys.stderr)
    task = humaneval_task({"seconds": "30"})
    cores = usable_cores()
    summary: dict[str, object] = {
        "isolation": LocalSandbox().isolation.value,
        "milliseconds": {k: round(1000 * statistics.median(v), 1) for k, v in calls.items()},
    }
    raw: dict[str, object] = {"calls": calls}
    gold: dict[str, object] = {"problems": len(task), "cores": cores}
    for name, num_threads in (("one_thread", 1), ("all_cores", cores)):
        seconds, scores = judge_all(task, lambda p: p.prompt + p.example.answer, num_threads)
        gold["passed"] = min(scores.count(1.0), int(str(gold.get("passed", len(task)))))
        gold[name] = {
            "seconds": round(seconds, 2),
            "a_second": round(len(task) / seconds, 1),
            "milliseconds_each": round(1000 * seconds / len(task), 1),
        }
    summary["humaneval"] = gold
    passed = {}
    for name, mutant in MUTANTS.items():
        _, scores = judge_all(task, mutant, cores)
        passed[name] = scores.count(1.0)
        raw[name] = [p.example.id for p, s in zip(task.problems, scores, strict=True) if s != 0.0]
    summary["mutants_passed"] = passed
    print(summary, file=sys.stderr)
    command = "python bench/bench_sandbox.py"
    write_result("sandbox", command=command, seeds=[], raw=raw, summary=summary)


if __name__ == "__main__":
    main()
