"""Reinforcement learning with a verifiable reward.

All rollouts of an update are sampled ahead in one engine call (preemptive sampling, DASH arXiv
2505.17218), and those without advantage are dropped before any forward pass. By default one update
learns from them, so the policy that samples is the policy that learns: plain policy gradient, no
ratio and no clipping. With `num_iterations` or `minibatches` several updates share the rollouts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from forethought.errors import BrokenModel, TrainingStopped
from forethought.models.lora import save_result
from forethought.run import Run
from forethought.schema import RlRecipe
from forethought.training.backward import backward
from forethought.training.critic import load_critic, save_critic, update_critic
from forethought.training.example_scores import example_accuracies
from forethought.training.faults import Fault, LossNotFinite, report_fault
from forethought.training.filters import worth_learning
from forethought.training.health import watched
from forethought.training.held import (
    batch_number,
    ends_batch,
    hold,
    load_held,
    minibatch,
    save_held,
    starts_batch,
)
from forethought.training.learner import Learner, build_learner
from forethought.training.loop import Metrics, OnStep, run_steps
from forethought.training.measure import measure
from forethought.training.preflight import OnPreflight, fly, report_preflight
from forethought.training.rl_metrics import describe_learned, describe_rollouts, transcript_rows
from forethought.training.rollouts import (
    StepGrades,
    assign_advantages,
    grade_rollouts,
    sample_rollouts,
)
from forethought.training.scores import charge_rewards
from forethought.training.selection import Source, gather, load_selection, save_selection
from forethought.training.token_scores import score_tokens
from forethought.training.update import apply_update
from forethought.types import Example, RolloutGroup


def run_rl(
    recipe: RlRecipe,
    run: Run,
    on_step: OnStep | None = None,
    on_preflight: OnPreflight | None = None,
) -> Metrics:
    """Train the recipe's model on its task and save `model/` in the run folder.

    `on_preflight` hears what the rollouts before a new run show. Raises UserError before any model
    loads when the task or a reward function is wrong.
    """
    learner = build_learner(recipe, run)

    def step_function(step: int) -> Metrics:
        return train_step(learner, run, step)

    def save_extra(folder: Path) -> None:
        save_held(folder, learner.state.held)
        save_selection(folder, learner.state.selection)
        if learner.critic is not None:
            save_critic(folder, learner.critic)

    def load_extra(folder: Path) -> None:
        learner.state.held = load_held(folder)
        learner.state.selection = load_selection(folder)
        if learner.critic is not None:
            load_critic(folder, learner.critic)

    totals = run_steps(
        run,
        learner.policy,
        learner.optimizers,
        step_function,
        num_steps=recipe.num_steps,
        checkpoint_every=recipe.checkpoint_every,
        on_step=watched(run, recipe, on_step),
        on_resume=lambda step: start_or_resume(learner, run, step, on_preflight),
        save_extra=save_extra,
        load_extra=load_extra,
    )
    run.guard("model", lambda: save_result(learner.policy, learner.tokenizer, run.folder))
    return totals


def start_or_resume(
    learner: Learner, run: Run, step: int, on_preflight: OnPreflight | None = None
) -> None:
    """Give the sampler the weights to start from; look ahead and measure when the run is new."""
    learner.engine.update_weights(learner.policy, step)
    if step == 0 and learner.recipe.preflight_problems:
        found = fly(learner)
        run.write_json("preflight.json", found.to_json())
        report_preflight(found, on_preflight)
    if step == 0 and learner.eval_task is not None:
        run.log(0, measure(learner))


def check_flight(recipe: RlRecipe, on_preflight: OnPreflight) -> None:
    """The preflight alone, in a run folder that is gone afterwards."""
    with TemporaryDirectory() as folder:
        run = Run.create(
            Path(folder) / "run",
            stage=recipe.stage,
            recipe_text="",
            seed=recipe.seed,
            command=[],
        )
        with run:
            learner = build_learner(recipe, run)
            learner.engine.update_weights(learner.policy, 0)
            report_preflight(fly(learner), on_preflight)


def train_step(learner: Learner, run: Run, step: int) -> Metrics:
    """One optimizer step, as the list in docs/architecture.md."""
    recipe, clock = learner.recipe, Clock()
    metrics: Metrics = {}
    if starts_batch(recipe, step):
        with blame_updates(step - 1):
            metrics |= sample_batch(learner, run, step, clock)
    metrics |= learn(learner, run, step)
    clock.lap("update")
    learner.engine.update_weights(learner.policy, step)
    clock.lap("publish")
    if learner.eval_task is not None and (
        step % recipe.eval_every == 0 or step == recipe.num_steps
    ):
        with blame_updates(step):
            metrics |= measure(learner)
        clock.lap("eval")
    return metrics | clock.laps


@contextmanager
def blame_updates(count: int) -> Iterator[None]:
    """A model that cannot be sampled from after `count` updates was broken by them, if any."""
    try:
        yield
    except BrokenModel as error:
        if not count:
            raise
        raise TrainingStopped(
            f"after update {count} the policy's logits are not finite; start a new run with a "
            "lower optimizer.learning_rate"
        ) from error


def sample_batch(learner: Learner, run: Run, step: int, clock: Clock) -> Metrics:
    """Gather and filter the rollouts of one batch, and hold them for its updates."""
    recipe, number = learner.recipe, batch_number(learner.recipe, step)
    source = Source(recipe=recipe, task=learner.task, buckets=learner.state.buckets)

    def sample(examples: list[Example], first_place: int) -> list[RolloutGroup]:
        return sample_and_grade(learner, examples, first_place, step, clock)

    gathered = gather(source, learner.state.selection, number, sample)
    learner.state.selection = gathered.state
    learner.engine.release()
    charged = charge_rewards(learner, gathered.learned)
    assigned = assign_advantages(charged, recipe.estimator, recipe.scale_rewards)
    rollouts = [rollout for group in assigned for rollout in group.rollouts]
    graded = [r.grade for g in gathered.sampled for r in g.rollouts if r.grade is not None]
    learner.watch.look(graded, is_last=number == batch_number(recipe, recipe.num_steps))
    kept = worth_learning(rollouts, recipe)
    scores, found = score_tokens(learner, rollouts, kept)
    learner.state.held = hold(assigned, kept, scores)
    clock.lap("score")
    run.examples(step, example_accuracies(gathered.sampled))
    run.transcript(step, transcript_rows(assigned[: recipe.transcripts_per_step]))
    fresh = assigned[: len(assigned) - gathered.num_replayed]
    num_fresh = sum(len(group.rollouts) for group in fresh)
    num_kept = sum(i < num_fresh for i in kept)
    seconds = clock.laps["time/sample_seconds"]
    return describe_rollouts(gathered.sampled, num_kept, seconds) | gathered.metrics | found


def sample_and_grade(
    learner: Learner, examples: list[Example], first_place: int, step: int, clock: Clock
) -> list[RolloutGroup]:
    """Graded groups for `examples`, the batch's from `first_place` on, in one engine call."""
    recipe, number = learner.recipe, batch_number(learner.recipe, step)
    grades = StepGrades(learner.task, examples)
    groups = sample_rollouts(learner.engine, examples, recipe, number, grades, first_place)
    clock.lap("sample")
    groups = grade_rollouts(groups, learner.task, learner.parts, grades, recipe=recipe, step=step)
    clock.lap("grade")
    return groups


