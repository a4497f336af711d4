"""A few rollouts before a new run trains: is there anything to learn, does it fit, how long will it
take.

They are of the training task and sampled as training samples, with draws of their own (those of
batch 0, which training never makes); their gradient is computed once and thrown away. Nothing that
comes later depends on them.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, pairwise
from statistics import fmean
from typing import Any

from forethought.evaluation.evaluate import ks
from forethought.evaluation.metrics import pass_at_k
from forethought.models.load import context_of
from forethought.sampling.draw import stable_seed
from forethought.schema import RlRecipe
from forethought.training.backward import backward
from forethought.training.critic import update_critic
from forethought.training.faults import LossNotFinite
from forethought.training.filters import worth_learning
from forethought.training.footprint import Footprint, attention_width, footprint
from forethought.training.health import NamedWarning, sentence
from forethought.training.held import updates_per_batch
from forethought.training.history import WINDOW, History
from forethought.training.learner import Learner
from forethought.training.pieces import is_cheaper
from forethought.training.rl_metrics import describe_rollouts
from forethought.training.rollouts import (
    StepGrades,
    assign_advantages,
    grade_rollouts,
    sample_rollouts,
)
from forethought.training.scores import charge_rewards
from forethought.training.subset import keep_most_varied
from forethought.training.symptoms import pays_for_answers, symptoms_of
from forethought.training.text import shuffled_index
from forethought.training.token_scores import score_tokens
from forethought.types import Example, Rollout, RolloutGroup, Task

logger = logging.getLogger("forethought")

# Those of the signs of a run that one step can show.
SIGNS = (
    "TooEasy",
    "TooHard",
    "NoSignal",
    "Truncation",
    "UnreadAnswers",
    "UnreadableReferences",
    "Ungraded",
    "GraderTimeouts",
    "GraderErrors",
    "SamplerGap",
)
_CUT_OFF = 0.05  # share of truncated completions from which max_tokens is looked at
_NEARLY_ALL = 0.7  # of max_tokens: where right answers need so much, more would be right with more


@dataclass(frozen=True, slots=True, kw_only=True)
class Seconds:
    """What the preflight took, and what an update of the run will take by that measure."""

    sample: float
    grade: float
    update: float
    total: float
    step: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Preflight:
    """What the rollouts show; docs/training.md defines every field."""

    task: str
    num_groups: int
    group_size: int
    num_steps: int
    accuracy: float | None
    pass_at: Mapping[int, float]
    reward_mean: float | None
    signal_frac: float
    all_right_frac: float
    none_right_frac: float
    truncated_frac: float
    unread_frac: float
    length_mean: float
    length_p95: int | None
    suggested_max_tokens: int | None
    entropy: float
    sampler_gap: float | None
    seconds: Seconds
    memory: Footprint
    warnings: tuple[NamedWarning, ...]

    def to_json(self) -> dict[str, Any]:
        """The fields, with the memory's sum; what is not finite or unknown is null."""
        memory = asdict(self.memory) | {"update_bytes": self.memory.update_bytes}
        return asdict(self) | {"memory": memory}


OnPreflight = Callable[[Preflight], None]


def report_preflight(found: Preflight, on_preflight: OnPreflight | None) -> None:
    """Tell `on_preflight`, then log what it warns of."""
    if on_preflight is not None:
        on_preflight(found)
    for warning in found.warnings:
        logger.warning("%s: %s", warning.name, warning.text)


def fly(learner: Learner) -> Preflight:
    """Sample, grade and learn from a few groups, and forget them. The engine has the weights."""
    recipe, began = learner.recipe, time.perf_counter()
    examples = preflight_examples(learner.task, recipe)
    _warm_up(learner, examples)
    marks = [time.perf_counter()]
    grades = StepGrades(learner.task, examples)
    groups = sample_rollouts(learner.engine, examples, recipe, 0, grades)
    learner.engine.release()
    marks.append(time.perf_counter())
    groups = grade_rollouts(groups, learner.task, learner.parts, grades, recipe=recipe, step=0)
    marks.append(time.perf_counter())
    learned = _learn(learner, groups)
    marks.append(time.perf_counter())
    metrics = describe_rollouts(groups, 0, marks[1] - marks[0]) | learned
    return _summary(learner, groups, metrics, _seconds(recipe, len(groups), began, marks))


