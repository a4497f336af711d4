"""What is read out of a server's bytes: nothing that is not there, and nothing that breaks us."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forethought.sampling.openai_reply import (
    BadReply,
    Counts,
    error_message,
    join_reasoning,
    parse_choice,
    parse_counts,
    parse_reply,
    share,
)
from forethought.sampling.openai_stream import StreamReader
from forethought.sampling.retries import RetryPolicy, is_retryable, retry_after_seconds
from forethought.types import FinishReason, SamplingParams

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
FIELDS = ["message", "content", "reasoning", "finish_reason", "logprobs", "token_ids", "usage"]


def body(*choices: Any, **rest: Any) -> bytes:
    return json.dumps({"choices": list(choices)} | rest).encode()


def said(content: Any = "hi", **fields: Any) -> dict[str, Any]:
    return {"message": {"content": content}, "finish_reason": "stop"} | fields


def text_of(**message: Any) -> str:
    return parse_reply(body(said() | {"message": message})).choices[0].text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"{}",
        b'{"choices": []}',
        b'{"choices": {}}',
        b'{"choices": [1]}',
        b'{"choices": [{}]}',
        b'{"choices": [{"message": {"content": "hi"}}]}',  # no finish_reason: cut short
        b'{"choices": [{"message": {}, "finish_reason": "abort"}]}',
        b'{"error": {"message": "no"}, "choices": []}',
        b"[" * 100_000,
        b"9" * 100_000,
    ],
)
def test_a_body_that_is_no_reply_is_said_to_be_none(content: bytes) -> None:
    with pytest.raises(BadReply):
        parse_reply(content)
    error_message(content)


@given(st.dictionaries(st.sampled_from(FIELDS), JSON), JSON)
def test_no_json_breaks_the_reader(choice: dict[str, Any], usage: Any) -> None:
    for content in (choice, said() | choice, {"message": choice, "finish_reason": "stop"}):
        try:
            reply = parse_reply(body(content, usage=usage))
        except BadReply:
            continue
        [found] = reply.choices
        found.text.encode()
        assert all(value <= 0 for value in found.logprobs)
        assert len(found.logprobs) in (0, len(found.token_ids) or len(found.logprobs))


@given(st.binary())
def test_no_bytes_break_the_reader(content: bytes) -> None:
    with pytest.raises(BadReply):
        parse_reply(content)
    assert error_message(content).isprintable()


def test_content_comes_in_several_shapes() -> None:
    assert text_of(content=None) == text_of() == text_of(content=7) == ""
    assert text_of(content=[{"type": "text", "text": "a"}, {"text": "b"}, {"image": 1}]) == "ab"
    assert text_of(content="\ud800x") == "?x"


def test_reasoning_becomes_a_think_block_wherever_the_server_put_it() -> None:
    for name in ("reasoning", "reasoning_content"):
        assert text_of(content="so", **{name: "hm"}) == "<think>hm</think>so"
        assert text_of(content=None, **{name: "hm"}) == "<think>hm"  # cut within
        assert text_of(content="so", **{name: None}) == "so"
    both = text_of(content="so", reasoning="hm", reasoning_content="hm")
    assert both == "<think>hm</think>so"  # never twice
    for opening, closing in [
        ("<thinking>", "</thinking>"),
        ("\u25c1think\u25b7", "\u25c1/think\u25b7"),
        ("\n<|begin_of_thought|>", "<|end_of_thought|>"),
    ]:
        assert text_of(content=f"{opening}hm{closing}so") == "<think>hm</think>so"
    assert text_of(content="the tag <thinking> in text") == "the tag <thinking> in text"


def test_a_think_block_that_the_prefix_opened_is_not_opened_again() -> None:
    assert join_reasoning("hm", "so", prefix="<think>\n") == "hm</think>so"
    assert join_reasoning("hm", "so", prefix="<think></think>") == "<think>hm</think>so"


def test_choices_come_in_the_order_of_their_index() -> None:
    reply = parse_reply(body(said("b", index=1), said("a", index=0)))
    assert [choice.text for choice in reply.choices] == ["a", "b"]


def test_log_probabilities_of_some_tokens_alone_are_none() -> None:
    def logprobs(*values: Any) -> tuple[float, ...]:
        entries = [{"logprob": value} for value in values]
        return parse_choice(said(logprobs={"content": entries}), "").logprobs

    assert logprobs(-1, -0.5, 1e-9) == (-1.0, -0.5, 0.0)
    for bad in (None, "x", True, 1.0, float("nan"), float("-inf"), 10**400, -(10**400)):
        assert logprobs(-1.0, bad) == ()


def test_confidence_is_minus_the_mean_of_the_top_log_probabilities() -> None:
    tops = [{"logprob": -0.5}, {"logprob": -1.5}]
    entries = [{"logprob": -0.5, "top_logprobs": tops}]
    assert parse_choice(said(logprobs={"content": entries}), "").confidences == (1.0,)


def test_counts_that_are_no_counts_are_unknown() -> None:
    assert parse_counts({"prompt_tokens": -1, "completion_tokens": True}) == Counts()
    assert parse_counts({"prompt_tokens": 1.5, "completion_tokens": 10**30}) == Counts()
    assert parse_counts("7") == parse_counts(None) == Counts()
    details = {"completion_tokens_details": {"reasoning_tokens": 2}}
    details |= {"prompt_tokens_details": {"cached_tokens": 3}}
    found = parse_counts({"prompt_tokens": 5, "completion_tokens": 4} | details)
    assert found == Counts(prompt=5, cached=3, sampled=4, reasoning=2)


@given(st.integers(0, 10_000), st.lists(st.integers(0, 500), min_size=1, max_size=20))
def test_shares_add_up_and_go_with_the_weights(total: int, weights: list[int]) -> None:
    parts = share(total, weights)
    assert sum(parts) == total
    if sum(weights):
        for part, weight in zip(parts, weights, strict=True):
            assert abs(part - total * weight / sum(weights)) <= 1


def stream(*texts: str) -> bytes:
    chunks = [
        {"choices": [{"delta": {"content": text}}], "usage": {"completion_tokens": number}}
        for number, text in enumerate(texts, start=1)
    ]
    chunks.append({"choices": [{"delta": {}, "finish_reason": "stop"}]})
    lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
    return (": wait\n\n" + "".join(lines) + "data: [DONE]\n\n").encode()


@given(st.lists(st.text(), max_size=6), st.data())
def test_a_stream_reads_the_same_however_it_is_cut_up(
    texts: list[str], data: st.DataObject
) -> None:
    content = stream(*texts)
    marks = data.draw(st.lists(st.integers(0, len(content)), max_size=8).map(sorted))
    whole = StreamReader(SamplingParams(stop_at_boxed=False), "")
    pieces = StreamReader(SamplingParams(stop_at_boxed=False), "")
    assert whole.feed(content)
    for start, end in zip([0, *marks], [*marks, len(content)], strict=True):
        pieces.feed(content[start:end])
    assert pieces.reply() == whole.reply()
    expected = join_reasoning("", "".join(texts))
    assert whole.reply().choices[0].text == expected.encode("utf-8", "replace").decode()


def test_a_stream_that_breaks_off_is_no_reply() -> None:
    for part in (b"", stream("a", "b")[:-60], b"data: {}\n\n", b'data: {"error": "no"}\n\n'):
        reader = StreamReader(SamplingParams(), "")
        with pytest.raises(BadReply):
            reader.feed(part)
            reader.reply()
    with pytest.raises(BadReply, match="longer than"):
        StreamReader(SamplingParams(), "").feed(b"data: " + b"x" * (1 << 21))


def test_a_stream_ends_at_a_box_outside_the_think_block() -> None:
    reader = StreamReader(SamplingParams(), "<think>")
    assert not reader.feed(stream("\\boxed{1}")[:-60])
    reader = StreamReader(SamplingParams(), "It is \\boxed{")
    assert reader.feed(stream("4", "}", " and")[:-60])
    assert reader.reply().choices[0].finish_reason is FinishReason.BOXED
    assert reader.reply().choices[0].text == "4}"


def test_what_another_try_may_mend() -> None:
    mends = {408, 409, 425, 429, 500, 502, 503, 504, 529, 599}
    for status in {*mends, 302, 400, 401, 403, 404, 422, 501, 505}:
        assert is_retryable(status, {}, "") is (status in mends)
        assert is_retryable(status, {"x-should-retry": "false"}, "") is False
        assert is_retryable(status, {"x-should-retry": "true"}, "") is True


def test_an_empty_purse_is_not_mended_by_waiting() -> None:
    assert not is_retryable(429, {}, "insufficient_quota: check your plan")


def test_retry_after_is_read_in_seconds_and_as_a_date() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    for value, expected in [
        ("7", 7.0),
        ("0", 0.0),
        (format_datetime(now + timedelta(seconds=30), usegmt=True), 30.0),
        (format_datetime(now - timedelta(seconds=30), usegmt=True), 0.0),
        ("", 0.0),
        ("soon", 0.0),
        ("-3", 0.0),
        ("\u0661", 0.0),
        ("9" * 40, 0.0),
    ]:
        assert retry_after_seconds({"retry-after": value}, now) == expected
    assert retry_after_seconds({}) == 0.0


@given(st.integers(1, 2000), st.integers(0, 2**32))
def test_waits_grow_up_to_a_bound_and_are_spread_out(num_failed: int, seed: int) -> None:
    policy = RetryPolicy(first_wait_seconds=0.5, max_wait_seconds=30.0)
    wait = policy.wait_seconds(num_failed, Random(seed))
    assert 0.0 <= wait <= min(30.0, 0.5 * 2.0 ** min(num_failed, 10))
    assert wait != policy.wait_seconds(num_failed, Random(seed + 1))
