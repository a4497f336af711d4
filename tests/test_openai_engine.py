"""The engine over a chat server: what it finds out, what it sends, and what it makes of replies."""

from __future__ import annotations

from typing import Any

import pytest

from fault_server import OVERHEAD, Body, Dialect, Fault, FaultServer
from forethought.errors import EngineError, UserError
from forethought.sampling.openai import Limits, OpenAIEngine
from forethought.sampling.openai_client import ServerError, endpoint
from forethought.sampling.openai_probe import Traits
from forethought.sampling.pieces import Piece
from forethought.sampling.retries import RetryPolicy
from forethought.types import Engine, FinishReason, Message, Request, SamplingParams, Usage

VLLM = Dialect(token_ids=True, continues=True, live_usage=True, context=512)
OLLAMA = Dialect(n=False, seed=True, logprobs=False)
BARE = Dialect(n=False, seed=False, logprobs=False, usage=False)
LIVE = Traits(top_logprobs=True, token_ids=True, logprobs=True, live_counts=True)
NEWER_OPENAI = Dialect(is_strict=True, limit_field="max_completion_tokens")
OF_OPENAI = {"n", "seed", "logprobs", "top_logprobs", "counts", "end"}
STRICT = Dialect(n=False, seed=False, logprobs=False, is_strict=True)


def ask(text: str = "1 + 1", prefix: str = "", **params: Any) -> Request:
    sampling = SamplingParams(**({"max_tokens": 50} | params))
    messages = (Message(role="user", content=text),)
    return Request(messages=messages, prefix=prefix, params=sampling)


def open_engine(server: FaultServer, **options: Any) -> OpenAIEngine:
    return OpenAIEngine(endpoint(server.url), "fake", **options)


def saying(*tokens: str, **options: Any) -> FaultServer:
    """A server whose model always says the same."""
    return FaultServer(say=lambda _body, _index: tokens, **options)


@pytest.mark.parametrize(
    ("dialect", "expected"),
    [
        (VLLM, {*OF_OPENAI, "token_ids", "prefix", "live"}),
        (NEWER_OPENAI, OF_OPENAI),
        (OLLAMA, {"seed", "counts", "end"}),
        (BARE, {"seed"}),  # it ignores the seed, and nothing tells
        (STRICT, {"counts", "end"}),
    ],
    ids=["vllm", "newer openai", "ollama", "bare", "strict"],
)
def test_the_probe_finds_what_a_server_can_do(dialect: Dialect, expected: set[str]) -> None:
    with FaultServer(dialect=dialect) as server, open_engine(server) as engine:
        traits = engine.traits
        assert engine.traits is traits  # it is asked once
    found = {
        "n": traits.n,
        "seed": traits.seed,
        "logprobs": traits.logprobs,
        "top_logprobs": traits.top_logprobs,
        "token_ids": traits.token_ids,
        "prefix": traits.prefix,
        "counts": traits.counts,
        "live": traits.live_counts,
        "end": traits.end_counts,
    }
    assert {name for name, has in found.items() if has} == expected
    assert traits.limit_field == dialect.limit_field
    assert traits.context == dialect.context
    assert server.counted.calls <= 10
    assert all(body.get("max_tokens", 1) <= 2 for body in server.counted.bodies)


@pytest.mark.parametrize("dialect", [VLLM, NEWER_OPENAI, OLLAMA, BARE, STRICT])
@pytest.mark.parametrize("stream", [True, False])
def test_every_server_brings_as_many_completions_as_asked_for(
    dialect: Dialect, stream: bool
) -> None:
    requests = [ask(f"question {i}", n=3, seed=i) for i in range(4)]
    with FaultServer(dialect=dialect) as server, open_engine(server, stream=stream) as engine:
        assert isinstance(engine, Engine)
        has_n = engine.capabilities.n  # what a server can do is found by calls to it
        before = engine.traffic.num_calls
        found = engine.generate(requests)
        calls = engine.traffic.num_calls - before
        usage = sum((c.usage for group in found for c in group), start=Usage())
        assert usage.num_calls == calls == (4 if has_n else 12)
    assert [len(group) for group in found] == [3] * 4
    assert all(c.text.startswith("so") for group in found for c in group)