def learn(learner: Learner, run: Run, step: int) -> Metrics:
    """One update on the step's part of the batch that is held; the last part lets it go."""
    held, recipe = learner.state.held, learner.recipe
    assert held is not None, "the first step of a batch samples it, and a checkpoint holds it"
    mine = minibatch(held, recipe, step)
    kept = [place for place, i in enumerate(mine) if i in held.kept]
    rollouts = [held.rollouts[i] for i in mine]
    scores = None if held.scores is None else [held.scores[i] for i in mine]
    fault: Fault | None = None
    try:
        metrics = backward(learner, rollouts, kept, scores)
    except LossNotFinite as error:
        metrics, fault = {"loss/policy": math.nan}, error.fault
    update = apply_update(
        learner.policy,
        learner.optimizers,
        recipe.optimizer,
        step - 1,
        recipe.num_steps,
        is_sound=fault is None,
    )
    if learner.critic is not None:
        update_critic(learner.critic, skips=update.skipped)
    if update.skipped:
        fault = fault or Fault(cause="gradient", parameters=update.bad_parameters)
        report_fault(run, step, fault, describe_learned(rollouts, kept))
    if ends_batch(recipe, step):
        learner.state.held = None
    return metrics | update.metrics()


class Clock:
    """Seconds between laps, by name."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        name = f"time/{name}_seconds"
        self.laps[name] = self.laps.get(name, 0.0) + now - self._last
        self._last = now
