"""From examples to graded rollouts: one engine call for the whole optimizer step."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace

from forethought.grading.jobs import begin_task_grade
from forethought.grading.rewards import RewardPart, score_rollouts
from forethought.sampling.draw import stable_seed
from forethought.sampling.local import LocalEngine
from forethought.schema import RlRecipe
from forethought.training.advantages import advantages_of
from forethought.training.algorithms import ALGORITHMS
from forethought.types import (
    Completion,
    Example,
    Grade,
    Request,
    Rollout,
    RolloutGroup,
    SamplingParams,
    Task,
)


class StepGrades:
    """The grades of a step's completions, begun as they end, while others still sample.

    Grades are found by place and text, so nothing depends on which ended first.
    """

    def __init__(self, task: Task, examples: Sequence[Example]) -> None:
        self._task = task
        self._examples = examples
        self._begun: dict[tuple[int, str], Future[Grade]] = {}

    def begin(self, place: int, text: str) -> Future[Grade]:
        """Begin to grade a completion of example `place`; one that was begun is not done twice."""
        key = (place, text)
        if key not in self._begun:
            self._begun[key] = begin_task_grade(self._task, self._examples[place], text)
        return self._begun[key]


def sample_rollouts(
    engine: LocalEngine,
    examples: Sequence[Example],
    recipe: RlRecipe,
    number: int,
    grades: StepGrades | None = None,
    first_place: int = 0,
) -> list[RolloutGroup]:
    """`group_size` rollouts for each example of batch `number`, all in one engine call (preemptive
    sampling).

    With `grades`, grading of each begins as it ends. `first_place` is how many examples the batch
    has had before.
    """
    requests = [
        Request(
            messages=example.messages,
            params=SamplingParams(
                max_tokens=recipe.max_tokens,
                temperature=recipe.temperature,
                n=recipe.group_size,
                # the place in the batch counts too: a small task may deal an example twice
                seed=stable_seed("rollout", recipe.seed, number, place, example.id),
                stop_at_boxed=recipe.stop_at_boxed,
            ),
        )
        for place, example in enumerate(examples, first_place)
    ]

    def on_finish(place: int, completion: Completion) -> None:
        if grades is not None:
            grades.begin(place, completion.text)

    sampled = engine.generate(requests, on_finish)
    return [
        RolloutGroup(
            example=example,
            rollouts=tuple(_rollout(example, completion) for completion in siblings),
        )
        for example, siblings in zip(examples, sampled, strict=True)
    ]


def _rollout(example: Example, completion: Completion) -> Rollout:
    prompt = len(completion.prompt_ids)
    return Rollout(
        example_id=example.id,
        token_ids=completion.prompt_ids + completion.token_ids,
        sampled_mask=(False,) * prompt + (True,) * len(completion.token_ids),
        logprobs=(0.0,) * prompt + completion.logprobs,
        text=completion.text,
        finish_reason=completion.finish_reason,
        policy_version=completion.policy_version,
    )


def grade_rollouts(
    groups: Sequence[RolloutGroup],
    task: Task,
    parts: Sequence[RewardPart],
    begun: StepGrades | None = None,
    *,
    recipe: RlRecipe | None = None,
    step: int = 0,
) -> list[RolloutGroup]:
    """Every rollout with its grade, its reward and the parts that the reward is made of.

    `begun` are the grades that began while sampling. `recipe` says how parts combine, by
    default as a sum, and with `step` how far training is, to rewards that ask for it.
    """
    pairs = [(group.example, rollout) for group in groups for rollout in group.rollouts]
    begun = begun or StepGrades(task, [group.example for group in groups])
    waiting = [begun.begin(place, r.text) for place, g in enumerate(groups) for r in g.rollouts]
    grades = [grade.result() for grade in waiting]
    results = score_rollouts(
        parts,
        [example for example, _ in pairs],
        [rollout.text for _, rollout in pairs],
        grades,
        completion_ids=[
            [t for t, sampled in zip(r.token_ids, r.sampled_mask, strict=True) if sampled]
            for _, r in pairs
        ],
        combine="sum" if recipe is None else recipe.reward.combine,
        step=step,
        num_steps=0 if recipe is None else recipe.num_steps,
        seed=0 if recipe is None else recipe.seed,
    )
    graded = iter(
        replace(rollout, grade=grade, reward=result.reward, reward_parts=result.parts)
        for (_, rollout), grade, result in zip(pairs, grades, results, strict=True)
    )
    return [replace(g, rollouts=tuple(next(graded) for _ in g.rollouts)) for g in groups]


def assign_advantages(
    groups: Sequence[RolloutGroup], estimator: str, scale: str | None = None
) -> list[RolloutGroup]:
    """Every rollout with its advantage, by the named algorithm; None: scaled as its own."""
    name = ALGORITHMS[estimator].advantages
    rewards = [[rollout.reward for rollout in group.rollouts] for group in groups]
    return [
        replace(
            group,
            rollouts=tuple(
                replace(rollout, advantage=advantage)
                for rollout, advantage in zip(group.rollouts, advantages, strict=True)
            ),
        )
        for group, advantages in zip(groups, advantages_of(rewards, name, scale), strict=True)
    ]