def test_a_server_without_n_gets_a_seed_a_sibling_and_one_with_n_one_a_request() -> None:
    with FaultServer(dialect=OLLAMA) as server, open_engine(server) as engine:
        first = engine.generate([ask(n=3, seed=5)])
        again = engine.generate([ask(n=1, seed=5, first_sibling=2)])
        seeds = [body["seed"] for body in server.counted.bodies[-4:]]
    assert len(set(seeds[:3])) == 3
    assert seeds[3] in seeds[:3]
    assert again[0][0].text == first[0][2].text
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_what_the_server_counts_is_what_the_usage_says() -> None:
    with FaultServer() as server, open_engine(server) as engine:
        probe = engine.traits and engine.traffic
        found = engine.generate([ask("one two three", n=4, stop_at_boxed=False)])[0]
        traffic = engine.traffic
    usage = sum((c.usage for c in found), start=Usage())
    assert usage.prompt_tokens == traffic.prompt_tokens - probe.prompt_tokens == 3 + OVERHEAD + 2
    assert usage.sampled_tokens == traffic.sampled_tokens - probe.sampled_tokens
    assert [c.usage.sampled_tokens for c in found] == [len(c.logprobs) for c in found]
    assert all(c.usage.peak_context == 9 + len(c.logprobs) for c in found)
    assert server.counted.sampled_tokens == traffic.sampled_tokens


def test_a_total_without_choices_is_split_and_stays_the_total() -> None:
    server = FaultServer(dialect=Dialect(logprobs=False))
    with server, open_engine(server) as engine:
        before = engine.traits and engine.traffic
        found = engine.generate([ask(n=5)])[0]
        after = engine.traffic
    assert all(c.token_ids == c.logprobs == () for c in found)
    counted = after.sampled_tokens - before.sampled_tokens
    assert sum(c.usage.sampled_tokens for c in found) == counted
    assert all(c.usage.sampled_tokens > 0 for c in found)


def test_a_server_that_counts_nothing_is_known_as_unmetered() -> None:
    with FaultServer(dialect=BARE) as server, open_engine(server) as engine:
        [[completion]] = engine.generate([ask()])
        with pytest.raises(EngineError, match="does not count tokens"):
            engine.count_prompt(ask("another"))
        assert engine.traffic.num_unmetered == engine.traffic.num_replies > 0
    assert completion.usage.total_tokens == 0
    assert not engine.traits.counts


def test_prompts_are_bounded_before_they_are_asked_and_exact_after() -> None:
    requests = [ask("one two three"), ask("\u00e9" * 40), ask("a b", prefix="so we")]
    with FaultServer(dialect=VLLM) as server, open_engine(server) as engine:
        bounds = [engine.count_prompt(request) for request in requests]
        counts = [engine.generate([r])[0][0].usage.prompt_tokens for r in requests]
        assert [engine.count_prompt(request) for request in requests] == counts
    assert all(bound >= count for bound, count in zip(bounds, counts, strict=True))


def test_ids_and_logprobs_come_where_the_server_gives_them() -> None:
    with FaultServer(dialect=VLLM) as server, open_engine(server) as engine:
        [[completion]] = engine.generate([ask(top_logprobs=3, stop_at_boxed=False)])
    size = completion.usage.sampled_tokens
    assert len(completion.token_ids) == len(completion.logprobs) == size > 0
    assert completion.confidences == (1.0,) * size


def test_a_prefix_is_gone_on_with_or_refused() -> None:
    request = ask(prefix="<think>\nDone.\n</think>")
    with FaultServer(dialect=VLLM) as server, open_engine(server) as engine:
        assert engine.capabilities.prefix
        engine.generate([request])
        body = server.counted.bodies[-1]
    assert body["messages"][-1] == {"role": "assistant", "content": request.prefix}
    assert body["continue_final_message"] and not body["add_generation_prompt"]
    with FaultServer() as server, open_engine(server) as engine:
        assert not engine.capabilities.prefix
        with pytest.raises(EngineError, match=r"request 0 .* does not continue one"):
            engine.generate([request])


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request(prompt_ids=(1, 2)), "messages, not prompt_ids"),
        (Request(messages=()), "no messages"),
        (ask(stop=("",)), "a stop string is empty"),
        (ask(top_logprobs=21), "20 top log-probabilities at most"),
    ],
)
def test_what_a_chat_server_cannot_sample_is_refused_before_it_is_sent(
    request_: Request, words: str
) -> None:
    with FaultServer() as server, open_engine(server) as engine:
        num_calls = engine.traits and server.counted.calls
        with pytest.raises(EngineError, match=f"request 1 cannot be sampled: .*{words}"):
            engine.generate([ask(), request_])
        assert server.counted.calls == num_calls


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content", None])
def test_reasoning_is_read_wherever_it_stands(field: str | None) -> None:
    tokens = ("let", " me", " see", "</think>", "It", " is", " \\boxed{2}")
    server = saying(*tokens, dialect=Dialect(reasoning_field=field))
    with server, open_engine(server) as engine:
        [[completion]] = engine.generate([ask()])
    opening = "<think>" if field else ""  # inline, the chat template has opened the block
    assert completion.text == opening + "let me see</think>It is \\boxed{2}"
    assert 0 < completion.usage.reasoning_tokens < completion.usage.sampled_tokens


