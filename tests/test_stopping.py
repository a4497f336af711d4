"""When a completion is over: stop strings, a closed box, loops."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from forethought.models.tiny import train_tokenizer
from forethought.sampling.rows import Row
from forethought.sampling.stopping import StopChecker, is_looping, text_before, unopened
from forethought.types import FinishReason, SamplingParams


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(["the answer is the answer, so stop here"] * 9, 300)


@cache
def checker() -> StopChecker:
    return StopChecker(tokenizer())


def ids_of(text: str) -> list[int]:
    return list(tokenizer()(text, add_special_tokens=False)["input_ids"])


def run(text: str, params: SamplingParams, before: str = "") -> tuple[str, FinishReason | None]:
    """Sample the tokens of `text` one by one: the text when the checker spoke, and what it said."""
    ids = ids_of(text)
    for end in range(1, len(ids) + 1):
        if reason := checker().reason(ids[:end], params, before):
            return str(tokenizer().decode(ids[:end])), reason
    return text, None


def stop_at(*stop: str) -> SamplingParams:
    return SamplingParams(stop=stop, stop_at_boxed=False, detect_loops=False)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=16), st.integers(64, 200), st.data())
def test_every_short_period_is_a_loop(period: list[int], length: int, data: st.DataObject) -> None:
    before = data.draw(st.lists(st.integers(0, 9), max_size=20))
    assert is_looping(before + (period * length)[:length])


@given(st.lists(st.integers(0, 3), max_size=63))
def test_fewer_than_64_tokens_are_no_loop(token_ids: list[int]) -> None:
    assert not is_looping(token_ids)


@given(st.lists(st.integers(0, 1), min_size=64, max_size=120))
@example([0, 1] * 40)
@example([0] * 16 + [1] + [0] * 60)
def test_a_loop_is_a_tail_equal_to_itself_some_steps_earlier(token_ids: list[int]) -> None:
    tail = token_ids[-64:]
    periods = [p for p in range(1, 17) if all(tail[i] == tail[i - p] for i in range(p, 64))]
    assert is_looping(token_ids) == bool(periods)


@given(st.integers(17, 60))
def test_longer_periods_are_no_loop(period: int) -> None:
    assert not is_looping([i % period for i in range(300)])


def test_the_checker_finds_loops_unless_told_not_to() -> None:
    assert checker().reason([8] * 64, SamplingParams(), "") is FinishReason.LOOP
    assert checker().reason([8] * 48, SamplingParams(), "") is None
    assert checker().reason([8] * 64, SamplingParams(detect_loops=False), "") is None


@pytest.mark.parametrize(
    ("text", "stop", "kept"),
    [
        ("so stop here", "stop", "so stop"),
        ("so stop here", "op h", "so stop here"),  # inside two tokens
        ("a\n\nb", "\n\n", "a\n\n"),
        ("one two", "e t", "one t"),
        ("caf\u00e9 \U0001f600 yes", "\U0001f600", "caf\u00e9 \U0001f600"),
        ("the answer", "the answer", "the answer"),
    ],
)
def test_stop_strings_straddle_tokens_and_stay(text: str, stop: str, kept: str) -> None:
    assert run(text, stop_at("never", stop)) == (kept, FinishReason.STOP)


@given(
    st.text(alphabet="ab \u00e9\n.\U0001f600", max_size=60),
    st.lists(st.text(alphabet="ab \u00e9\n.\U0001f600", min_size=1, max_size=4), max_size=3),
)
def test_stops_end_the_text_where_they_first_appear(text: str, stops: list[str]) -> None:
    found, reason = run(text, stop_at(*stops))
    assert (reason is FinishReason.STOP) == any(stop in text for stop in stops)
    ids = ids_of(found)[:-1]
    assert not any(stop in tokenizer().decode(ids) for stop in stops)


def test_a_stop_string_is_found_after_a_long_text() -> None:
    text = "the answer is here, " * 40
    assert run(text + "###end", stop_at("#en")) == (text + "###end"[:5], FinishReason.STOP)


def test_stops_are_looked_for_in_the_sampled_text_only() -> None:
    assert run("ine", stop_at("line"), before="l") == ("ine", None)
    assert run("b", stop_at("a"), before="a") == ("b", None)


@pytest.mark.parametrize(
    ("text", "before", "kept"),
    [
        ("is \\boxed{4}. So", "", "is \\boxed{4}"),
        ("\\boxed{\\frac{1}{2}} x", "", "\\boxed{\\frac{1}{2}}"),
        ("\\boxed{\\{1, 2\\}} x", "", "\\boxed{\\{1, 2\\}}"),
        ("<think>\\boxed{1}</think>\\boxed{2} x", "", "<think>\\boxed{1}</think>\\boxed{2}"),
        ("\\boxed{1} so </think> \\boxed{2} x", "<think>", "\\boxed{1} so </think> \\boxed{2}"),
        ("4} x", "The answer is \\boxed{", "4}"),
        ("{a} \\boxed{b} x", "", "{a} \\boxed{b}"),
    ],
)
def test_a_closed_box_ends_the_answer(text: str, before: str, kept: str) -> None:
    assert run(text, SamplingParams(), before) == (kept, FinishReason.BOXED)


@given(
    st.lists(st.sampled_from([" a", "}", "\\boxed{", "so "]), min_size=1, max_size=40).map("".join)
    | st.just("a}" * 40),
    st.sampled_from([(), ("so",), ("} ",)]),
    st.integers(1, 90),
    st.booleans(),
)
def test_rows_that_need_no_look_go_on(
    text: str, stops: tuple[str, ...], max_tokens: int, has_time: bool
) -> None:
    params = SamplingParams(stop=stops, max_seconds=9.0 if has_time else None)
    row = Row(0, 0, (1,), "", params, max_tokens, shares_prefill=False)
    for token in ids_of(text):
        row.token_ids.append(token)
        if not row.may_end(checker().closing_ids):
            assert checker().reason(row.token_ids, params, "") is None
            assert len(row.token_ids) < max_tokens and not has_time


@pytest.mark.parametrize("text", ["\\boxed{4", "{4}", "<think>\\boxed{4} and", "4}"])
def test_no_closed_box_no_end(text: str) -> None:
    assert run(text, SamplingParams()) == (text, None)


def test_boxes_pass_when_not_asked_to_stop() -> None:
    text = "\\boxed{4} and more"
    assert run(text, SamplingParams(stop_at_boxed=False)) == (text, None)


@pytest.mark.parametrize(
    ("prompt", "prefix", "before"),
    [
        ("Q", "", ""),
        ("Q<think>\n", "", "<think>"),
        ("Q<think>so \\boxed{1}", "<think>so \\boxed{1}", "<think>"),
        ("Q<think></think>\\boxed{", "<think></think>\\boxed{", "<think></think>\\boxed{"),
        ("Think in <think> and </think>. \\boxed{", "", ""),
        ("Q\\boxed{3} no: ", "\\boxed{3} no: ", ""),  # that box was not sampled
        ("Answer in \\boxed{}: ", "so", "so"),
    ],
)
def test_what_stopping_knows_of_the_prompt(prompt: str, prefix: str, before: str) -> None:
    assert text_before(prompt, prefix) == before


@pytest.mark.parametrize(
    ("prompt", "prefix", "expected"),
    [
        ("Ask?|", "<think>\nSo", "<think>\nSo"),
        ("Ask?|<think>\n", "<think>\nSo", "So"),
        ("Ask?|<think>", "<think>\nSo", "\nSo"),
        ("Ask?|<think>\n", "So", "So"),
        ("<think>|", "<think>So", "<think>So"),
    ],
)
def test_a_think_block_that_the_prompt_opened_is_not_opened_twice(
    prompt: str, prefix: str, expected: str
) -> None:
    assert unopened(prefix, prompt) == expected
