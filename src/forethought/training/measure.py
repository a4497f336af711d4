"""Held-out problems on the way: how right the policy is, as it samples or by a strategy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from forethought.budget import parse_budget
from forethought.errors import RecipeError, StrategyError
from forethought.evaluation.curves import sweep
from forethought.evaluation.evaluate import evaluate
from forethought.schema import RlRecipe
from forethought.strategies.registry import parse_strategy
from forethought.training.loop import Metrics
from forethought.training.rl_metrics import evaluation_metrics, strategy_metrics
from forethought.types import SamplingParams

if TYPE_CHECKING:
    from forethought.training.learner import Learner


def measure(learner: Learner) -> Metrics:
    """Held-out accuracy at temperature 1 with its 95% interval, and what it cost."""
    by_strategy = learner.recipe.eval_strategy is not None
    return measure_by_strategy(learner) if by_strategy else measure_samples(learner)


def measure_samples(learner: Learner) -> Metrics:
    """Accuracy and length of `eval_samples` completions a problem."""
    assert learner.eval_task is not None
    recipe = learner.recipe
    found = evaluate(
        learner.engine,
        learner.eval_task,
        num_samples=recipe.eval_samples,
        temperature=1.0,
        max_tokens=recipe.max_tokens,
        limit=recipe.eval_problems,
        stop_at_boxed=recipe.stop_at_boxed,
        watch=learner.eval_watch,
    )
    return evaluation_metrics(found)


def measure_by_strategy(learner: Learner) -> Metrics:
    """Accuracy of the answers that `eval_strategy` comes to within `eval_budget`, one a problem."""
    recipe = learner.recipe
    assert learner.eval_task is not None and recipe.eval_strategy is not None
    params = SamplingParams(max_tokens=recipe.max_tokens, stop_at_boxed=recipe.stop_at_boxed)
    budget = None if recipe.eval_budget is None else parse_budget(recipe.eval_budget)
    [cell] = sweep(
        learner.engine,
        learner.eval_task,
        [recipe.eval_strategy],
        [budget],
        params,
        limit=recipe.eval_problems,
    )
    learner.eval_watch.look(cell.grades, is_last=True)
    return strategy_metrics(cell)


def check_measuring(recipe: RlRecipe) -> None:
    """Raise RecipeError when the strategy, an option of it, or its budget is none."""
    checks = {"eval_strategy": parse_strategy, "eval_budget": parse_budget}
    for key, check in checks.items():
        value = getattr(recipe, key)
        try:
            if value is not None:
                check(value)
        except StrategyError as error:
            raise RecipeError(f"{key}={value!r} is wrong: {error}") from error
