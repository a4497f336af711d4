"""The table of the DASH paper (arXiv 2505.17218) on this machine, with the bundled model.

    python bench/bench_dash.py [--seeds 0 1 2] [--steps 20]

One GRPO recipe, seven ways to do its steps, each adding to the one before:

    a  the paper's baseline: sampled and trained a micro-batch of 8 rollouts at a time, with a KL
       penalty to a reference model
    b  all rollouts of a step sampled ahead (preemptive sampling)
    c  micro-batches without advantage skip the backward pass (gradient filtering as published)
    d  they skip the forward passes too
    e  no KL penalty, no reference model
    f  Forethought's own step
    g  the quickstart's 32 prompts x 4, learned from in two halves, with a rate that falls to a
       half: twice as many updates, half of the rollouts (chosen on other seeds)

(a) to (e) lay a micro-batch out as TRL 0.16 did: one group padded to its longest rollout, its head
over every completion position. All use our sampler, with which (a) wastes less than the baseline
did; so a_hf and c_hf are (a) and (c) with transformers.generate, as TRL 0.16 sampled by default.
Seconds are those of the steps. At the end every policy answers the same held-out problems, two
samples each; the interval of the difference from (a) pairs problems. Writes docs/results/dash.json,
dash_bf16.json on a processor with that arithmetic, dash_amx.json on one with AMX.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from device import name_here
from forethought.config import parse_recipe
from forethought.evaluation.evaluate import evaluate
from forethought.evaluation.metrics import paired_difference
from forethought.models.heads import token_logprobs
from forethought.models.pages import keep_pages
from forethought.run import Run
from forethought.schema import RlRecipe
from forethought.training.algorithms import ALGORITHMS
from forethought.training.held import updates_per_batch
from forethought.training.learner import Learner, build_learner, check_rl
from forethought.training.losses import kl_penalty, token_weights
from forethought.training.rl import start_or_resume, train_step
from forethought.training.rollouts import (
    assign_advantages,
    grade_rollouts,
    sample_rollouts,
)
from forethought.training.selection import Source, draw_indices
from forethought.training.stages import start_run
from forethought.training.update import apply_update
from forethought.types import Rollout, RolloutGroup
from hf_sampler import HfSampler
from record import write_result

KL = 0.04  # TRL 0.16's default
PROBLEMS, SAMPLES = 400, 2


@dataclass(frozen=True)
class Way:
    name: str
    is_ahead: bool = True
    skips_backward: bool = True
    skips_forward: bool = True
    has_kl: bool = False
    is_own: bool = False
    has_hf_sampler: bool = False
    changes: tuple[str, ...] = ()  # to the recipe


SMALLER = (
    "group_size=4",
    "minibatches=2",
    "optimizer.schedule=linear",
    "optimizer.final_fraction=0.5",
)
WAYS = [
    Way("a", is_ahead=False, skips_backward=False, skips_forward=False, has_kl=True),
    Way("b", skips_backward=False, skips_forward=False, has_kl=True),
    Way("c", skips_forward=False, has_kl=True),
    Way("d", has_kl=True),
    Way("e"),
    Way("f", is_own=True),
    Way("g", is_own=True, changes=SMALLER),
    Way(
        "a_hf",
        is_ahead=False,
        skips_backward=False,
        skips_forward=False,
        has_kl=True,
        has_hf_sampler=True,
    ),
    Way("c_hf", skips_forward=False, has_kl=True, has_hf_sampler=True),
]


def recipe_of(way: Way, seed: int, steps: int, folder: Path) -> RlRecipe:
    recipe = parse_recipe(
        {
            "stage": "rl",
            "run_dir": str(folder / f"{way.name}-{seed}"),
            "seed": seed,
            "model": "bundled:seedling",
            "task": "sum+story+equation+rule",
            "num_steps": steps,
            "prompts_per_step": 32,
            "group_size": 8,
            "max_tokens": 80,
            "stop_at_boxed": False,
            "estimator": "rloo" if way.is_own else "grpo",
            "kl_coefficient": KL if way.has_kl else 0.0,
            "eval_problems": 0,
            "transcripts_per_step": 0,
            "optimizer": {"learning_rate": 4e-4, "warmup_steps": 5},
            "reward": {"parts": {"accuracy": 1.0, "format": 0.1}},
        },
        list(way.changes),
    )
    assert isinstance(recipe, RlRecipe), "the recipe above is one of RL"
    return recipe.model_copy(update={"num_steps": steps * updates_per_batch(recipe)})


class Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now


def plain_step(learner: Learner, way: Way, step: int, clock: Clock) -> None:
    recipe = learner.recipe
    indices, learner.state.selection = draw_indices(
        Source(recipe=recipe, task=learner.task),
        learner.state.selection,
        step,
        recipe.prompts_per_step,
    )
    examples = [learner.task[index] for index in indices]
    engine: Any = HfSampler(learner.engine) if way.has_hf_sampler else learner.engine
    if way.is_ahead:
        groups = sample_rollouts(engine, examples, recipe, step)
    else:
        groups = [sample_rollouts(engine, [e], recipe, step)[0] for e in examples]
    clock.lap("sample")
    groups = grade_rollouts(groups, learner.task, learner.parts)
    groups = assign_advantages(groups, recipe.estimator)
    clock.lap("grade")
    for group in groups:
        train_group(learner, way, group, len(groups), clock)
    apply_update(learner.policy, learner.optimizers, recipe.optimizer, step - 1, recipe.num_steps)
    learner.engine.update_weights(learner.policy, step)
    clock.lap("optimizer")


def train_group(
    learner: Learner, way: Way, group: RolloutGroup, num_groups: int, clock: Clock
) -> None:
    """Forward and backward of one group's rollouts, padded to the longest."""
    is_dead = not any(rollout.advantage for rollout in group.rollouts)
    if is_dead and way.skips_forward:
        return
    batch, weights, advantages = lay_out(learner, group.rollouts, num_groups)
    logprobs = token_logprobs(learner.policy, *batch, learner.recipe.temperature)
    loss = -(weights * advantages * logprobs).sum()
    clock.lap("forward")
    if way.has_kl:
        assert learner.reference is not None, "the recipe has a KL penalty"
        with torch.no_grad():
            reference = token_logprobs(learner.reference, *batch, learner.recipe.temperature)
        loss = loss + KL * kl_penalty("k3", logprobs, reference, weights)
        clock.lap("reference")
    if not (is_dead and way.skips_backward):
        loss.backward()  # type: ignore[no-untyped-call]
        clock.lap("backward")


