r"""Grading answers: speed, golds against their own rewrites, and agreement with Math-Verify.

    python bench/bench_grading.py --golds math500=PATH --golds gsm8k=PATH

`--golds` names JSONL files with an `answer` in each row (a worked solution will do); without them
only the tables and the speeds are measured. Math-Verify runs as its README has it, in a worker
that is killed after 12 seconds (its own timeout is 5). Writes docs/results/grading.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "bench" / "peers"), str(ROOT / "tests")]

from forethought.grading.answers import final_answer  # noqa: E402
from forethought.grading.jobs import begin, settle  # noqa: E402
from forethought.grading.math import begin_grade, grade_answer  # noqa: E402
from forethought.grading.workers import GradingPool, OutcomeStatus  # noqa: E402
from forethought.types import GradeStatus  # noqa: E402
from gold_rewrites import rewrites  # noqa: E402
from record import write_result  # noqa: E402
from test_grading_table import TABLE  # noqa: E402
from test_math_pairs import DIFFERENT, SAME  # noqa: E402

DEADLINE = 12.0
REPEATS = 5
COUNT = 20_000


def throughput() -> dict[str, float]:
    """Grades a second on one core, all answers different, so that no cache helps."""
    shapes: dict[str, tuple[str, Callable[[int], str]]] = {
        "integers": ("1,234", str),
        "fractions": ("\\frac{3}{7}", lambda n: f"\\frac{{{n}}}{{7}}"),
        "tuples": ("(3,4)", lambda n: f"({n}, {n + 1})"),
        "formulas": ("3\\sqrt{3}", lambda n: f"{n}\\sqrt{{3}}"),
    }
    found = {}
    for name, (gold, answer) in shapes.items():
        rates = []
        for repeat in range(REPEATS):
            numbers = range(repeat * COUNT, (repeat + 1) * COUNT)
            completions = [f"<think>\n3 + 4 = 7\n</think>\n\\boxed{{{answer(n)}}}" for n in numbers]
            began = time.process_time()
            for completion in completions:
                grade_answer(gold, completion)
            rates.append(COUNT / (time.process_time() - began))
        found[name] = round(max(rates))
    return found


def pool_costs() -> dict[str, float]:
    """Seconds of a call to the pool, of starting a worker, and of one pair by Math-Verify."""
    with GradingPool(num_workers=1) as pool:
        began = time.perf_counter()
        pool.run("forethought.grading.algebra:is_same", "\\max(a,b)", "\\max(b,a)")
        start = time.perf_counter() - began
        calls, pairs = [], []
        for number in range(200):
            began = time.perf_counter()
            pool.run("forethought.grading.algebra:is_same", "1", "2")
            calls.append(time.perf_counter() - began)
            pairs.append(
                pool.run(
                    "forethought.grading.algebra:is_same",
                    f"\\max(a,{number})",
                    f"\\max({number},a)",
                ).seconds
            )
    return {
        "start_seconds": round(start, 3),
        "call_microseconds": round(1e6 * statistics.median(calls)),
        "pair_milliseconds": round(1e3 * statistics.median(pairs), 2),
    }


def golds_of(path: Path) -> list[str]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    return [final_answer(str(row["answer"])) for row in rows]


def measure_golds(golds: Sequence[str], pool: GradingPool) -> dict[str, Any]:
    """How many golds are right as they are, and in how many rewrites, by us and by Math-Verify."""
    cases = [(gold, text) for gold in golds for text in (gold, *rewrites(gold).values())]
    ours = [
        settle(begin_grade(gold, f"\\boxed{{{text}}}"), pool).score == 1.0 for gold, text in cases
    ]
    theirs = [judged for judged, _ in math_verify((g, f"\\boxed{{{t}}}") for g, t in cases)]
    is_self = [gold == text for gold, text in cases]
    least = min(len(rewrites(gold)) for gold in golds)
    return {
        "golds": len(golds),
        "rewrites": len(cases) - sum(is_self),
        "least_rewrites_of_one": least,
        "ours_golds": sum(o for o, s in zip(ours, is_self, strict=True) if s),
        "ours_rewrites": sum(o for o, s in zip(ours, is_self, strict=True) if not s),
        "math_verify_golds": sum(t is True for t, s in zip(theirs, is_self, strict=True) if s),
        "math_verify_rewrites": sum(
            t is True for t, s in zip(theirs, is_self, strict=True) if not s
        ),
        "missed": [case for case, right in zip(cases, ours, strict=True) if not right],
    }


def math_verify(pairs: Iterable[tuple[str, str]]) -> list[tuple[bool | None, float]]:
    """(verdict, seconds) of each pair; None where it had to be killed or failed."""
    found: list[tuple[bool | None, float]] = []
    with GradingPool(
        num_workers=1, deadline_seconds=DEADLINE, packages=("math_verify_verdict",)
    ) as pool:
        for gold, completion in pairs:
            outcome = pool.run("math_verify_verdict:verdict", gold, completion)
            is_answered = outcome.status is OutcomeStatus.OK
            found.append((outcome.value if is_answered else None, outcome.seconds))
    return found


def measure_table(
    rows: Sequence[tuple[str, str, bool]], pool: GradingPool
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(summary, rows): what both graders say of each (gold, completion, is right), how fast."""
    theirs = math_verify((gold, completion) for gold, completion, _ in rows)
    raw = []
    for (gold, completion, right), (verdict, seconds) in zip(rows, theirs, strict=True):
        began = time.perf_counter()
        grade = begin(begin_grade(gold, completion), pool).result()
        raw.append(
            {
                "gold": gold[:120],
                "completion": completion[:120],
                "right": right,
                "ours": grade.status is GradeStatus.CORRECT,
                "our_seconds": round(time.perf_counter() - began, 6),
                "math_verify": verdict,
                "math_verify_seconds": round(seconds, 4),
            }
        )
    summary: dict[str, Any] = {"rows": len(raw)}
    for name in ("ours", "math_verify"):
        key = "our_seconds" if name == "ours" else "math_verify_seconds"
        spent = [row[key] for row in raw]
        summary |= {
            f"{name}_right": sum(row[name] is row["right"] for row in raw),
            f"{name}_false_positives": sum(row[name] is True and not row["right"] for row in raw),
            f"{name}_false_negatives": sum(row[name] is not True and row["right"] for row in raw),
            f"{name}_killed": sum(row[name] is None for row in raw),
            f"{name}_median_milliseconds": round(1e3 * statistics.median(spent), 3),
            f"{name}_slowest_seconds": round(max(spent), 3),
            f"{name}_total_seconds": round(sum(spent), 2),
        }
    return summary, raw