def preflight_examples(task: Task, recipe: RlRecipe) -> list[Example]:
    """Problems from all over the task, no more than a step has. A task of fewer deals them again,
    as a step does: one problem and 8 samples say too little of it."""
    count = min(recipe.preflight_problems, recipe.prompts_per_step)
    seed = stable_seed("preflight", recipe.seed)
    return [task[shuffled_index(len(task), seed, i)] for i in range(count)]


def _warm_up(learner: Learner, examples: Sequence[Example]) -> None:
    """The first tokens pay for choosing and compiling kernels, which is no part of a step."""
    few = learner.recipe.model_copy(update={"group_size": 2, "max_tokens": 2})
    sample_rollouts(learner.engine, examples[:1], few, 0)


def _learn(learner: Learner, groups: Sequence[RolloutGroup]) -> dict[str, float]:
    """The metrics of one pass for the gradient, which is thrown away; {} when nothing teaches."""
    recipe = learner.recipe
    charged = charge_rewards(learner, groups)
    if recipe.select.keep_per_group is not None:
        charged = [keep_most_varied(group, recipe.select.keep_per_group) for group in charged]
    rollouts = _rollouts(assign_advantages(charged, recipe.estimator, recipe.scale_rewards))
    kept = worth_learning(rollouts, recipe)
    if not kept:
        return {}
    scores, _ = score_tokens(learner, rollouts, kept)
    try:
        return backward(learner, rollouts, kept, scores)
    except LossNotFinite:
        return {"loss/policy": math.nan}
    finally:
        learner.policy.zero_grad(set_to_none=True)
        if learner.critic is not None:
            update_critic(learner.critic, skips=True)


def _summary(
    learner: Learner,
    groups: Sequence[RolloutGroup],
    metrics: Mapping[str, float],
    seconds: Seconds,
) -> Preflight:
    recipe, rollouts = learner.recipe, _rollouts(groups)
    right = [[r.grade is not None and r.grade.score == 1.0 for r in g.rollouts] for g in groups]
    counts = [sum(row) for row in right]
    size, lengths = recipe.group_size, useful_lengths(rollouts)
    longest = quantile(lengths, 0.95) if lengths else None
    memory = _memory(learner, rollouts)
    is_scored = any(r.grade is not None and r.grade.score is not None for r in rollouts)
    return Preflight(
        task=recipe.task,
        num_groups=len(groups),
        group_size=size,
        num_steps=recipe.num_steps,
        accuracy=fmean(chain.from_iterable(right)) if is_scored else None,
        pass_at={k: fmean(pass_at_k(size, c, k) for c in counts) for k in ks(size)},
        reward_mean=_known(metrics["reward/mean"]),
        signal_frac=metrics["rollout/signal_frac"],
        all_right_frac=fmean(c == size for c in counts),
        none_right_frac=fmean(c == 0 for c in counts),
        truncated_frac=metrics["rollout/truncated_frac"],
        unread_frac=metrics["grade/no_answer_frac"] + metrics["grade/unclosed_think_frac"],
        length_mean=metrics["rollout/length_mean"],
        length_p95=longest,
        suggested_max_tokens=suggest_max_tokens(
            recipe.max_tokens,
            truncated_frac=metrics["rollout/truncated_frac"],
            length_p95=longest,
            room=_room(learner, rollouts),
        ),
        entropy=metrics["policy/entropy"],
        sampler_gap=_known(metrics.get("policy/sampler_gap", math.nan)),
        seconds=seconds,
        memory=memory,
        warnings=(*preflight_warnings(metrics, recipe), *_memory_warnings(memory)),
    )


def preflight_warnings(metrics: Mapping[str, float], recipe: RlRecipe) -> list[NamedWarning]:
    """What would be raised in training if its steps all were like this one."""
    steps = History([metrics] * (2 * WINDOW))
    found = {
        symptom.name: sentence(symptom, seen)
        for symptom in symptoms_of(recipe)
        if symptom.name in SIGNS and (seen := symptom.sign(steps, recipe))
    }
    none_right = pays_for_answers(recipe) and not metrics["grade/correct_frac"]
    if none_right and not {"TooHard", "UnreadableReferences"} & found.keys():
        [hard] = [s for s in symptoms_of(recipe) if s.name == "TooHard"]
        seen = "no answer is right, and only other parts of the reward can teach"
        found["TooHard"] = sentence(hard, seen)
    if math.isnan(metrics.get("loss/policy", 0.0)):
        found["NonFinite"] = "the loss is not finite; try dtype='float32' and another model"
    return [NamedWarning(step=0, name=name, text=text) for name, text in found.items()]