def test_a_stream_is_left_at_the_box_and_the_rest_never_sampled() -> None:
    tokens = ["so", " \\boxed{2}", *[" more"] * 40]
    server = saying(*tokens, dialect=VLLM, hold_after=" \\boxed{2}")
    with server, open_engine(server, traits=LIVE) as engine:
        [[first], [second]] = engine.generate([ask("a"), ask("b")])
        for completion in (first, second):
            assert completion.text == "so \\boxed{2}"
            assert completion.finish_reason is FinishReason.BOXED
            assert completion.usage.sampled_tokens == len(completion.token_ids) == 2
        assert engine.traffic.num_lost == engine.traffic.num_cancelled == 0
    assert server.counted.left == 2


def texts_told(engine: OpenAIEngine, requests: list[Request]) -> dict[tuple[int, int], str]:
    """The texts that the pieces make, by (request, sibling); and the completions agree."""
    texts: dict[tuple[int, int], str] = {}

    def tell(piece: Piece) -> None:
        key = (piece.request, piece.sibling)
        texts[key] = texts.get(key, "")[: piece.start] + piece.text

    found = engine.generate(requests, on_piece=tell)
    whole = {(i, s): c.text for i, group in enumerate(found) for s, c in enumerate(group)}
    assert {key: whole[key] for key in texts} == texts
    return texts


@pytest.mark.parametrize(
    ("dialect", "told"),
    [
        (VLLM, {(0, 0), (1, 0), (1, 1)}),
        (NEWER_OPENAI, {(0, 0)}),  # a stream a sibling would be a call more
        (OLLAMA, {(0, 0)}),
        (BARE, set()),  # a stream would not be counted
    ],
)
def test_the_text_is_told_where_that_costs_no_call_and_no_count(
    dialect: Dialect, told: set[tuple[int, int]]
) -> None:
    tokens = ["<think>", "so", "</think>", " \boxed{2}", " and more"]
    requests = [ask("a", stop_at_boxed=False), ask("b", n=2, stop_at_boxed=False)]
    with saying(*tokens, dialect=dialect) as server, open_engine(server) as engine:
        before = engine.traits and engine.traffic
        assert texts_told(engine, requests).keys() == told
        after = engine.traffic
        assert after.num_unmetered == before.num_unmetered + (3 if dialect is BARE else 0)
        assert after.sampled_tokens - before.sampled_tokens == (0 if dialect is BARE else 15)
        assert (after.num_calls - before.num_calls == 2) == engine.capabilities.n


def test_a_stream_that_is_only_watched_is_read_to_its_end() -> None:
    tokens = ["so", " \boxed{2}", " more"]
    with saying(*tokens, dialect=OLLAMA) as server, open_engine(server) as engine:
        [[unwatched]] = engine.generate([ask()])
        assert texts_told(engine, [ask()]) == {(0, 0): unwatched.text}


def test_text_is_taken_back_when_a_stream_breaks_off() -> None:
    def cut_once(_call: int, body: Body) -> Fault:
        is_first = body["messages"][-1]["content"] == "a" and not starts
        return Fault.CUT if is_first else Fault.NONE

    starts: list[int] = []
    pieces: list[Piece] = []

    def say(body: Body, _index: int) -> list[str]:
        if body["messages"][-1]["content"] == "a":
            starts.append(len(starts))
        return ["one", " two", " three", " four"] if len(starts) < 2 else ["one", " and", " all"]

    quick = Limits(retries=RetryPolicy(first_wait_seconds=0.001))
    server = FaultServer(cut_once, say=say, dialect=VLLM)
    with server, open_engine(server, limits=quick) as engine:
        [[completion]] = engine.generate([ask("a")], on_piece=pieces.append)
    text = ""
    for piece in pieces:
        text = text[: piece.start] + piece.text
    assert text == completion.text == "one and all"


def test_a_stream_is_left_when_confidence_falls() -> None:
    server = saying(*["word"] * 40, dialect=VLLM, hold_after="word")
    unsure = ask(top_logprobs=2, min_confidence=1.5, confidence_window=1)
    with server, open_engine(server, traits=LIVE) as engine:
        assert engine.capabilities.aborts
        [[completion]] = engine.generate([unsure])
    assert completion.finish_reason is FinishReason.ABORTED
    assert completion.usage.cancelled_tokens == completion.usage.discarded_tokens == 1


@pytest.mark.parametrize("stream", [True, False])
def test_time_that_is_up_ends_a_completion_as_budget(stream: bool) -> None:
    server = saying("so", " on", dialect=VLLM, hold_after=" on" if stream else None)
    late = ask(max_seconds=1e-9, stop_at_boxed=False)
    with server, open_engine(server, stream=stream, traits=LIVE) as engine:
        [[completion]] = engine.generate([late])
        assert completion.finish_reason is FinishReason.BUDGET
        assert completion.usage.num_calls == engine.traffic.num_calls
    assert (completion.text, completion.usage.sampled_tokens) == (("so", 1) if stream else ("", 0))


