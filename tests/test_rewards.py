r"""Rewards: the sum of parts, the format rule, and users' functions called as TRL calls them."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forethought.errors import RewardError
from forethought.grading.built_in_rewards import is_well_formed
from forethought.grading.rewards import (
    RewardPart,
    RewardResult,
    dry_run_reward,
    load_reward,
    score_rollouts,
)
from forethought.grading.user_rewards import adapt
from forethought.schema_tables import Reward, SoftOverlong
from forethought.types import Example, Grade, GradeStatus

EXAMPLES = (
    Example(
        id="a",
        messages=({"role": "user", "content": "1 + 1?"},),
        answer="2",
        meta={"level": 1, "prompt": "not passed on"},
    ),
    Example(id="b", messages=({"role": "user", "content": "1 + 2?"},), answer="3"),
)
TEXTS = ("<think>1 + 1</think> \\boxed{2}", "\\boxed{4} or so")
GRADES = (
    Grade(score=1.0, status=GradeStatus.CORRECT, extracted="2"),
    Grade(score=0.0, status=GradeStatus.WRONG, extracted="4"),
)
OVERLONG = {"soft_overlong": 1.0}
LENGTHS = [[1] * 90, [1] * 10]
UNUSABLE = Grade(score=None, status=GradeStatus.UNPARSABLE_GOLD)


def _score(
    *parts: RewardPart, grades: tuple[Grade, ...] = GRADES, **kwargs: Any
) -> list[RewardResult]:
    return score_rollouts(parts, EXAMPLES, TEXTS, grades, **kwargs)


def _part(function: Callable[..., Any], weight: float = 1.0) -> RewardPart:
    return RewardPart(name="mine", weight=weight, function=adapt(function, "mine.py:mine"))


# --- The sum ------------------------------------------------------------------------------------


def test_reward_is_the_weighted_sum_and_parts_are_kept_apart() -> None:
    results = _score(load_reward("accuracy"), load_reward("format", weight=0.25))
    assert [result.reward for result in results] == [1.25, 0.0]
    assert [result.parts for result in results] == [
        {"accuracy": 1.0, "format": 1.0},
        {"accuracy": 0.0, "format": 0.0},
    ]


def test_an_unknown_accuracy_makes_the_reward_unknown() -> None:
    results = _score(load_reward("accuracy"), load_reward("format"), grades=(UNUSABLE, GRADES[1]))
    assert [result.reward for result in results] == [None, 0.0]
    assert results[0].parts == {"accuracy": None, "format": 1.0}


def test_an_unknown_part_of_the_users_is_left_out_of_that_sum() -> None:
    mine = _part(lambda **_: [None, 5.0], weight=2.0)
    assert [r.reward for r in _score(load_reward("accuracy"), mine)] == [1.0, 10.0]
    assert [r.reward for r in _score(mine)] == [None, 10.0]


def test_a_part_of_weight_zero_is_logged_only() -> None:
    results = _score(load_reward("accuracy"), _part(lambda **_: [3, None], weight=0.0))
    assert [result.reward for result in results] == [1.0, 0.0]
    assert [result.parts["mine"] for result in results] == [3.0, None]


def test_an_unknown_accuracy_of_weight_zero_does_not_matter() -> None:
    parts = (load_reward("accuracy", weight=0.0), load_reward("format"))
    assert _score(*parts, grades=(UNUSABLE, UNUSABLE))[0].reward == 1.0


def test_a_product_multiplies_scores_and_takes_what_penalties_ask_for() -> None:
    halves = _part(lambda **_: [0.5, 0.5])
    results = _score(load_reward("accuracy"), halves, combine="product")
    assert [result.reward for result in results] == [0.5, 0.0]
    # A weight says how much of the reward a part can take away.
    light = _part(lambda **_: [0.5, None], weight=0.2)
    results = _score(load_reward("format"), light, combine="product")
    assert [result.reward for result in results] == [pytest.approx(0.9), 0.0]
    settings = Reward(soft_overlong=SoftOverlong(max_length=100, buffer=20), parts=OVERLONG)
    part = load_reward("soft_overlong", settings=settings)
    results = _score(load_reward("accuracy"), part, combine="product", completion_ids=LENGTHS)
    assert [result.reward for result in results] == [0.5, 0.0]


def test_no_parts_or_two_of_one_name_are_mistakes() -> None:
    with pytest.raises(RewardError, match="at least one of accuracy, format"):
        _score()
    with pytest.raises(RewardError, match="two rewards are named 'accuracy'"):
        _score(load_reward("accuracy"), load_reward("accuracy"))


def test_an_empty_batch_has_no_results() -> None:
    assert score_rollouts([load_reward("accuracy")], [], [], []) == []


# --- The format part ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>a</think> \\boxed{5}", True),
        ("\n<think>\\boxed{4}</think> So it is \\boxed{5} \n", True),
        ("\\boxed{5}", True),
        ("It is \\boxed{\\frac{1}{2}}", True),
        ("<think>a</think>", False),
        ("<think>a", False),
        ("<think>a \\boxed{5}", False),
        ("a</think> \\boxed{5}", False),
        ("<think>a</think><think>b</think> \\boxed{5}", False),
        ("</think><think> \\boxed{5}", False),
        ("hm <think>a</think> \\boxed{5}", False),
        ("\\boxed{5} <think>a</think>", False),
        ("\\boxed{4} \\boxed{5}", False),
        ("\\boxed{5} is it", False),
        ("\\boxed{5}.", False),
        ("\\boxed{}", False),
        ("\\boxed{ }", False),
        ("\\boxed{5", False),
        ("5", False),
        ("", False),
    ],
)
def test_well_formed(text: str, expected: bool) -> None:
    assert is_well_formed(text) is expected


def test_well_formed_after_a_prompt_that_opened_the_think_block() -> None:
    assert is_well_formed("a</think> \\boxed{5}", opened=True)
    assert not is_well_formed("\\boxed{5}", opened=True)
    assert not is_well_formed("<think>a</think> \\boxed{5}", opened=True)
    results = _score(load_reward("format"), opened=True)
    assert [result.reward for result in results] == [0.0, 0.0]


@given(st.text())
def test_any_text_is_well_formed_or_not(text: str) -> None:
    assert is_well_formed(text) in (True, False)
    assert not is_well_formed(text + "\\boxed{5} tail")


# --- The user's functions -----------------------------------------------------------------------


def test_message_prompts_give_message_completions_and_columns_by_name() -> None:
    seen: dict[str, Any] = {}

    def mine(**kwargs: Any) -> list[float]:
        seen.update(kwargs)
        return [0.5, 1]

    results = _score(_part(mine), completion_ids=[[1, 2], [3]])
    assert [result.reward for result in results] == [0.5, 1.0]
    assert {seen.pop(name) is not None for name in ("trainer_state", "log_extra", "log_metric")}
    assert seen == {
        "prompts": [
            [{"role": "user", "content": "1 + 1?"}],
            [{"role": "user", "content": "1 + 2?"}],
        ],
        "completions": [[{"role": "assistant", "content": text}] for text in TEXTS],
        "completion_ids": [[1, 2], [3]],
        "id": ["a", "b"],
        "answer": ["2", "3"],
        "level": [1, None],
    }


def test_text_prompts_give_text_completions() -> None:
    def mine(prompts: list[str], completions: list[str]) -> list[float]:
        assert prompts == ["p", "q"]
        return [float(len(completion)) for completion in completions]

    results = _score(_part(mine), prompts=["p", "q"])
    assert [result.reward for result in results] == [float(len(text)) for text in TEXTS]


def test_a_function_gets_only_the_arguments_it_names() -> None:
    def mine(completions: list[Any], answer: list[str], bonus: float = 0.5) -> list[float]:
        pairs = zip(completions, answer, strict=True)
        return [bonus + (gold in message[0]["content"]) for message, gold in pairs]

    assert [result.reward for result in _score(_part(mine))] == [1.5, 0.5]


def test_a_function_cannot_change_the_examples() -> None:
    def mine(prompts: list[Any], answer: list[str]) -> list[float]:
        prompts[0][0]["content"] = answer[0] = "changed"
        return [0.0, 0.0]

    _score(_part(mine))
    assert EXAMPLES[0].messages[0]["content"] == "1 + 1?"
    assert EXAMPLES[0].answer == "2"


def test_async_functions_also_inside_a_running_loop() -> None:
    async def mine(completions: list[Any]) -> list[float]:
        await asyncio.sleep(0)
        return [1.0 for _ in completions]

    async def notebook() -> list[RewardResult]:
        return _score(_part(mine))

    assert [result.reward for result in _score(_part(mine))] == [1.0, 1.0]
    assert [result.reward for result in asyncio.run(notebook())] == [1.0, 1.0]


@pytest.mark.parametrize(
    "values", [[1, 0.5], (True, 0.5), np.array([1.0, 0.5]), [np.float32(1), np.int64(1) / 2]]
)
def test_numbers_of_any_kind_are_floats(values: Any) -> None:
    rewards = [result.reward for result in _score(_part(lambda **_: values))]
    assert rewards == [1.0, 0.5]
    assert {type(reward) for reward in rewards} == {float}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([1.0], "returned 1 values; return a list of 2 numbers"),
        ([1.0, 2.0, 3.0], "returned 3 values"),
        ([1.0, "2"], "returned '2'"),
        ([1.0, float("nan")], "returned nan"),
        ([1.0, float("inf")], "returned inf"),
        ([1.0, 10**400], "returned 1000"),
        ([[1.0], [2.0]], r"returned \[1.0\]"),
        (1.0, "returned float"),
        (None, "returned NoneType"),
        ("12", "returned str"),
        ({"a": 1, "b": 2}, "returned dict"),
    ],
)
def test_what_is_no_list_of_numbers_is_the_users_mistake(values: Any, said: str) -> None:
    with pytest.raises(RewardError, match=f"'mine.py:mine' {said}") as caught:
        _score(_part(lambda **_: values))
    assert "\n" not in str(caught.value)


def test_a_function_that_raises_is_named_with_the_error() -> None:
    def mine(**kwargs: Any) -> list[float]:
        raise KeyError("solution")

    def text_only(completions: list[str]) -> list[float]:
        return [float(completion.count("a")) / 0 for completion in ["", *completions]]

    def strings(completions: list[Any]) -> list[float]:
        return [len(completion.strip()) for completion in completions]

    with pytest.raises(RewardError, match=r"'mine\.py:mine' raised KeyError: 'solution'"):
        _score(_part(mine))
    with pytest.raises(RewardError, match="raised ZeroDivisionError"):
        _score(_part(text_only))
    with pytest.raises(RewardError, match=r"text is completion\[0\]\['content'\]"):
        _score(_part(strings))


def test_a_column_that_is_not_there_is_named() -> None:
    def mine(completions: list[Any], rubric: list[str]) -> list[float]:
        return [0.0 for _ in completions]

    with pytest.raises(RewardError, match=r"needs 'rubric'.*use one of answer, .*level"):
        _score(_part(mine))


# --- Loading ------------------------------------------------------------------------------------

SOURCE = """
from __future__ import annotations
from dataclasses import dataclass

