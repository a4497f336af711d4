"""Forethought's rewards for other trainers: TRL's GRPOTrainer, and verl.

    trainer = GRPOTrainer(model, reward_funcs=[as_trl_reward(task=task)], train_dataset=
                          Dataset.from_list(trl_rows(task)), ...)

    custom_reward_function.path=.../forethought/grading/export_rewards.py
    custom_reward_function.name=compute_score

None of it imports torch, TRL or verl.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from forethought.errors import RewardError
from forethought.grading.math import grade_answer
from forethought.grading.rewards import RewardPart, load_reward, score_rollouts
from forethought.schema_tables import Reward
from forethought.types import Example, Message, Task

_GOLD_COLUMNS = ("answer", "solution", "ground_truth")


class TrlReward:
    """A reward part as a TRL reward function; `as_trl_reward` makes it.

    An object rather than a closure, so that TRL can send it to another process: there it is made
    anew from what it was made of.
    """

    def __init__(
        self,
        part: RewardPart | str,
        task: Task | None,
        gold: str | None,
        settings: Reward | None,
        max_tokens: int | None,
        opened: bool,
    ) -> None:
        self._made_of = (part, task, gold, settings, max_tokens, opened)
        if isinstance(part, str):
            part = load_reward(part, settings=settings, max_tokens=max_tokens)
        self.__name__ = part.name
        self._part = dataclasses.replace(part, weight=1.0)  # TRL has weights of its own
        self._task = task
        self._gold = gold
        self._opened = opened
        self._by_id: dict[str, Example] = {}

    def __reduce__(self) -> tuple[type[TrlReward], tuple[Any, ...]]:
        return TrlReward, self._made_of

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]] = (),
        **columns: Any,
    ) -> list[float | None]:
        """One value per completion; None, which TRL skips, where it cannot be known."""
        texts = [completion_text(completion) for completion in completions]
        examples = self._examples(prompts, columns)
        pairs = zip(examples, texts, strict=True)
        if self._task is not None:
            grades = [self._task.grade(example, text) for example, text in pairs]
        else:
            grades = [grade_answer(e.answer, text, opened=self._opened) for e, text in pairs]
        results = score_rollouts(
            [self._part],
            examples,
            texts,
            grades,
            completion_ids=completion_ids,
            prompts=None if _are_messages(prompts) else [str(prompt) for prompt in prompts],
            opened=self._opened,
        )
        return [result.reward for result in results]

    def _examples(
        self, prompts: Sequence[Any], columns: Mapping[str, Sequence[Any]]
    ) -> list[Example]:
        if self._task is None:
            gold = self._gold or next((name for name in _GOLD_COLUMNS if name in columns), None)
            if gold is None or gold not in columns:
                raise RewardError(
                    f"the data set has no column {gold or 'answer'!r} with the reference answers; "
                    "name it in as_trl_reward(gold=...)"
                )
            rows = zip(prompts, columns[gold], strict=True)
            return [
                Example(id=str(place), messages=_messages(prompt), answer=str(answer))
                for place, (prompt, answer) in enumerate(rows)
            ]
        if "id" not in columns:
            raise RewardError("the data set has no column 'id'; make it with trl_rows(task)")
        if not self._by_id:
            self._by_id = {e.id: e for e in map(self._task.__getitem__, range(len(self._task)))}
        try:
            return [self._by_id[identity] for identity in columns["id"]]
        except KeyError as error:
            raise RewardError(
                f"the data set's id {error} is not of task {self._task.name}; "
                "make the data set with trl_rows(task)"
            ) from None


def as_trl_reward(
    part: RewardPart | str = "accuracy",
    *,
    task: Task | None = None,
    gold: str | None = None,
    settings: Reward | None = None,
    max_tokens: int | None = None,
    opened: bool = False,
) -> TrlReward:
    """A reward function for TRL's GRPOTrainer from a part of ours, by default the grade.

    `part` is a built-in's name, `path/to/file.py:function` or a loaded part; `settings` and
    `max_tokens` as for `load_reward`. With `task`, its own grader judges, and the data set must
    come from `trl_rows(task)`; else the answer in the column `gold` (`answer`, `solution` or
    `ground_truth`) is compared as mathematics. `opened` says that prompts end inside a think
    block. The trainer's `reward_weights` weigh.
    """
    return TrlReward(part, task, gold, settings, max_tokens, opened)


def trl_rows(task: Task) -> list[dict[str, Any]]:
    """A task as rows of TRL's conversational prompt-only format, with `id` and `answer`."""
    examples = [task[index] for index in range(len(task))]
    return [
        {"prompt": [dict(m) for m in e.messages], "id": e.id, "answer": e.answer} for e in examples
    ]


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None, **_: Any
) -> dict[str, Any]:
    r"""verl's `compute_score`: the answer in the last `\boxed{}` against `ground_truth`.

    `score` and `acc` are 1 or 0, `pred` is the answer found ("" without one), for verl's maj@N.
    Raises RewardError when the ground truth cannot be read: verl has no word for "unknown", and
    0 would punish right answers without a sound.
    """
    grade = grade_answer(str(ground_truth), solution_str)
    if grade.score is None:
        raise RewardError(
            f"ground_truth={ground_truth!r:.80} of data_source={data_source!r} cannot be read "
            f"({grade.status}); correct or remove the row"
        )
    return {"score": grade.score, "acc": grade.score, "pred": grade.extracted or ""}


def completion_text(completion: Any) -> str:
    """The text of a completion: itself, or what its assistant's messages say."""
    if isinstance(completion, str):
        return completion
    said = (m.get("content") for m in completion if m.get("role", "assistant") == "assistant")
    return "".join(content for content in said if isinstance(content, str))


def _are_messages(prompts: Sequence[Any]) -> bool:
    return bool(prompts) and not isinstance(prompts[0], str)


def _messages(prompt: Any) -> tuple[Message, ...]:
    if isinstance(prompt, str):
        return ({"role": "user", "content": prompt},)
    return tuple({"role": m["role"], "content": str(m["content"])} for m in prompt)