def test_finish_reasons_are_told_apart() -> None:
    def finish(reason: str | None, stopped_by: str | None) -> Any:
        def change(reply: dict[str, Any]) -> dict[str, Any]:
            for choice in reply["choices"]:
                choice.update(finish_reason=reason, stop_reason=stopped_by)
            return reply

        return change

    for reason, stopped_by, expected in [
        ("stop", None, FinishReason.EOS),
        ("stop", "END", FinishReason.STOP),
        ("length", None, FinishReason.LENGTH),
        ("tool_calls", None, FinishReason.EOS),
        ("content_filter", None, FinishReason.LENGTH),
        ("who knows", None, FinishReason.EOS),
    ]:
        server = saying("so", reply=finish(reason, stopped_by))
        with server, open_engine(server) as engine:
            [[completion]] = engine.generate([ask(stop=("END",))])
        assert completion.finish_reason is expected
        assert completion.text == ("soEND" if stopped_by else "so")


def test_a_key_is_sent_from_its_variable_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    key = "sk-secret-1234"
    monkeypatch.setenv("MY_KEY", key)

    with FaultServer(dialect=STRICT) as server:
        here = endpoint(server.url, "MY_KEY")
        assert key not in repr(here)
        with OpenAIEngine(here, "fake") as engine:
            engine.generate([ask()])
            assert engine.endpoint is here
        assert {h["authorization"] for h in server.counted.headers} == {f"bearer {key}"}

    def echo(_reply: dict[str, Any]) -> Any:
        return {"error": {"message": f"wrong key {key}"}}

    quick = Limits(retries=RetryPolicy(max_retries=0))
    with (
        FaultServer(reply=echo) as server,
        OpenAIEngine(endpoint(server.url, "MY_KEY"), "fake", limits=quick) as engine,
        pytest.raises(ServerError, match=r"wrong key \*\*\*"),
    ):
        engine.generate([ask()])


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://localhost:8000", "http://localhost:8000/v1"),
        ("http://localhost:8000/", "http://localhost:8000/v1"),
        ("https://host/api/v1/", "https://host/api/v1"),
        ("http://host/v1/chat/completions", "http://host/v1"),
        ("http://[::1]:80/v1", "http://[::1]:80/v1"),
    ],
)
def test_an_address_is_taken_however_it_is_spelled(url: str, expected: str) -> None:
    assert endpoint(url).url == expected


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://host", "http://", "http://host:x", "http://[::1", ""]
)
def test_an_address_that_is_none_is_the_users_mistake(url: str) -> None:
    with pytest.raises(UserError, match=r"backend="):
        endpoint(url)


def test_an_address_with_a_secret_in_it_is_refused_without_showing_it() -> None:
    for url in ("http://me:secret@host/v1", "http://host/v1?key=secret"):
        with pytest.raises(UserError, match="environment variable") as caught:
            endpoint(url)
        assert "secret" not in str(caught.value)


def test_a_key_goes_only_where_it_belongs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    assert endpoint("https://api.openai.com/v1").api_key == "sk-1"
    assert endpoint("http://localhost:8000").api_key is None
    assert endpoint("http://localhost:8000", "OPENAI_API_KEY").api_key == "sk-1"
    monkeypatch.setenv("OPENAI_API_KEY", "sk\n1")
    with pytest.raises(UserError, match="characters that no key has"):
        endpoint("https://api.openai.com/v1")
    with pytest.raises(UserError, match="NO_SUCH_KEY is empty"):
        endpoint("http://localhost", "NO_SUCH_KEY")


def test_fields_of_the_users_own_go_into_every_body() -> None:
    extra = {"chat_template_kwargs": {"enable_thinking": False}}
    with FaultServer() as server, open_engine(server, extra=extra) as engine:
        engine.generate([ask()])
    assert all(body["chat_template_kwargs"] for body in server.counted.bodies)


def test_an_engine_works_inside_a_running_loop_and_closes_twice() -> None:
    import asyncio

    async def inside() -> list[list[Any]]:
        return engine.generate([ask()])

    with FaultServer() as server:
        engine = open_engine(server)
        assert len(asyncio.run(inside())[0]) == 1
        engine.close()
        engine.close()


def test_a_server_that_says_no_is_quoted() -> None:
    def refuse(reply: dict[str, Any]) -> Any:
        return {"error": {"message": "model \x1b[31m'fake' is \n not loaded"}}

    quick = Limits(retries=RetryPolicy(max_retries=1, first_wait_seconds=0.001))
    with (
        FaultServer(reply=refuse) as server,
        open_engine(server, limits=quick) as engine,
        pytest.raises(ServerError, match=r"is an error: model .*'fake' is not loaded"),
    ):
        engine.traits  # noqa: B018 - asks the server
