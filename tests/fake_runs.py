"""Run folders' contents as training and quickstart write them, for tests of what reads them."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

Row = dict[str, Any]
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>"


def rl_metrics(num_steps: int) -> list[Row]:
    """Rows as RL training writes them: a model that learns to be right and to think first."""
    draw = random.Random(0)
    rows = [_eval_row(0, num_steps, draw)]
    for step in range(1, num_steps + 1):
        rows.append(_train_row(step, num_steps, draw))
        if step % max(1, num_steps // 8) == 0:
            rows.append(_eval_row(step, num_steps, draw))
    return rows


def _progress(step: int, num_steps: int) -> float:
    return 1 / (1 + math.exp(-9 * (step / num_steps - 0.4)))


def _eval_row(step: int, num_steps: int, draw: random.Random) -> Row:
    right = 0.29 + 0.57 * _progress(step, num_steps) + draw.uniform(-0.01, 0.01)
    length = 31.0 + 13 * _progress(step, num_steps)
    return {
        "step": step,
        "eval/accuracy": right,
        "eval/accuracy_low": right - 0.035,
        "eval/accuracy_high": right + 0.035,
        "eval/length_mean": length,
        "eval/length_low": length - 1.2,
        "eval/length_high": length + 1.2,
        "time/eval_seconds": 1.7,
    }


def _train_row(step: int, num_steps: int, draw: random.Random) -> Row:
    p = _progress(step, num_steps)

    def noisy(value: float, noise: float) -> float:
        return min(1.0, max(0.0, draw.gauss(value, noise)))

    right, silent, unclosed = noisy(0.3 + 0.56 * p, 0.03), 0.22 * (1 - p), 0.06 * (1 - p) + 0.01
    seconds = {"sample": 0.9, "grade": 0.04, "update": 0.7, "publish": 0.01, "checkpoint": 0.03}
    return {
        "step": step,
        "reward/mean": right + 0.1 * (0.7 + 0.29 * p),
        "reward/std": 0.47 - 0.15 * p,
        "reward/accuracy": right,
        "reward/format": 0.1 * (0.7 + 0.29 * p),
        "rollout/signal_frac": noisy(0.9 - 0.4 * p, 0.05),
        "rollout/kept_frac": noisy(0.7 - 0.35 * p, 0.05),
        "rollout/length_mean": draw.gauss(31 + 13 * p, 0.9),
        "rollout/truncated_frac": 0.04 * (1 - p),
        "rollout/think_frac": noisy(0.66 + 0.33 * p, 0.01),
        "grade/correct_frac": right,
        "grade/wrong_frac": 1 - right - (silent + unclosed) * (1 - right),
        "grade/no_answer_frac": silent * (1 - right),
        "grade/unclosed_think_frac": unclosed * (1 - right),
        "rollout/tokens_per_second": draw.gauss(9100, 240),
        "policy/entropy": 0.41 - 0.22 * p,
        "optim/learning_rate": 3e-4 * min(1, step / 10),
        "optim/grad_norm": draw.lognormvariate(-0.5, 0.3),
        "extra/unheard_of": 7.25,
        "time/step_seconds": sum(seconds.values()) + 0.02,
        **{f"time/{name}_seconds": value for name, value in seconds.items()},
    }


def a_summary() -> Row:
    """What quickstart leaves behind."""

    def row(name: str, before: float, after: float, half: float, kind: str) -> Row:
        diff = after - before
        bounds = {"diff": diff, "low": diff - half, "high": diff + half}
        return {"name": name, "before": before, "after": after, "kind": kind, **bounds}

    return {
        "title": "Seedling learned to reason",
        "note": "400 held-out problems of four families, none of them seen in training.",
        "table": [
            row("Samples right (mean of 8)", 0.312, 0.861, 0.031, "fraction"),
            row("Greedy right", 0.622, 0.894, 0.046, "fraction"),
            row("Majority of 16 right", 0.905, 0.912, 0.02, "fraction"),
            row("Completion length", 31.2, 44.1, 1.3, "tokens"),
        ],
        "strategies": [
            {"name": name, "before": b, "after": a, "tokens_before": t, "tokens_after": u}
            for name, b, a, t, u in (
                ("greedy", 0.62, 0.894, 29.9, 43.2),
                ("sample", 0.312, 0.861, 31.2, 44.1),
                ("majority@16", 0.905, 0.912, 499.0, 705.6),
            )
        ],
        "families": [
            {"name": "sums", "before": 0.41, "after": 0.95},
            {"name": "linear equations", "before": 0.27, "after": 0.84},
            {"name": "countdown", "before": 0.12, "after": 0.58},
        ],
        "traces": [
            {
                "question": "What is 47 + 38 + 26?",
                "gold": "111",
                "before": "\\boxed{101}",
                "before_status": "wrong",
                "after": "<think>\n47 + 38 = 85\n85 + 26 = 111\n</think>\n\\boxed{111}",
                "after_status": "correct",
            },
            {
                "question": "Solve 4x + 7 = 51.",
                "gold": "11",
                "before": "<think>\n4x = 51 - 7\n4x = 58\n" + HOSTILE,
                "before_status": "unclosed_think",
                "after": "<think>\n4x = 51 - 7\n4x = 44\nx = 11\n</think>\n\\boxed{11}",
                "after_status": "correct",
            },
        ],
        "seconds": {"measure": 41.0, "train": 181.3, "compare": 22.4, "report": 0.6},
    }


def write_jsonl(path: Path, rows: list[Row]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
