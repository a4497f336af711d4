"""Generated tasks: pure, right, without overlap between the splits, and clear about mistakes."""

from __future__ import annotations

import re
import time
from functools import cache
from itertools import combinations, product
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forethought.errors import TaskError
from forethought.tasks.base import FAMILIES, FamilyTask, load_task, parse_spec
from forethought.tasks.problems import TEST_FRACTION, Arithmetic, is_test_key
from forethought.tasks.traces import PERFECT, direct, worked
from forethought.types import Example, GradeStatus, Task
from question_reader import read

# every family at every difficulty
DIALS = [(f.name, d) for f in FAMILIES.values() for d in range(1, f.max_difficulty + 1)]
SPECS = [f"{name}:difficulty={d}" for name, d in DIALS]
DISTRACTED = [f"{s},distract=1" for s in SPECS if not s.startswith("countdown")]


def question(example: Example) -> str:
    [message] = example.messages
    assert message["role"] == "user"
    return message["content"]


def key(example: Example) -> str:
    found: str = example.meta["key"]
    return found


@cache
def problems(spec: str, split: str, *, size: int | None = None, seed: int = 0) -> list[Example]:
    task = load_task(spec, split=split, size=size, seed=seed)
    return [task[i] for i in range(len(task))]


@pytest.mark.parametrize("spec", SPECS)
def test_test_and_training_problems_never_meet(spec: str) -> None:
    tests = {key(e) for seed in (0, 1) for e in problems(spec, "test", seed=seed)}
    trains = {key(e) for seed in (0, 1) for e in problems(spec, "train", size=500, seed=seed)}
    assert tests and trains
    assert tests.isdisjoint(trains)
    assert all(map(is_test_key, tests)) and not any(map(is_test_key, trains))


@pytest.mark.parametrize("spec", SPECS)
def test_test_problems_are_all_different(spec: str) -> None:
    found = problems(spec, "test")
    assert len({key(e) for e in found}) == len(found)
    assert len({e.id for e in found}) == len(found)


def test_a_tenth_of_all_problems_is_for_testing() -> None:
    share = sum(is_test_key(f"sum:{i}") for i in range(20_000)) / 20_000
    assert abs(share - TEST_FRACTION) < 0.01


