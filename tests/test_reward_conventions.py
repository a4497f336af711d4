"""Reward functions written for TRL, verl and verifiers run unmodified, and ours run in theirs."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from forethought.errors import RewardError
from forethought.grading.conventions import (
    call_trl,
    call_verifiers,
    call_verifiers_group,
    call_verl,
    caller_for,
)
from forethought.grading.export_rewards import as_trl_reward, compute_score, trl_rows
from forethought.grading.rewards import (
    RewardPart,
    RewardResult,
    dry_run_reward,
    load_reward,
    score_rollouts,
)
from forethought.grading.user_rewards import adapt
from forethought.schema_tables import Reward, SoftOverlong
from forethought.tasks.base import load_task
from forethought.types import Example, Grade, GradeStatus

EXAMPLES = (
    Example(id="a", messages=({"role": "user", "content": "1 + 1?"},), answer="2"),
    Example(id="a", messages=({"role": "user", "content": "1 + 1?"},), answer="2"),
    Example(
        id="b",
        messages=({"role": "user", "content": "1 + 2?"},),
        answer="3",
        meta={"data_source": "made/up", "extra_info": {"index": 7}, "level": 5},
    ),
)
TEXTS = ("<think>1 + 1</think> \\boxed{2}", "\\boxed{4}", "\\boxed{3}")
GRADES = (
    Grade(score=1.0, status=GradeStatus.CORRECT, extracted="2"),
    Grade(score=0.0, status=GradeStatus.WRONG, extracted="4"),
    Grade(score=1.0, status=GradeStatus.CORRECT, extracted="3"),
)


def part_of(function: Callable[..., Any]) -> RewardPart:
    return RewardPart(name="mine", weight=1.0, function=adapt(function, "mine.py:mine"))


def results(function: Callable[..., Any], **kwargs: Any) -> list[RewardResult]:
    return score_rollouts([part_of(function)], EXAMPLES, TEXTS, GRADES, **kwargs)


def rewards(function: Callable[..., Any], **kwargs: Any) -> list[float | None]:
    return [result.reward for result in results(function, **kwargs)]


# --- Which convention ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda completions, **kwargs: 0, call_trl),
        (lambda prompts, completions, answer, info: 0, call_trl),
        (lambda completion_ids: 0, call_trl),
        (lambda answer, **kwargs: 0, call_trl),
        (lambda **kwargs: 0, call_trl),
        (lambda data_source, solution_str, ground_truth, extra_info=None: 0, call_verl),
        (lambda solution_str, ground_truth: 0, call_verl),
        (lambda completion, answer: 0, call_verifiers),
        (lambda prompt, completion, answer, state, info, parser: 0, call_verifiers),
        (lambda state: 0, call_verifiers),
        (lambda completions, answers: 0, call_verifiers_group),
        (lambda states: 0, call_verifiers_group),
        (max, call_trl),
    ],
)
def test_the_parameters_tell_the_convention(function: Any, expected: Any) -> None:
    assert caller_for(function) is expected


# --- TRL ----------------------------------------------------------------------------------------


def test_a_trl_function_gets_state_and_loggers() -> None:
    def mine(completions: list[Any], trainer_state: Any, log_metric: Any, log_extra: Any) -> Any:
        log_metric("half", 0.25)
        log_metric("half", 0.75)
        log_extra("seen", ["x"] * len(completions))
        return [trainer_state.global_step / trainer_state.max_steps for _ in completions]

    found = results(mine, step=4, num_steps=6)
    assert [result.reward for result in found] == [0.5, 0.5, 0.5]
    assert [result.parts for result in found] == [{"half": 0.5, "mine": 0.5}] * 3


@pytest.mark.parametrize("name", ["solution", "ground_truth"])
def test_a_trl_function_finds_the_reference_under_its_other_names(name: str) -> None:
    source: dict[str, Any] = {}
    exec(f"def mine(completions, {name}): return [float(len({name}[0]))] * len({name})", source)
    assert rewards(source["mine"]) == [1.0, 1.0, 1.0]


def test_a_trl_function_may_be_a_generator_or_a_callable_object() -> None:
    def generator(completions: list[Any]) -> Iterator[float]:
        yield from (0.5 for _ in completions)

    class Later:
        async def __call__(self, completions: list[Any], **kwargs: Any) -> list[float | None]:
            await asyncio.sleep(0)
            return [None, 1.0, 2.0]

    assert rewards(generator) == [0.5, 0.5, 0.5]
    assert rewards(Later()) == [None, 1.0, 2.0]


def test_the_columns_of_a_file_reach_the_functions(tmp_path: Path) -> None:
    row = {"problem": "1 + 1?", "solution": "It is \\boxed{2}.", "level": 3, "extra_info": {"n": 1}}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row), encoding="utf-8")
    task = load_task(f"jsonl:{path}")
    seen: list[Any] = []

    def as_trl(completions: Any, solution: Any, answer: Any, level: Any) -> list[float]:
        seen.append((solution, answer, level))
        return [0.0]

    def as_verl(solution_str: str, ground_truth: str, extra_info: Any) -> float:
        seen.append((ground_truth, extra_info))
        return 0.0

    parts = [part_of(as_trl), dataclasses.replace(part_of(as_verl), name="other")]
    score_rollouts(parts, [task[0]], [""], [GRADES[1]])
    assert seen == [(["It is \\boxed{2}."], ["2"], [3]), ("2", {"n": 1})]


# --- verl ---------------------------------------------------------------------------------------


def test_verl_is_called_once_a_completion_with_the_rows_own_fields() -> None:
    seen: list[Any] = []

    def score(
        data_source: Any, solution_str: Any, ground_truth: Any, extra_info: Any = None
    ) -> Any:
        seen.append((data_source, solution_str, ground_truth, extra_info))
        return len(seen)

    assert rewards(score) == [1.0, 2.0, 3.0]
    assert seen[0] == ("", TEXTS[0], "2", {"id": "a"})
    assert seen[2] == ("made/up", TEXTS[2], "3", {"index": 7})


def test_verls_dict_has_its_score_and_metrics() -> None:
    def compute(data_source: Any, solution_str: str, ground_truth: str, **kwargs: Any) -> Any:
        right = f"{{{ground_truth}}}" in solution_str
        return {"score": 2.0 * right, "acc": right, "pred": "text is no metric"}

    found = results(compute)
    assert [result.reward for result in found] == [2.0, 0.0, 2.0]
    assert found[0].parts == {"mine": 2.0, "acc": pytest.approx(2 / 3)}


def test_verl_may_be_async() -> None:
    async def compute(solution_str: str, ground_truth: str) -> float:
        await asyncio.sleep(0)
        return float(ground_truth)

    assert rewards(compute) == [2.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"acc": 1.0}, r"returned a dict without 'score' .it has acc.; add it"),
        ({}, "without 'score' .it has nothing"),
        ({"score": "1"}, "returned '1'; return one number, or a dict with it under 'score'"),
        ([1.0], r"returned \[1.0\]; return one number"),
        ("1", "returned '1'"),
    ],
)
def test_what_verl_returns_wrongly_is_said_before_training(value: Any, said: str) -> None:
    part = part_of(lambda solution_str, ground_truth: value)
    with pytest.raises(RewardError, match=said) as caught:
        dry_run_reward(part)
    assert "\n" not in str(caught.value)


def test_our_compute_score_for_verl() -> None:
    assert compute_score("gsm8k", "\\boxed{0.5}", "1/2", {"index": 1}) == {
        "score": 1.0,
        "acc": 1.0,
        "pred": "0.5",
    }
    assert compute_score("gsm8k", "half", "1/2") == {"score": 0.0, "acc": 0.0, "pred": ""}
    with pytest.raises(RewardError, match="ground_truth='' of data_source='gsm8k' cannot be read"):
        compute_score("gsm8k", "\\boxed{1}", "")
    assert rewards(compute_score) == [1.0, 0.0, 1.0]  # and it runs here by its own convention


# --- verifiers ----------------------------------------------------------------------------------


def test_a_rubric_function_gets_what_it_names_of_one_rollout() -> None:
    def mine(
        prompt: Any, completion: Any, answer: str, state: Any, info: Any, parser: Any
    ) -> float:
        assert prompt[-1]["content"].endswith("?")
        assert completion[-1] == {"role": "assistant", "content": completion[0]["content"]}
        assert state["answer"] == answer
        assert state["info"] == info
        return float(parser.parse_answer(completion) == answer) + info.get("level", 0)

    assert rewards(mine) == [1.0, 0.0, 6.0]


def test_a_rubrics_format_function_comes_from_the_parser() -> None:
    def mine(completion: Any, parser: Any, **kwargs: Any) -> float:
        assert parser.parse("<think>a</think> b") == "b"
        return float(parser.get_format_reward_func()(completion))

    assert rewards(mine) == [1.0, 1.0, 1.0]


def test_rubric_functions_may_be_async() -> None:
    async def mine(completion: Any, answer: str) -> float:
        await asyncio.sleep(0)
        return float(answer)

    assert rewards(mine) == [2.0, 2.0, 3.0]


def test_a_group_function_sees_siblings_together() -> None:
    sizes: list[int] = []

    def ranks(completions: list[Any], answers: list[str]) -> list[float]:
        sizes.append(len(completions))
        assert len(set(answers)) == 1
        return [float(place) for place in range(len(completions))]

    assert rewards(ranks) == [0.0, 1.0, 0.0]
    assert sizes == [2, 1]


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda completion: "good", "returned 'good'; return one number"),
        (lambda completion: [1.0], "return one number"),
        (lambda completion: completion.strip(), r"its text is completion\[-1\]\['content'\]"),
        (lambda completion, judge: 1.0, "needs 'judge'"),
        (lambda states: 1.0, "returned 1.0; return a list of 1 numbers, one for each sibling"),
        (lambda completions, answers: [], r"returned \[\]; return a list of 1"),
    ],
)
def test_what_a_rubric_returns_wrongly_is_said_before_training(function: Any, said: str) -> None:
    with pytest.raises(RewardError, match=said):
        dry_run_reward(part_of(function))


def test_a_file_may_hold_any_convention(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "def compute_score(data_source, solution_str, ground_truth, extra_info=None):\n"
        "    return {'score': 0.5}\n"
        "def rubric(completion, answer, **kwargs):\n    return 0.25\n"
    )
    parts = [load_reward(f"{path}:{name}") for name in ("compute_score", "rubric")]
    for part in parts:
        dry_run_reward(part)
    found = score_rollouts(parts, EXAMPLES, TEXTS, GRADES)
    assert found[0].parts == {"compute_score": 0.5, "rubric": 0.25}


# --- Ours in TRL --------------------------------------------------------------------------------


def messages(texts: tuple[str, ...]) -> list[Any]:
    return [[{"role": "assistant", "content": text}] for text in texts]


@pytest.mark.parametrize("column", ["answer", "solution", "ground_truth"])
def test_our_grade_as_a_trl_reward(column: str) -> None:
    reward = as_trl_reward()
    assert reward.__name__ == "accuracy"
    gold = {column: ["2", "2", ""], "trainer_state": None, "log_extra": print, "log_metric": print}
    prompts = [[{"role": "user", "content": "?"}]] * 3
    for completions in (messages(TEXTS), list(TEXTS)):
        found = reward(prompts=prompts, completions=completions, completion_ids=[[1]] * 3, **gold)
        assert found == [1.0, 0.0, None]
    assert reward(prompts=["?"] * 3, completions=list(TEXTS), **gold) == [1.0, 0.0, None]


def test_our_other_parts_as_trl_rewards() -> None:
    columns = {"prompts": ["?"] * 3, "completions": list(TEXTS), "answer": ["2", "2", "3"]}
    ids = [[1] * 90, [1] * 10, [1] * 100]
    assert as_trl_reward("format")(**columns) == [1.0, 1.0, 1.0]
    overlong = Reward(parts={"soft_overlong": 1.0}, soft_overlong=SoftOverlong(max_length=100))
    found = as_trl_reward("soft_overlong", settings=overlong)(**columns, completion_ids=ids)
    assert found == [-0.5, 0.0, -1.0]
    cosine = as_trl_reward("cosine_length", max_tokens=100)
    assert cosine(**columns, completion_ids=[[1] * 50] * 3) == pytest.approx([0.75, -0.75, 0.75])
    named = as_trl_reward(gold="key")
    assert named(prompts=["?"], completions=["\\boxed{2}"], key=["2"]) == [1.0]


def test_our_reward_travels_to_another_process() -> None:
    settings = Reward(parts={"soft_overlong": 1.0}, soft_overlong=SoftOverlong(buffer=40))
    made = as_trl_reward("soft_overlong", settings=settings, max_tokens=100)
    copied = pickle.loads(pickle.dumps(made))
    assert copied.__name__ == "soft_overlong"
    columns = {"prompts": ["?"], "completions": ["1"], "answer": ["1"]}
    assert copied(**columns, completion_ids=[[1] * 80]) == [-0.5]


def test_a_logged_value_cannot_stand_in_for_a_metric() -> None:
    def mine(completions: list[Any], log_metric: Any) -> list[float]:
        log_metric("mean", 1.0)
        return [0.0 for _ in completions]

    with pytest.raises(RewardError, match="cannot be named mean"):
        dry_run_reward(part_of(mine))


def test_our_tasks_grade_in_trl() -> None:
    task = load_task("countdown", size=5)
    rows = trl_rows(task)
    assert rows[0].keys() == {"prompt", "id", "answer"}
    reward = as_trl_reward(task=task)
    texts = [f"\\boxed{{{row['answer']}}}" for row in rows[:4]] + ["\\boxed{1}"]
    columns = {"prompts": [r["prompt"] for r in rows], "completions": texts}
    assert reward(**columns, id=[r["id"] for r in rows]) == [1.0, 1.0, 1.0, 1.0, 0.0]
    with pytest.raises(RewardError, match="is not of task countdown"):
        reward(**columns, id=["x"] * 5)
    with pytest.raises(RewardError, match="no column 'id'"):
        reward(**columns)


def test_a_data_set_without_references_is_told_what_is_missing() -> None:
    with pytest.raises(RewardError, match=r"no column 'answer'.*as_trl_reward.gold="):
        as_trl_reward()(prompts=["?"], completions=["1"])