def agree(row: dict[str, Any]) -> bool:
    return bool(row["ours"] == row["math_verify"] == row["right"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--golds", metavar="NAME=PATH", action="append", default=[])
    golds = dict(item.split("=", 1) for item in parser.parse_args().golds)
    summary: dict[str, Any] = {"throughput": throughput(), "pool": pool_costs()}
    raw: dict[str, Any] = {}
    attacks = [(g, c, s is GradeStatus.CORRECT) for g, c, s in TABLE if len(c) < 1_000_000]
    pairs = [(g, f"\\boxed{{{a}}}", True) for g, a in SAME]
    pairs += [(g, f"\\boxed{{{a}}}", False) for g, a in DIFFERENT]
    with GradingPool(num_workers=1) as pool:
        for name, rows in (("table", attacks), ("pairs", pairs)):
            summary[name], found = measure_table(rows, pool)
            raw[name] = [row for row in found if name == "table" or not agree(row)]
            print(json.dumps({name: summary[name]}), file=sys.stderr)
        for name, path in golds.items():
            counts = measure_golds(golds_of(Path(path)), pool)
            raw[name] = counts.pop("missed")
            summary[name] = counts
            print(json.dumps({name: counts}), file=sys.stderr)
    write_result(
        "grading",
        command="python bench/bench_grading.py"
        + "".join(f" --golds {name}=PATH" for name in golds),
        seeds=[],
        raw=raw,
        summary=summary,
    )


if __name__ == "__main__":
    main()