@pytest.mark.parametrize("spec", [*SPECS[::3], *DISTRACTED[::5], "sum+rule+countdown"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_task_is_a_pure_function_of_its_arguments(spec: str, split: str) -> None:
    first = load_task(spec, split=split, size=12, seed=4)
    second = load_task(spec, split=split, size=12, seed=4)
    order = list(range(len(first)))
    Random(0).shuffle(order)
    assert {i: second[i] for i in order} == {i: first[i] for i in range(len(first))}
    assert [first[i] for i in range(5)] != [
        load_task(spec, split=split, size=12, seed=5)[i] for i in range(5)
    ]


@pytest.mark.parametrize("spec", [*SPECS, *DISTRACTED])
@pytest.mark.parametrize("split", ["train", "test"])
def test_answers_are_right_by_a_reading_of_the_question(spec: str, split: str) -> None:
    for example in problems(spec, split, size=40 if split == "train" else None)[:60]:
        problem = read(question(example))
        assert problem.key == key(example)
        if problem.answer is not None:
            assert example.answer == str(problem.answer)


@pytest.mark.parametrize("name", FAMILIES)
def test_difficulty_adds_steps(name: str) -> None:
    family = FAMILIES[name]
    lengths = []
    for difficulty in range(1, family.max_difficulty + 1):
        contents = [family.draw(Random(i), difficulty) for i in range(200)]
        if family.check is None:
            lengths.append(sum(len(family.work(c, Arithmetic()).steps) for c in contents))
        else:
            lengths.append(sum(len(c[1]) for c in contents))
    assert lengths == sorted(set(lengths))


def test_numbers_stay_small_enough_for_a_small_model() -> None:
    for spec in SPECS:
        for example in problems(spec, "train", size=60):
            answers = [int(n) for n in re.findall(r"\d+", example.answer)]
            assert all(0 <= n <= 99 for n in answers)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("spec", DISTRACTED)
def test_a_distracted_question_is_the_plain_one_and_so_many_sentences(
    spec: str, count: int
) -> None:
    for example in problems(spec.replace("distract=1", f"distract={count}"), "train", size=40):
        plain = example.meta["plain"]
        sentences = re.split(r"(?<=[.?]) ", question(example))
        kept = range(len(sentences) - count)
        without = (" ".join(s) for s in combinations(sentences, len(kept)))
        assert plain in without
        assert read(plain).key == key(example)


@pytest.mark.parametrize("spec", SPECS)
def test_good_solutions_are_graded_correct_and_others_are_not(spec: str) -> None:
    task = load_task(spec, split="train", size=20)
    assert isinstance(task, FamilyTask)
    for i in range(20):
        example = task[i]
        content = example.meta["content"]
        for text in (
            worked(task.family, content, Random(i), PERFECT),
            direct(task.family, content, Random(i), PERFECT),
        ):
            assert task.grade(example, text).status == GradeStatus.CORRECT
            assert task.grade(example, text).score == 1.0
        wrong = f"\\boxed{{{example.answer} + 1}}"
        assert task.grade(example, wrong).score == 0.0
        assert task.grade(example, wrong).status == GradeStatus.WRONG
        assert task.grade(example, "no idea").status == GradeStatus.NO_ANSWER
        assert task.grade(example, "<think>\n2 + 2 = 4").status == GradeStatus.UNCLOSED_THINK


COUNTDOWN = FAMILIES["countdown"]


def accepts(target: int, numbers: tuple[int, ...], answer: str) -> bool:
    assert COUNTDOWN.check is not None
    return COUNTDOWN.check((target, numbers), answer)


@pytest.mark.parametrize(
    "answer", ["7 + 3 - 4", "7+3-4", " 3 + 7 - 4 ", "7 - (4 - 3)", "(7) + ((3 - 4))", "3-(4-7)"]
)
def test_countdown_accepts_every_way_to_the_target(answer: str) -> None:
    assert accepts(6, (3, 4, 7), answer)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        " ",
        "6",
        "7 + 3",
        "7 + 3 - 4 - 0",
        "7 + 3 - 4 = 6",
        "3 + 3",
        "7 + 4 - 3",
        "7 + 3 + 4",
        "7 + 3 4 -",
        "7 3 - 4",
        "7 + 3 -",
        "7 + 3 - 4)",
        "(7 + 3 - 4",
        "()",
        "7 - -3 - 4",
        "--7 + 3 - 4",
        "7 * 3 - 4",
        "7 // 3 - 4",
        "7 + 3 - 4 if 1 else 0",
        "a + 7",
        "len([1,2,3]) + 7 - 4",
        "__import__('os')",
        "7 + 3 - 4.0",
        "7 + 3 - 0x4",
        "7 + 3 - 0b100",
        "7 + 3 - 4_",
        "True + 7 - 2",
        "'7' + 3 - 4",
        "\uff17 + 3 - 4",
        "\u0667 + 3 - 4",
        "7 + 3 \u2212 4",
        "7 + 3 - 4\x00",
        "7 + 3 - 4\n+ 0",
        "1 is 2",
        "'\\d'",
        "9" * 60,
        "9**9**9**9",
        "1" + "+1" * 30,
        "(" * 32 + ")" * 32,
        "(" * 64,
        "(" * 100_000,
        "-" * 64,
        "7 + 3 - 4" + " " * 100,
    ],
)
def test_countdown_refuses_what_is_wrong_or_hostile_at_once(answer: str) -> None:
    began = time.perf_counter()
    assert not accepts(6, (3, 4, 7), answer)
    assert time.perf_counter() - began < 0.5


@given(st.text(alphabet="0123456789+-() ", max_size=64))
def test_countdown_never_raises(answer: str) -> None:
    accepts(6, (3, 4, 7), answer)


