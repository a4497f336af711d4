"""What the metrics of a run that goes wrong look like: a sign, its likely cause, and the knob.

A sign is a pure function of the metrics so far and the recipe: it says what it sees, with numbers,
or None. docs/training.md has the table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from forethought.schema import RecipeBase, RlRecipe
from forethought.training.algorithms import ALGORITHMS
from forethought.training.history import WINDOW, History

_NO_SIGNAL = 0.05  # share of groups whose siblings differ in reward
_LITTLE_SIGNAL = 0.5  # of the share that would differ if all problems were alike
_MASTERED = 0.9  # share of rollouts that are right
_LOW_ENTROPY, _ENTROPY_LEFT = 0.01, 0.1  # nats a token; share of what there was at first
_TRUNCATED, _NEAR_LIMIT, _GROWTH = 0.3, 0.8, 2.0
_UNREAD, _FAILING, _UNGRADED = 0.5, 0.02, 0.1  # shares of rollouts
_GAP, _WEIGHED_GAP, _CAPPED = 0.05, 0.3, 0.05  # nats a token, with importance weights; share
_KL, _NOTICEABLE_KL, _KL_GROWTH = 0.5, 0.05, 10.0  # nats a token
_LEFT_OF_BEST, _WORTH_LOSING = 0.5, 0.1  # of the best accuracy; that it must have been
_LOSS_RISE = 0.5  # nats a token

Sign = Callable[[History, Any], str | None]  # of the recipe whose metrics it reads


@dataclass(frozen=True, slots=True, kw_only=True)
class Symptom:
    """A sign by name, what it usually comes from, and what to change."""

    name: str
    sign: Sign
    cause: str
    knob: str


def pays_for_answers(recipe: RlRecipe) -> bool:
    """True when a right answer earns something."""
    return any(recipe.reward.parts.get(part) for part in ("accuracy", "cosine_length"))


def too_easy(history: History, recipe: RlRecipe) -> str | None:
    right = history.last("grade/correct_frac")
    if recipe.entropy_coefficient > 0:  # then one mastered problem still teaches (2504.20571)
        return None
    if right is None or right < _MASTERED or not _is_silent_on_answers(history, recipe):
        return None
    return f"{right:.0%} of answers are right, and siblings hardly ever differ"


def too_hard(history: History, recipe: RlRecipe) -> str | None:
    right = history.last("grade/correct_frac")
    if right is None or right > 1 - _MASTERED or not _is_silent_on_answers(history, recipe):
        return None
    return f"{right:.0%} of answers are right, and siblings hardly ever differ"


def no_signal(history: History, recipe: RlRecipe) -> str | None:
    if too_easy(history, recipe) or too_hard(history, recipe) or not _is_silent(history, recipe):
        return None
    return "siblings hardly ever differ in reward, though their answers are not all of a kind"


def _is_silent_on_answers(history: History, recipe: RlRecipe) -> bool:
    return pays_for_answers(recipe) and _is_silent(history, recipe)


def _is_silent(history: History, recipe: RlRecipe) -> bool:
    """True when there is nothing to learn from: siblings do not differ in reward or, where they
    are not what a rollout is held against, no two rollouts do."""
    if ALGORITHMS[recipe.estimator].advantages in ("reinforce", "reward"):
        spread = history.last("reward/std")
        return spread is not None and spread < 1e-6
    signal = history.last("rollout/signal_frac")
    return signal is not None and signal <= _NO_SIGNAL


def entropy_collapse(history: History, recipe: RlRecipe) -> str | None:
    now, at_first = history.last("policy/entropy"), history.first("policy/entropy")
    signal, right = history.last("rollout/signal_frac"), history.last("grade/correct_frac")
    if now is None or at_first is None or signal is None or right is None:
        return None
    is_low = now < max(_LOW_ENTROPY, _ENTROPY_LEFT * at_first)
    by_chance = 1 - right**recipe.group_size - (1 - right) ** recipe.group_size
    is_stuck = signal <= _LITTLE_SIGNAL * by_chance and history.is_flat("reward/mean")
    if not (is_low and is_stuck and right < _MASTERED):
        return None
    return (
        f"entropy fell from {at_first:.3f} to {now:.3f} nats a token, only {signal:.0%} of groups "
        "still differ, and the reward no longer rises"
    )


def reward_collapse(history: History, recipe: RlRecipe) -> str | None:
    now, best = history.last("grade/correct_frac"), history.best("grade/correct_frac")
    if now is None or best is None or best < _WORTH_LOSING or now >= _LEFT_OF_BEST * best:
        return None
    return f"{now:.0%} of answers are right, after {best:.0%} earlier in this run"


def runaway_length(history: History, recipe: RlRecipe) -> str | None:
    now, at_first = history.last("rollout/length_mean"), history.first("rollout/length_mean")
    if now is None or at_first is None or not history.is_flat("reward/mean"):
        return None
    if now < _GROWTH * at_first or now < _NEAR_LIMIT * recipe.max_tokens:
        return None
    return (
        f"completions grew from {at_first:.0f} to {now:.0f} tokens, near max_tokens="
        f"{recipe.max_tokens}, while the reward no longer rises"
    )


def truncation(history: History, recipe: RlRecipe) -> str | None:
    share = history.last("rollout/truncated_frac")
    if share is None or share < _TRUNCATED:
        return None
    return f"{share:.0%} of completions were cut off or looped (max_tokens={recipe.max_tokens})"


def unread_answers(history: History, recipe: RlRecipe) -> str | None:
    names = ("grade/no_answer_frac", "grade/unclosed_think_frac")
    now = [history.last(name) for name in names]
    then = [history.last(name, before=WINDOW) for name in names]
    if None in now or None in then:
        return None
    share, earlier = (sum(v for v in values if v is not None) for values in (now, then))
    is_cut_off = (history.last("rollout/truncated_frac") or 0.0) >= _TRUNCATED
    if share < _UNREAD or share < earlier - _FAILING or is_cut_off:
        return None
    return f"{share:.0%} of completions hold no readable answer"


def unreadable_references(history: History, recipe: RlRecipe) -> str | None:
    share = history.last("grade/unparsable_gold_frac")
    if share is None or share < _UNGRADED:
        return None
    return f"the reference answer of {share:.0%} of rollouts cannot be read"


def ungraded(history: History, recipe: RlRecipe) -> str | None:
    share = history.last("rollout/ungraded_frac")
    if share is None or share < _UNGRADED or unreadable_references(history, recipe):
        return None
    return f"{share:.0%} of rollouts have no reward"


def grader_timeouts(history: History, recipe: RlRecipe) -> str | None:
    share = history.last("grade/timeout_frac")
    if share is None or share < _FAILING:
        return None
    return f"grading ran out of time on {share:.1%} of completions, which score 0"


def grader_errors(history: History, recipe: RlRecipe) -> str | None:
    share = history.last("grade/error_frac")
    if share is None or share < _FAILING:
        return None
    return f"the grader failed on {share:.1%} of completions"


def sampler_gap(history: History, recipe: RlRecipe) -> str | None:
    if recipe.select.replay_share > 0:  # then it is of older policies too
        return None
    fresh = history.having("rollout/signal_frac")  # later updates move away from the sampler
    gap = fresh.last("policy/sampler_gap")
    is_weighed = history.last("policy/capped_frac") is not None
    if gap is None or gap < (_WEIGHED_GAP if is_weighed else _GAP):
        return None
    return f"sampler and learner differ by {gap:.3f} nats a token"


def capped_weights(history: History, recipe: RlRecipe) -> str | None:
    share = history.last("policy/capped_frac")
    if share is None or share < _CAPPED:
        return None
    return f"{share:.0%} of importance weights are cut at their cap"


def kl_explosion(history: History, recipe: RlRecipe) -> str | None:
    now, earlier = history.last("policy/kl"), history.last("policy/kl", before=WINDOW)
    if now is None or earlier is None:
        return None
    has_jumped = now >= _NOTICEABLE_KL and now >= _KL_GROWTH * earlier
    if now < _KL and not has_jumped:
        return None
    return f"the KL divergence to the starting model is {now:.2f} nats a token"


def rising_loss(history: History, recipe: RecipeBase) -> str | None:
    now, at_first = history.last("loss/mean"), history.first("loss/mean")
    if now is None or at_first is None or now < at_first + _LOSS_RISE:
        return None
    return f"the loss rose from {at_first:.2f} to {now:.2f} nats a token"


_RL = (
    Symptom(
        name="TooEasy",
        sign=too_easy,
        cause="the model has mastered the task",
        knob="take harder problems (a task's difficulty, or another task), or stop here",
    ),
    Symptom(
        name="TooHard",
        sign=too_hard,
        cause="the model finds no right answer to learn from",
        knob="take easier problems, raise group_size or max_tokens, or begin with a stage of sft",
    ),
    Symptom(
        name="NoSignal",
        sign=no_signal,
        cause="the reward does not tell siblings apart",
        knob="look at the parts of the reward and at transcripts.jsonl",
    ),
    Symptom(
        name="EntropyCollapse",
        sign=entropy_collapse,
        cause="the policy settled on one way to answer before it found better ones",
        knob="lower optimizer.learning_rate, raise temperature or set entropy_coefficient",
    ),
    Symptom(
        name="RewardCollapse",
        sign=reward_collapse,
        cause="updates are too large, or the reward pays for something else",
        knob="lower optimizer.learning_rate or set kl_coefficient, and look at the parts of the "
        "reward",
    ),
    Symptom(
        name="RunawayLength",
        sign=runaway_length,
        cause="long completions are punished less than short ones, or ramble to the limit",
        knob="take estimator='dr_grpo' or 'rloo', or give reward.parts.soft_overlong or "
        "cosine_length a weight",
    ),
    Symptom(
        name="Truncation",
        sign=truncation,
        cause="max_tokens is too small, or the model does not end by itself",
        knob="raise max_tokens, or give reward.parts.soft_overlong a weight",
    ),
    Symptom(
        name="UnreadAnswers",
        sign=unread_answers,
        cause="the model does not write its answer the way the grader reads it",
        knob="raise reward.parts.format, ask for \\boxed{} in the problems, or begin with a stage "
        "of sft",
    ),
    Symptom(
        name="UnreadableReferences",
        sign=unreadable_references,
        cause="answers of the task are no answers that can be compared",
        knob="run forethought task check and correct the file",
    ),
    Symptom(
        name="Ungraded",
        sign=ungraded,
        cause="a reward function returns None, or no worker could grade",
        knob="let the function give a number, and look at forethought doctor",
    ),
    Symptom(
        name="GraderTimeouts",
        sign=grader_timeouts,
        cause="completions make the grader compute without end",
        knob="look for them in transcripts.jsonl, and run forethought task check",
    ),
    Symptom(
        name="GraderErrors",
        sign=grader_errors,
        cause="the grader, or what it needs, is broken",
        knob="run forethought task check",
    ),
    Symptom(
        name="SamplerGap",
        sign=sampler_gap,
        cause="rollouts are drawn by coarser arithmetic than the update computes in",
        knob="take rollout_dtype='float16' or 'float32', or set importance_cap",
    ),
    Symptom(
        name="CappedWeights",
        sign=capped_weights,
        cause="rollouts are too far from the policy that learns from them",
        knob="take rollout_dtype='float16', or fewer updates a batch of rollouts",
    ),
    Symptom(
        name="KlExplosion",
        sign=kl_explosion,
        cause="the policy runs away from the model it started from",
        knob="raise kl_coefficient or lower optimizer.learning_rate",
    ),
)
_SUPERVISED = (
    Symptom(
        name="RisingLoss",
        sign=rising_loss,
        cause="the learning rate is too high",
        knob="lower optimizer.learning_rate or raise optimizer.warmup_steps",
    ),
)


def symptoms_of(recipe: RecipeBase) -> tuple[Symptom, ...]:
    """Those that a run of this recipe can show."""
    return _RL if isinstance(recipe, RlRecipe) else _SUPERVISED
