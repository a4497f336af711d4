"""Three findings of the DASH paper (arXiv 2505.17218), looked for in the bundled model.

    python bench/bench_findings.py [--seeds 0 1 2] [--jobs 2] [--steps 20]

    pg            plain policy gradient: one update for each batch of 256 rollouts (K = 1), no KL
    kl            the same with a KL penalty of 0.04
    ppo_multi     three passes over each batch, clipped (K = 3)
    ppo_mini      32 updates a batch, one for every 8 rollouts, clipped (K = 32)
    sft           supervised, on worked traces without a fault
    sft_flawed    supervised, on worked traces as flawed as those of pretraining

All start from the bundled model. The RL arms see the same number of rollouts, 32 prompts x 8 a
batch of sums and stories; the supervised arms make as many updates as `pg`, each of 256 traces of
the same two families. Learning rate and warm-up are the same, the warm-up counted in batches.
Accuracy is that of the last step, on test problems of both families and of two others, never
trained on here: what was forgotten. Results are kept in .bench/findings, so that an interrupted
bench goes on. Writes docs/results/findings.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from arms import Bench, Exam, exam_of_folder, main, over_seeds, pooled
from forethought.config import AnyRecipe, dump_recipe, parse_recipe
from forethought.evaluation.metrics import paired_difference
from forethought.training.stages import run_stage, start_run

BASE = "bundled:seedling"
TRAINED, OTHERS = ("sum", "story"), ("equation", "rule")
EXAM = Exam(families=(*TRAINED, *OTHERS), problems=200, samples=2)
RATE, WARMUP = 4e-4, 5
PROMPTS, SIBLINGS = 32, 8

REUSE: dict[str, dict[str, Any]] = {
    "pg": {},
    "kl": {"kl_coefficient": 0.04},
    "ppo_multi": {"num_iterations": 3},
    "ppo_mini": {"minibatches": 32},
}
FLAWED = {"slip_rate": 0.12, "early_stop": 0.08, "skip_steps": 0.10, "verbose": 0.12}
QUALITY: dict[str, dict[str, float]] = {"sft": {}, "sft_flawed": FLAWED}
ARMS = (*REUSE, *QUALITY)
PAIRS = (  # (what is compared, from, to)
    ("rl_over_sft", "sft", "pg"),
    ("rl_over_sft_flawed", "sft_flawed", "pg"),
    ("multi_over_pg", "pg", "ppo_multi"),
    ("mini_over_pg", "pg", "ppo_mini"),
    ("kl_over_none", "pg", "kl"),
)


def recipe_of(arm: str, seed: int, steps: int, folder: Path) -> AnyRecipe:
    reuse = REUSE.get(arm, {})
    updates = reuse.get("num_iterations", 1) * reuse.get("minibatches", 1)
    shared = {
        "run_dir": str(folder),
        "seed": seed,
        "model": BASE,
        "num_steps": steps * updates,
        "checkpoint_every": steps * updates,
        "optimizer": {"learning_rate": RATE, "warmup_steps": WARMUP * updates},
    }
    if arm in QUALITY:
        families = dict.fromkeys(TRAINED, 1.0)
        mixture = {"families": families, "max_difficulty": {"sum": 4, "story": 3}}
        return parse_recipe(
            shared
            | {"stage": "sft", "traces_per_step": PROMPTS * SIBLINGS}
            | {"mixture": mixture | {"quality": QUALITY[arm]}}
        )
    return parse_recipe(
        shared
        | {
            "stage": "rl",
            "task": "+".join(TRAINED),
            "prompts_per_step": PROMPTS,
            "group_size": SIBLINGS,
            "max_tokens": EXAM.max_tokens,
            "stop_at_boxed": False,
            "estimator": "grpo",
            "eval_problems": 0,
            "transcripts_per_step": 1,
            "reward": {"parts": {"accuracy": 1.0}},
        }
        | reuse
    )


def settings_of(arm: str, seed: int, steps: int) -> list[Any]:
    return [dump_recipe(recipe_of(arm, seed, steps, Path(".")))]


def train(arm: str, seed: int, steps: int, folder: Path) -> dict[str, Any]:
    recipe = recipe_of(arm, seed, steps, folder)
    with start_run(recipe, ["bench_findings"]) as run:
        totals = run_stage(recipe, run)
        rows = run.metrics()
    return {
        "exam": exam_of_folder(folder / "model", EXAM),
        "train_seconds": round(sum(row.get("time/step_seconds", 0.0) for row in rows)),
        "reward": [round(row["reward/mean"], 4) for row in rows if "reward/mean" in row],
        "totals": totals,
    }


def whole(run: dict[str, Any], families: Sequence[str]) -> dict[str, Any]:
    return pooled(run["exam"], families)


def summarize(cells: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """By arm: the exam over seeds in the trained families and the others; then the differences."""
    summary: dict[str, Any] = {}
    for arm, runs in cells.items():
        summary[arm] = {
            "trained": over_seeds([whole(run, TRAINED) for run in runs]),
            "others": over_seeds([whole(run, OTHERS) for run in runs]),
        }
        if arm != "base":
            last = [fmean(run["reward"][-5:]) for run in runs if run["reward"]]
            summary[arm]["seconds"] = round(fmean(run["train_seconds"] for run in runs))
            summary[arm]["last_reward"] = round(100 * fmean(last), 1) if last else None
            summary[arm]["worst_late_reward"] = _worst_late(runs)
    for name, before, after in PAIRS:
        if before in cells and after in cells:
            summary[name] = {
                where: difference(cells[before], cells[after], families)
                for where, families in (("trained", TRAINED), ("others", OTHERS))
            }
    return summary


def _worst_late(runs: Sequence[dict[str, Any]]) -> float | None:
    """Percent: the lowest mean reward of a batch in the second half of any run, which shows a
    collapse or a swing that the last step hides."""
    halves = [run["reward"][len(run["reward"]) // 2 :] for run in runs if run["reward"]]
    return round(100 * min(map(min, halves)), 1) if halves else None


def difference(
    before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]], families: Sequence[str]
) -> dict[str, float]:
    """Points of accuracy and their 95% interval, problem by problem, each the mean over seeds."""
    found: dict[str, float] = {}
    for kind in ("greedy", "sampled"):
        sides = [
            [
                fmean(scores)
                for scores in zip(*(whole(r, families)[kind] for r in runs), strict=True)
            ]
            for runs in (before, after)
        ]
        gap = paired_difference(*sides)
        found[kind] = round(100 * gap.mean, 1)
        found[f"{kind}_low"] = round(100 * gap.low, 1)
        found[f"{kind}_high"] = round(100 * gap.high, 1)
    return found


BENCH = Bench(
    name="findings",
    arms=ARMS,
    base=BASE,
    exam=EXAM,
    settings_of=settings_of,
    train=train,
    summarize=summarize,
)

if __name__ == "__main__":
    main(BENCH, __doc__ or "", steps=20)
