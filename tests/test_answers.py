r"""Reading the answer: the last box after the think block, or a status that says why not."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forethought.grading.answers import (
    MAX_ANSWER_CHARS,
    MAX_NESTING,
    extract_answer,
    has_closed_box,
    last_box,
    split_think,
)
from forethought.types import GradeStatus

PIECES = ["<think>", "</think>", "\\boxed{", "{", "}", "\\{", "\\}", "\\", "\\\\", "7", " ", "x\n"]
completions = st.lists(st.sampled_from(PIECES), max_size=30).map("".join)
plain = st.text(st.characters(exclude_characters="<>{}\\", exclude_categories=["Cs"]))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("\\boxed{5}", "5"),
        ("so $\\boxed{5}$ it is", "5"),
        ("\\boxed{4} no, \\boxed{5}", "5"),
        ("<think>\\boxed{4}</think>\n\\boxed{ 5 }", "5"),
        ("no opening tag</think> \\boxed{5}", "5"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{\\left\\{1}", "\\left\\{1"),
        ("\\\\boxed{5}", "5"),
        ("\\boxed{4 or \\boxed{5}}", "5"),
        ("\\boxed{4 \\boxed{5}", "5"),
    ],
)
def test_the_last_box_outside_the_think_block_is_the_answer(text: str, answer: str) -> None:
    extracted = extract_answer(text)
    assert (extracted.answer, extracted.status) == (answer, None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "The answer is 5.",
        "\\boxed{}",
        "\\boxed{ \n }",
        "\\boxed{5",
        "\\boxed{5\\}",
        "\\boxed 5",
        "\\boxed{4} then \\boxed{5",
        "\\boxed{4} then \\boxed{}",
        "<think>\\boxed{5}</think> five",
        "<think>\\boxed{5</think>}",
    ],
)
def test_no_answer_rather_than_a_guess(text: str) -> None:
    assert extract_answer(text).status is GradeStatus.NO_ANSWER
    assert extract_answer(text).answer is None


@pytest.mark.parametrize(
    "text", ["<think>\\boxed{5}", "\\boxed{5} <think>", "<think>a</think>\\boxed{5}<think>b"]
)
def test_an_open_think_block_has_no_answer(text: str) -> None:
    assert extract_answer(text).status is GradeStatus.UNCLOSED_THINK
    assert split_think(text)[1] == ""
    assert not has_closed_box(text)


def test_a_think_block_opened_by_the_prompt_must_close() -> None:
    assert extract_answer("\\boxed{5}", opened=True).status is GradeStatus.UNCLOSED_THINK
    assert extract_answer("6</think>\\boxed{5}", opened=True).answer == "5"
    assert not has_closed_box("\\boxed{5}", opened=True)
    assert split_think("6</think> 5", opened=True) == ("6", " 5")


def test_split_think() -> None:
    assert split_think("<think>a</think> b") == ("a", " b")
    assert split_think("b") == ("", "b")
    assert split_think("<think>a") == ("a", "")


def test_limits_of_length_and_nesting() -> None:
    longest = "1" * MAX_ANSWER_CHARS
    assert extract_answer(f"\\boxed{{{longest}}}").answer == longest
    assert extract_answer(f"\\boxed{{{longest}1}}").status is GradeStatus.NO_ANSWER
    deepest = "{" * (MAX_NESTING - 1) + "1" + "}" * (MAX_NESTING - 1)
    assert extract_answer(f"\\boxed{{{deepest}}}").answer == deepest
    assert extract_answer(f"\\boxed{{{{{deepest}}}}}").status is GradeStatus.NO_ANSWER


@pytest.mark.parametrize(
    "text",
    ["a{ " * 50_000, "\\boxed{" * 20_000, "\\" * 150_000, "<think>" * 20_000, "}<" * 70_000],
    ids=["braces", "boxes", "backslashes", "thinks", "closing"],
)
def test_time_is_linear_in_the_length(text: str) -> None:
    start = time.process_time()
    extract_answer(text)
    has_closed_box("\\boxed{" + text)
    split_think(text)
    assert time.process_time() - start < 1.0  # quadratic would be minutes


@given(st.text() | completions, st.booleans())
def test_never_raises_and_sets_exactly_one_of_answer_and_status(text: str, opened: bool) -> None:
    extracted = extract_answer(text, opened=opened)
    assert (extracted.answer is None) != (extracted.status is None)
    reasoning, visible = split_think(text, opened=opened)
    assert len(reasoning) + len(visible) <= len(text)


@given(completions, plain)
def test_a_box_in_the_think_block_never_counts(inside: str, after: str) -> None:
    text = f"<think>{inside}\\boxed{{5}}</think>{after}"
    assert extract_answer(text).answer is None
    assert not has_closed_box(text)


@given(plain, plain, plain.filter(lambda text: bool(text.strip())))
def test_a_box_after_the_think_block_counts(thought: str, before: str, answer: str) -> None:
    answer = answer[:MAX_ANSWER_CHARS].strip() or "5"
    text = f"<think>{thought}</think>{before}\\boxed{{{answer}}}"
    assert extract_answer(text).answer == answer
    assert has_closed_box(text)


@given(completions, st.booleans())
def test_has_closed_box_agrees_with_the_answer(text: str, opened: bool) -> None:
    """The sampler's stop and the grader read the same boxes (an empty box stops too)."""
    visible = split_think(text, opened=opened)[1]
    prefixes = (visible[:end] for end in range(len(visible) + 1))
    assert has_closed_box(text, opened=opened) == any(last_box(prefix) for prefix in prefixes)


def test_has_closed_box() -> None:
    assert has_closed_box("\\boxed{5} and \\boxed{")
    assert has_closed_box("\\boxed{4 \\boxed{5}")
    assert has_closed_box("<think>4</think>\\boxed{}")
    assert not has_closed_box("{5} \\boxed{5\\}")
    assert not has_closed_box("\\boxed{\\frac{1}{2}")


@given(completions)
def test_the_first_closed_box_of_a_stream_is_the_answer_read(text: str) -> None:
    """Sampling stops where has_closed_box turns true; what it stopped for must be readable."""
    for end in range(len(text) + 1):
        if has_closed_box(text[:end]):
            assert text[end - 1] == "}"
            assert last_box(text[:end]) is not None
            break