def _memory_warnings(memory: Footprint) -> list[NamedWarning]:
    if memory.fits:
        return []
    needed, free, activations = (
        f"{(size or 0) / 2**30:.1f} GiB"
        for size in (memory.update_bytes, memory.free_bytes, memory.activation_bytes)
    )
    text = (
        f"an update needs about {needed} more and {free} are free; lower max_batch_tokens, which "
        f"decides {activations} of it, or take a smaller model"
    )
    return [NamedWarning(step=0, name="MemoryShort", text=text)]


def useful_lengths(rollouts: Sequence[Rollout]) -> list[int]:
    """Lengths of the right completions; of those that ended by themselves when none is right."""
    ended = [r for r in rollouts if not r.finish_reason.is_truncated]
    right = [r for r in ended if r.grade is not None and r.grade.score == 1.0]
    return sorted(r.num_sampled for r in right or ended)


def quantile(values: Sequence[int], share: float) -> int:
    """The smallest of the sorted values that at least `share` of them do not exceed."""
    return values[max(0, math.ceil(share * len(values)) - 1)]


def suggest_max_tokens(
    max_tokens: int, *, truncated_frac: float, length_p95: int | None, room: int | None
) -> int | None:
    """Twice as much where completions are cut off and the right ones nearly fill it (or none ends
    at all), as far as the context has `room`; None where more would not help."""
    is_cut_off = truncated_frac >= _CUT_OFF
    needs_more = length_p95 is None or length_p95 >= _NEARLY_ALL * max_tokens
    if not is_cut_off or not needs_more:
        return None
    suggested = 2 * max_tokens if room is None else min(2 * max_tokens, room)
    return suggested if suggested > max_tokens else None


def _seconds(recipe: RlRecipe, num_groups: int, began: float, marks: Sequence[float]) -> Seconds:
    """A step by the time that these groups took: sampling is shared by the updates of a batch.

    `marks` are when sampling began, and when sampling, grading and updating ended.
    """
    sample, grade, update = (b - a for a, b in pairwise(marks))
    scale = recipe.prompts_per_step / num_groups
    per_update = (sample + grade) / updates_per_batch(recipe) + update / recipe.minibatches
    total = marks[-1] - began
    return Seconds(sample=sample, grade=grade, update=update, total=total, step=scale * per_update)


def _memory(learner: Learner, rollouts: Sequence[Rollout]) -> Footprint:
    recipe = learner.recipe
    prompt = max(len(r.token_ids) - r.num_sampled for r in rollouts)
    longest = prompt + recipe.max_tokens
    tokens = fmean(len(r.token_ids) for r in rollouts)
    whole_step = round(tokens * recipe.prompts_per_step * recipe.group_size)
    strip, seen = _strip(learner, prompt, round(fmean(r.num_sampled for r in rollouts)))
    return footprint(
        learner.policy,
        learner.optimizers,
        learner.dtype,
        num_cells=max(longest, min(recipe.max_batch_tokens, whole_step)),
        strip=strip,
        seen=seen,
    )


def _strip(learner: Learner, prompt: int, own: int) -> tuple[int, float]:
    """Cells of a strip of siblings that is attended to as a whole, 0 where there is none; tokens
    that are seen for each cell where it is attended to in pieces."""
    if not learner.pairs_per_token:
        return 0, 0.0
    most, own = learner.recipe.max_batch_tokens, max(1, own)
    count = max(1, min(learner.recipe.group_size, (most - prompt) // own))
    cells, config = prompt + count * own, learner.policy.config.get_text_config()
    is_on_cpu, pieces = learner.policy.device.type == "cpu", [[prompt, *[own] * count]]
    if is_on_cpu and is_cheaper(pieces, cells, attention_width(config)):
        return 0, count * (prompt + own) / cells
    return min(cells, most), 0.0


def _room(learner: Learner, rollouts: Sequence[Rollout]) -> int | None:
    """Positions that the longest prompt leaves; None for a model without a limit."""
    context = context_of(learner.policy)
    longest = max(len(r.token_ids) - r.num_sampled for r in rollouts)
    return None if context is None else context - longest


def _rollouts(groups: Sequence[RolloutGroup]) -> list[Rollout]:
    return [rollout for group in groups for rollout in group.rollouts]


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