@given(
    st.lists(st.integers(2, 13), min_size=2, max_size=4, unique=True).flatmap(
        lambda numbers: st.tuples(
            st.permutations(numbers), st.lists(st.sampled_from("+-"), min_size=3, max_size=3)
        )
    )
)
def test_countdown_agrees_with_the_plain_sum(drawn: tuple[list[int], list[str]]) -> None:
    numbers, signs = drawn
    pairs = list(zip(signs, numbers[1:], strict=False))
    expression = str(numbers[0]) + "".join(f" {sign} {number}" for sign, number in pairs)
    total = numbers[0] + sum(n if s == "+" else -n for s, n in pairs)
    assert accepts(total, tuple(sorted(numbers)), expression)
    assert not accepts(total + 1, tuple(numbers), expression)
    assert not accepts(total, (*numbers, 2), expression)


def test_countdown_problems_can_be_solved() -> None:
    for example in problems("countdown:difficulty=3", "train", size=30):
        target, numbers = example.meta["content"]
        signs = product((1, -1), repeat=len(numbers))
        totals = [sum(s * n for s, n in zip(p, numbers, strict=True)) for p in signs]
        assert target in totals


def test_parts_of_a_mixed_task_are_dealt_in_turn_and_graded_by_their_own() -> None:
    task = load_task("sum+countdown+rule:difficulty=1", split="train", size=9)
    assert len(task) == 9
    examples = [task[i] for i in range(9)]
    assert [e.meta["family"] for e in examples] == ["sum", "countdown", "rule"] * 3
    for example in examples:
        assert task.grade(example, f"\\boxed{{{example.answer}}}").score == 1.0
    assert len({e.id for e in examples}) == 9


def test_size_counts_the_problems_of_the_whole_task() -> None:
    for size in (1, 2, 7, 10):
        assert len(load_task("sum+story+rule", split="train", size=size)) == size
        assert len(load_task("sum+story+rule", split="test", size=size)) == size


@pytest.mark.parametrize("index", [-1, 5, 1000])
@pytest.mark.parametrize("spec", ["sum", "sum+story"])
def test_an_index_outside_is_an_index_error(spec: str, index: int) -> None:
    task: Task = load_task(spec, split="train", size=5)
    with pytest.raises(IndexError):
        task[index]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("", ["task=''", "sum", "countdown"]),
        ("+", ["task='+'", "sum"]),
        ("summ", ["task=summ", "did you mean sum?"]),
        ("poetry", ["task=poetry", "known are", "story"]),
        ("sum+poetry", ["task=poetry"]),
        ("sum+sum", ["task=sum+sum", "twice"]),
        ("sum:hard", ["'hard'", "sum", "key=value"]),
        ("sum:depth=3", ["depth=3", "sum", "difficulty"]),
        ("sum:difficulty=99", ["difficulty=99", "sum", "1 to 6"]),
        ("sum:difficulty=0", ["difficulty=0", "1 to 6"]),
        ("sum:difficulty=-3", ["difficulty=-3", "1 to 6"]),
        ("sum:difficulty=two", ["difficulty=two", "whole number"]),
        ("sum:difficulty=\u00b2", ["difficulty=\u00b2", "whole number"]),
        ("sum:difficulty=--2", ["difficulty=--2", "whole number"]),
        ("sum:difficulty=" + "9" * 5000, ["whole number"]),
        ("sum:size=0", ["size=0", "at least 1"]),
        ("sum:distract=5", ["distract=5", "0 to 4"]),
        ("rule:difficulty=1,size=100000", ["size=100000", "rule", "ask for fewer"]),
    ],
)
def test_a_wrong_spec_is_one_sentence(spec: str, words: list[str]) -> None:
    with pytest.raises(TaskError) as caught:
        load_task(spec)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_a_wrong_split_or_size_is_refused() -> None:
    with pytest.raises(TaskError, match="split=dev is unknown; use train or test"):
        load_task("sum", split="dev")
    with pytest.raises(TaskError, match="size=0 of task sum must be at least 1"):
        load_task("sum", size=0)
    with pytest.raises(TaskError, match="limit=many must be a whole number"):
        load_task("jsonl:anything.jsonl:limit=many", size=3)


def test_without_a_size_a_small_test_split_is_simply_small() -> None:
    assert 12 < len(load_task("countdown:difficulty=1")) < 500
    assert len(load_task("sum")) == 500


def test_specs_are_read_apart() -> None:
    assert parse_spec("sum") == ("sum", {})
    assert parse_spec("sum:a=1, b = 2 ,") == ("sum", {"a": "1", "b": "2"})