@dataclass
class Rule:
    bonus: float

def brevity(completions, **kwargs):
    return [-float(len(completion[0]["content"])) for completion in completions]

def too_few(completions, **kwargs):
    return [0.0]
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "my_rewards.py"
    path.write_text(SOURCE)
    return path


def test_a_function_is_loaded_from_a_file(source: Path) -> None:
    part = load_reward(f"{source}:brevity", weight=0.5)
    assert (part.name, part.weight, part.required) == ("brevity", 0.5, False)
    dry_run_reward(part)
    assert [result.reward for result in _score(part)] == [-0.5 * len(text) for text in TEXTS]


def test_a_function_is_loaded_from_a_package(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(source.parent))
    part = load_reward("my_rewards:brevity")
    monkeypatch.delitem(sys.modules, "my_rewards")
    dry_run_reward(part, EXAMPLES)


def test_two_files_of_one_name_stay_apart(source: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / source.name
    other.parent.mkdir()
    other.write_text("def brevity(completions): return [7.0 for _ in completions]")
    parts = [load_reward(f"{path}:brevity") for path in (source, other)]
    assert [_score(part)[0].reward for part in parts] == [-float(len(TEXTS[0])), 7.0]


def test_the_dry_run_finds_the_mistake_before_training(source: Path) -> None:
    with pytest.raises(RewardError, match="too_few' returned 1 values"):
        dry_run_reward(load_reward(f"{source}:too_few"))
    for name in ("accuracy", "format"):
        dry_run_reward(load_reward(name))


def test_the_dry_run_shows_the_columns_of_the_task() -> None:
    def mine(completions: list[Any], level: list[int | None]) -> list[float]:
        return [float(value or 0) for value in level]

    dry_run_reward(_part(mine), EXAMPLES)
    with pytest.raises(RewardError, match="needs 'level'"):
        dry_run_reward(_part(mine))


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("acuracy", "'acuracy' is unknown; use one of accuracy, format"),
        ("nowhere.py:f", "no file 'nowhere.py'"),
        ("no_such_package.rewards:f", "cannot be imported .ModuleNotFoundError"),
        (":f", "cannot be imported"),
        ("math:no_such_function", "has no function 'no_such_function'"),
        ("math:pi", "has no function 'pi'"),
    ],
)
def test_a_spec_that_leads_nowhere(spec: str, said: str) -> None:
    with pytest.raises(RewardError, match=said):
        load_reward(spec)


@pytest.mark.parametrize(
    "source_text", ["def f(:", "import sys; sys.exit(3)", "1 / 0", "open('gone')"]
)
def test_a_file_that_cannot_be_imported(tmp_path: Path, source_text: str) -> None:
    path = tmp_path / "broken.py"
    path.write_text(source_text)
    with pytest.raises(RewardError, match="cannot be imported") as caught:
        load_reward(f"{path}:f")
    assert "\n" not in str(caught.value)


def test_a_missing_function_lists_those_there_are(source: Path) -> None:
    with pytest.raises(RewardError, match="has no function 'long'; it has brevity, too_few"):
        load_reward(f"{source}:long")