def lay_out(learner: Learner, rollouts: Sequence[Rollout], num_groups: int) -> Any:
    """Input ids, positions and targets of every completion position, padding included, then the
    weights and advantages of these positions: padding weighs nothing."""
    width = max(len(r.token_ids) for r in rollouts)
    prompt = rollouts[0].sampled_mask.index(True)
    per_token = token_weights(
        ALGORITHMS[learner.recipe.estimator].aggregation,
        [r.num_sampled for r in rollouts],
        learner.recipe.max_tokens,
    )
    pad = learner.tokenizer.pad_token_id
    padded = [[*r.token_ids, *[pad] * (width - len(r.token_ids))] for r in rollouts]
    input_ids = torch.tensor(padded)
    columns = torch.arange(prompt, width)
    rows = torch.arange(len(rollouts))[:, None]
    positions = (rows * width + columns - 1).flatten()
    targets = input_ids[:, prompt:].flatten()
    lengths = torch.tensor([len(r.token_ids) for r in rollouts])[:, None]
    weights = torch.tensor(per_token)[:, None] / num_groups * (columns < lengths)
    advantages = torch.tensor([r.advantage or 0.0 for r in rollouts])[:, None].expand(weights.shape)
    return (input_ids, positions, targets), weights.flatten(), advantages.flatten()


def train(way: Way, seed: int, steps: int, folder: Path) -> dict[str, Any]:
    recipe = recipe_of(way, seed, steps, folder)
    with start_run(recipe, ["bench_dash"]) as run:
        learner = build_learner(recipe, run)
        keep_pages(learner.policy)  # as a run does, for every way
        start_or_resume(learner, run, 0)
        seconds, parts = time_steps(learner, way, run)
        scores = answer(learner, recipe)
    accuracy = 100 * sum(scores) / len(scores)
    result = {"seconds": seconds, "parts": parts, "accuracy": accuracy, "scores": scores}
    shown = {name: value for name, value in result.items() if name != "scores"}
    print(way.name, seed, json.dumps(shown), file=sys.stderr)
    return result


def time_steps(learner: Learner, way: Way, run: Run) -> tuple[float, dict[str, float]]:
    clock = Clock()
    began = time.perf_counter()
    for step in range(1, learner.recipe.num_steps + 1):
        if way.is_own:
            for name, value in train_step(learner, run, step).items():
                if name.startswith("time/"):
                    short = name.removeprefix("time/").removesuffix("_seconds")
                    clock.seconds[short] = clock.seconds.get(short, 0.0) + value
        else:
            plain_step(learner, way, step, clock)
    return time.perf_counter() - began, clock.seconds


def answer(learner: Learner, recipe: RlRecipe) -> list[float]:
    """The mean score of every held-out problem."""
    _, held_out, _ = check_rl(recipe)
    found = evaluate(
        learner.engine,
        held_out,
        num_samples=SAMPLES,
        max_tokens=recipe.max_tokens,
        limit=PROBLEMS,
        stop_at_boxed=recipe.stop_at_boxed,
    )
    return [sum(s or 0.0 for s in result.scores) / SAMPLES for result in found.results]


def summarize(raw: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    base = raw["a"]
    baseline = statistics.fmean(run["seconds"] for run in base)
    baseline_hf = statistics.fmean(run["seconds"] for run in raw["a_hf"])
    base_scores = [score for run in base for score in run["scores"]]
    summary = {}
    for name, runs in raw.items():
        seconds = statistics.fmean(run["seconds"] for run in runs)
        gap = paired_difference(base_scores, [score for run in runs for score in run["scores"]])
        parts = {key: 0.0 for run in runs for key in run["parts"]}
        for run in runs:
            for key, value in run["parts"].items():
                parts[key] += value / len(runs)
        summary[name] = {
            "seconds": round(seconds, 1),
            "saved_percent": round(100 * (1 - seconds / baseline), 1),
            "saved_percent_hf": round(100 * (1 - seconds / baseline_hf), 1),
            "accuracy": round(sum(run["accuracy"] for run in runs) / len(runs), 1),
            "accuracy_of_seeds": [round(run["accuracy"], 1) for run in runs],
            "difference": round(100 * gap.mean, 1),
            "difference_low": round(100 * gap.low, 1),
            "difference_high": round(100 * gap.high, 1),
            "parts": {key: round(value, 1) for key, value in parts.items()},
        }
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")  # as the command sets it
    raw: dict[str, list[dict[str, Any]]] = {way.name: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as temporary:
        for seed in arguments.seeds:
            for way in WAYS:  # in turn, so that a busy while falls on all
                raw[way.name].append(train(way, seed, arguments.steps, Path(temporary)))
    write_result(
        name_here("dash"),
        command="python bench/bench_dash.py",
        seeds=arguments.seeds,
        raw={
            name: [{k: v for k, v in run.items() if k != "scores"} for run in runs]
            for name, runs in raw.items()
        },
        summary=summarize(raw),
    )


if __name__ == "__main__":
    main()
