"""The local engine: what it samples, whoever shares the batch, and what it refuses."""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch

from forethought.errors import EngineError
from forethought.models.heads import token_logprobs
from forethought.sampling.cache import TESTED_FAMILIES
from forethought.sampling.local import LocalEngine
from forethought.sampling.pieces import Piece
from forethought.sampling.prompts import encode_prompts
from forethought.sampling.rows import num_reasoning
from forethought.types import (
    Capabilities,
    Completion,
    CountsPrompts,
    Engine,
    FinishReason,
    Request,
    SamplingParams,
    Usage,
)
from model_families import FAMILIES, OTHERS, make_model, tokenizer


@cache
def llama() -> Any:
    return make_model()


def make_engine(model: Any = None, **options: Any) -> LocalEngine:
    return LocalEngine(model or llama(), tokenizer(), **options)


def speaking_model(text: str) -> Any:
    """A model that says `text` after its first token, whatever came before, then its end token."""
    ids = ids_of(text)
    assert len(set(ids)) == len(ids), "each token tells the next one"
    width = 8 * (len(tokenizer()) // 8 + 1)
    model = make_model(hidden_size=width, num_hidden_layers=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.model.norm.weight.fill_(1.0)
        model.model.embed_tokens.weight.copy_(torch.eye(len(tokenizer()), width))
        for now, following in zip(ids, [*ids[1:], tokenizer().eos_token_id], strict=True):
            model.lm_head.weight[following, now] = 2.0
    return model


def ids_of(text: str) -> list[int]:
    return list(tokenizer()(text, add_special_tokens=False)["input_ids"])


def greedy(max_tokens: int = 16, **options: Any) -> SamplingParams:
    options = {"stop_at_boxed": False, "detect_loops": False} | options
    return SamplingParams(max_tokens=max_tokens, temperature=0, **options)


def sampled(max_tokens: int = 16, **options: Any) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, detect_loops=False, **options)


def prompt_of(length: int, start: int = 20) -> tuple[int, ...]:
    return tuple(start + (7 * i) % 200 for i in range(length))


def one(engine: LocalEngine, request: Request) -> Completion:
    [[completion]] = engine.generate([request])
    return completion


def say(text: str, start: str, params: SamplingParams, **options: Any) -> Completion:
    """What is sampled after the prompt `start` by a model that says `text`."""
    request = Request(prompt_ids=tuple(ids_of(start)), params=params)
    return one(make_engine(speaking_model(text), **options), request)


def assert_same(found: list[list[Completion]], expected: list[list[Completion]]) -> None:
    """Equal in everything that must not depend on the batch; logprobs up to rounding."""
    assert [len(siblings) for siblings in found] == [len(siblings) for siblings in expected]
    for mine, theirs in zip(flat(found), flat(expected), strict=True):
        assert mine.prompt_ids == theirs.prompt_ids
        assert mine.token_ids == theirs.token_ids
        assert (mine.text, mine.finish_reason) == (theirs.text, theirs.finish_reason)
        assert mine.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)


def flat(found: list[list[Completion]]) -> list[Completion]:
    return [completion for siblings in found for completion in siblings]


# Against transformers


def generate_greedily(model: Any, prompt: Sequence[int], max_tokens: int) -> list[int]:
    ids = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        max_new_tokens=max_tokens,
        do_sample=False,
        pad_token_id=tokenizer().pad_token_id,
    )
    return ids[0, len(prompt) :].tolist()


def naive_logprobs(
    model: Any, prompt: Sequence[int], token_ids: Sequence[int], temperature: float = 1.0
) -> list[float]:
    """Of each sampled token, from one full forward pass without a cache."""
    with torch.inference_mode():
        logits = model(torch.tensor([[*prompt, *token_ids]]), use_cache=False).logits[0]
    logprobs = (logits.float() / temperature).log_softmax(-1)
    return [float(logprobs[len(prompt) + i - 1, t]) for i, t in enumerate(token_ids)]


@pytest.mark.parametrize(
    ("family", "attention"),
    [(family, None) for family in [*FAMILIES, *OTHERS]] + [("llama", "eager"), ("qwen2", "eager")],
)
def test_greedy_equals_transformers_token_for_token(family: str, attention: str | None) -> None:
    model = make_model(family, attention)
    engine = make_engine(model, max_rows=2)
    prompts = [prompt_of(length) for length in (3, 9, 1)]
    found = engine.generate([Request(prompt_ids=p, params=greedy()) for p in prompts])
    for prompt, [completion] in zip(prompts, found, strict=True):
        assert list(completion.token_ids) == generate_greedily(model, prompt, 16)
        expected = naive_logprobs(model, prompt, completion.token_ids)
        assert completion.logprobs == pytest.approx(expected, abs=1e-4)
    assert len({t for c in flat(found) for t in c.token_ids}) > 6, "a text worth comparing"


def test_every_family_that_skips_the_trial_is_compared_here() -> None:
    assert set(FAMILIES) == TESTED_FAMILIES


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_logprobs_are_those_of_a_full_forward_pass(temperature: float) -> None:
    params = sampled(temperature=temperature, n=2, top_p=0.9)
    requests = [Request(prompt_ids=prompt_of(length), params=params) for length in (2, 7, 12)]
    for completion in flat(make_engine(max_rows=4).generate(requests)):
        expected = naive_logprobs(llama(), completion.prompt_ids, completion.token_ids, temperature)
        assert completion.logprobs == pytest.approx(expected, abs=1e-4)


def test_logprobs_agree_with_the_trainer() -> None:
    completion = one(make_engine(), Request(prompt_ids=prompt_of(5), params=sampled(30)))
    row = torch.tensor([completion.prompt_ids + completion.token_ids])
    positions = torch.arange(4, row.shape[1] - 1)
    found = token_logprobs(llama(), row, positions, row[0, 5:])
    assert completion.logprobs == pytest.approx(found.tolist(), abs=1e-4)


def test_bfloat16_samples_with_finite_logprobs_close_to_float32() -> None:
    model = copy.deepcopy(llama()).to(torch.bfloat16)
    completion = one(make_engine(model), Request(prompt_ids=prompt_of(5), params=sampled(12)))
    expected = naive_logprobs(llama(), completion.prompt_ids, completion.token_ids)
    assert completion.logprobs == pytest.approx(expected, abs=0.5)


def test_samples_follow_the_distribution() -> None:
    prompt = prompt_of(4)
    params = sampled(1, temperature=2.0, n=4000, seed=5)
    [siblings] = make_engine(max_rows=4000).generate([Request(prompt_ids=prompt, params=params)])
    with torch.inference_mode():
        expected = (llama()(torch.tensor([prompt])).logits[0, -1] / 2.0).softmax(-1)
    drawn = torch.tensor([c.token_ids[0] for c in siblings])
    shares = torch.bincount(drawn, minlength=len(expected)) / len(drawn)
    distance = float((shares - expected).abs().sum() / 2)
    typical = float((expected * (1 - expected) / 4000).sqrt().sum() / 2)
    assert distance < 1.3 * typical


def test_top_p_never_leaves_the_nucleus() -> None:
    prompt = prompt_of(4)
    params = sampled(1, temperature=2.0, top_p=0.6, n=500)
    [siblings] = make_engine().generate([Request(prompt_ids=prompt, params=params)])
    with torch.inference_mode():
        probabilities = (llama()(torch.tensor([prompt])).logits[0, -1] / 2.0).softmax(-1)
    drawn = {c.token_ids[0] for c in siblings}
    assert len(drawn) > 2
    for token in drawn:
        assert probabilities[probabilities > probabilities[token]].sum() < 0.6


# One batch or many


def mixed_requests() -> list[Request]:
    """Requests unlike each other in everything, one prompt among them twice."""
    return [
        Request(prompt_ids=prompt_of(3), params=sampled(9, n=3, seed=1)),
        Request(prompt_ids=prompt_of(11), params=greedy(14)),
        Request(prompt_ids=prompt_of(6), params=sampled(5, n=2, seed=2, temperature=0.5)),
        Request(prompt_ids=prompt_of(3), params=sampled(12, n=2, seed=3, top_p=0.8)),
        Request(prompt_ids=prompt_of(1), params=sampled(1, seed=4)),
        Request(prompt_ids=prompt_of(8, 30), params=sampled(20, n=4, seed=5, temperature=3.0)),
    ]


@cache
def alone() -> list[list[Completion]]:
    """Every mixed request in a call of its own."""
    return [make_engine().generate([request])[0] for request in mixed_requests()]


@pytest.mark.parametrize("max_rows", [1, 2, 5, 64])
def test_results_do_not_depend_on_the_room_or_the_company(max_rows: int) -> None:
    found = make_engine(max_rows=max_rows).generate(mixed_requests())
    assert_same(found, alone())
    assert len({len(c.token_ids) for c in flat(found)}) > 3


def test_results_do_not_depend_on_the_order_of_requests() -> None:
    found = make_engine(max_rows=3).generate(mixed_requests()[::-1])
    assert_same(found[::-1], alone())


@pytest.mark.parametrize("options", [{"max_prefill_tokens": 1}, {"max_cache_bytes": 1}])
def test_little_memory_gives_the_same_results(options: dict[str, int]) -> None:
    found = make_engine(**options).generate(mixed_requests())
    assert_same(found, alone())


def test_one_engine_serves_calls_of_every_size() -> None:
    engine = make_engine()
    long = Request(prompt_ids=prompt_of(90), params=sampled(40, n=2))
    requests = [*mixed_requests(), long]
    expected = [*alone(), make_engine().generate([long])[0]]
    for request, siblings in [*zip(requests, expected, strict=True)] * 2:
        assert_same(engine.generate([request]), [siblings])


def test_seeds_tell_siblings_and_requests_apart() -> None:
    params = [sampled(8, n=4, seed=seed, temperature=3.0) for seed in (1, 2)]
    requests = [Request(prompt_ids=prompt_of(3), params=p) for p in params]
    found = make_engine().generate(requests)
    assert len({c.token_ids for c in flat(found)}) == 8


def test_a_sibling_is_the_same_among_fewer_or_more() -> None:
    def siblings(n: int, max_tokens: int) -> list[Completion]:
        params = sampled(max_tokens, n=n, seed=9)
        return make_engine().generate([Request(prompt_ids=prompt_of(3), params=params)])[0]

    for few, many in zip(siblings(2, 6), siblings(5, 12), strict=False):
        assert few.token_ids == many.token_ids[: len(few.token_ids)]


def recorded_inputs(model: Any) -> tuple[list[tuple[int, int]], Any]:
    """The (rows, columns) of every forward pass from now on, and the handle that ends it."""
    shapes: list[tuple[int, int]] = []

    def record(module: Any, args: Any) -> None:
        [token_ids] = args  # (rows, columns), or (rows,) in a decoding step
        shapes.append((*token_ids.shape, 1)[:2])

    return shapes, model.get_input_embeddings().register_forward_pre_hook(record)


def test_each_prompt_is_computed_once_and_rows_leave_when_they_end() -> None:
    prompts = [prompt_of(4), prompt_of(4, 60)]
    lengths = [2, 5, 3]  # the first prompt is asked for twice, its siblings apart
    requests = [
        Request(prompt_ids=p, params=greedy(length, n=3))
        for p, length in zip([prompts[0], prompts[1], prompts[0]], lengths, strict=True)
    ]
    shapes, handle = recorded_inputs(llama())
    try:
        make_engine(max_rows=2).generate(requests)
        assert sum(rows for rows, columns in shapes if columns > 1) == len(prompts)
        shapes.clear()
        make_engine(max_rows=64).generate(requests)
    finally:
        handle.remove()
    assert shapes == [(2, 4), (9, 1), (6, 1), (3, 1), (3, 1)]


def test_a_waiting_row_takes_the_place_of_one_that_ended() -> None:
    requests = [
        Request(prompt_ids=prompt_of(4, 20 + i), params=greedy(length))
        for i, length in enumerate([3, 6, 3])
    ]
    shapes, handle = recorded_inputs(llama())
    try:
        make_engine(max_rows=2).generate(requests)
    finally:
        handle.remove()
    assert [rows for rows, columns in shapes if columns == 1] == [2, 2, 2, 2, 1]


def test_on_finish_hears_of_every_completion_once_as_it_ends() -> None:
    heard: list[tuple[int, Completion]] = []
    requests = mixed_requests()
    found = make_engine(max_rows=3).generate(requests, lambda i, c: heard.append((i, c)))
    assert Counter(i for i, _ in heard) == {i: r.params.n for i, r in enumerate(requests)}
    assert {id(c) for _, c in heard} == {id(c) for c in flat(found)}
    assert all(any(c is mine for mine in found[i]) for i, c in heard)
    assert [i for i, _ in heard] != sorted(i for i, _ in heard), "as they end, not at the end"


def test_an_error_in_on_finish_leaves_the_engine_fit_for_the_next_call() -> None:
    engine = make_engine(max_rows=3)

    def fail(index: int, completion: Completion) -> None:
        raise KeyError(index)

    with pytest.raises(KeyError):
        engine.generate(mixed_requests(), fail)
    found = engine.generate(mixed_requests())
    assert_same(found, alone())


def test_usage_counts_every_token_once() -> None:
    requests = [
        Request(prompt_ids=prompt_of(4), params=greedy(3, n=2)),
        Request(prompt_ids=prompt_of(7), params=greedy(5)),
        Request(prompt_ids=prompt_of(4), params=greedy(2)),
    ]
    began = time.perf_counter()
    found = make_engine().generate(requests)
    wall = time.perf_counter() - began
    usages = [[c.usage for c in siblings] for siblings in found]
    counts = [
        [(u.prompt_tokens, u.cached_tokens, u.sampled_tokens, u.num_calls) for u in row]
        for row in usages
    ]
    assert counts == [[(4, 0, 3, 1), (4, 4, 3, 0)], [(7, 0, 5, 1)], [(4, 4, 2, 1)]]
    total = sum((u for row in usages for u in row), start=Usage())
    assert all(u.seconds > 0 for row in usages for u in row)
    assert total.seconds <= wall, "rows share the time, they do not each spend it"


def test_no_requests_no_completions() -> None:
    assert make_engine().generate([]) == []


def test_it_is_an_engine() -> None:
    engine = make_engine()
    assert isinstance(engine, Engine)
    assert engine.capabilities == Capabilities(
        prefix=True, logprobs=True, n=True, seed=True, confidences=True, aborts=True, streams=True,
        context=llama().config.max_position_embeddings,
    )  # fmt: skip
    assert isinstance(engine, CountsPrompts)


# What strategies ask for


def test_siblings_asked_for_later_are_those_of_one_request() -> None:
    prompt = prompt_of(5)
    whole = make_engine().generate([Request(prompt_ids=prompt, params=sampled(n=5, seed=3))])[0]
    later = sampled(n=2, seed=3, first_sibling=3)
    rest = make_engine().generate([Request(prompt_ids=prompt, params=later)])[0]
    assert [c.token_ids for c in rest] == [c.token_ids for c in whole[3:]]


def test_confidences_are_those_of_a_plain_forward_pass() -> None:
    prompt = prompt_of(5)
    completion = one(make_engine(), Request(prompt_ids=prompt, params=sampled(top_logprobs=7)))
    with torch.no_grad():
        ids = torch.tensor([[*prompt, *completion.token_ids]])
        logprobs = llama()(ids).logits.float().log_softmax(-1)[0, len(prompt) - 1 : -1]
    expected = -logprobs.topk(7, dim=-1).values.mean(-1)
    assert completion.confidences == pytest.approx(expected.tolist(), abs=1e-4)
    assert one(make_engine(), Request(prompt_ids=prompt, params=sampled())).confidences == ()


def test_a_row_is_aborted_when_its_window_falls_below_the_threshold() -> None:
    request = Request(prompt_ids=prompt_of(5), params=sampled(top_logprobs=5))
    free = one(make_engine(), request)
    window = 4
    means = [
        sum(free.confidences[i : i + window]) / window
        for i in range(len(free.confidences) - window + 1)
    ]
    lowest = min(means)
    params = sampled(top_logprobs=5, min_confidence=lowest + 1e-4, confidence_window=window)
    cut = one(make_engine(), Request(prompt_ids=prompt_of(5), params=params))
    place = next(i for i, mean in enumerate(means) if mean < lowest + 1e-4)
    assert cut.finish_reason is FinishReason.ABORTED
    assert cut.token_ids == free.token_ids[: place + window]
    assert cut.usage.discarded_tokens == cut.usage.cancelled_tokens == len(cut.token_ids)
    safe = sampled(top_logprobs=5, min_confidence=lowest - 1e-4, confidence_window=window)
    whole = one(make_engine(), Request(prompt_ids=prompt_of(5), params=safe))
    assert whole.token_ids == free.token_ids and whole.usage.discarded_tokens == 0


def test_prompts_are_counted_as_they_are_sampled() -> None:
    request = Request(prompt_ids=prompt_of(9), params=greedy(1))
    assert (
        make_engine().count_prompt(request) == 9 == one(make_engine(), request).usage.prompt_tokens
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a b", 0), ("<think>a</think>b", 16), ("<think>a", 8), ("a</think><think>b", 17)],
)
def test_reasoning_is_what_stands_up_to_the_closing_tag(text: str, expected: int) -> None:
    def decode(ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))

    ids = list(map(ord, text))
    assert num_reasoning(ids, text, "", decode) == expected
    if "<think>" not in text:
        assert num_reasoning(ids, text, "<think>", decode) == len(ids)


# How a completion ends


def test_the_end_token_is_kept_and_has_no_text() -> None:
    completion = say(" so it ends", " so", greedy())
    assert completion.token_ids == (*ids_of(" it ends"), tokenizer().eos_token_id)
    assert (completion.text, completion.finish_reason) == (" it ends", FinishReason.EOS)
    assert len(completion.logprobs) == len(completion.token_ids)


def test_max_tokens_truncates() -> None:
    completion = say(" so it never ends", " so", greedy(2))
    assert completion.finish_reason is FinishReason.LENGTH
    assert completion.token_ids == tuple(ids_of(" so it never ends")[1:3])


def test_the_end_token_counts_as_an_end_at_the_last_moment() -> None:
    length = len(ids_of(" it")) + 1
    assert say(" so it", " so", greedy(length)).finish_reason is FinishReason.EOS


@pytest.mark.parametrize("stop", ["ten", "o t", "ten el"])
def test_a_stop_string_ends_the_text_and_stays(stop: str) -> None:
    text = " so two ten eleven"
    completion = say(text, " so", greedy(stop=(stop,)))
    assert completion.finish_reason is FinishReason.STOP
    assert stop in completion.text
    before = tokenizer().decode(completion.token_ids[:-1])
    assert stop not in before


def test_a_stop_string_in_the_prompt_does_not_count() -> None:
    completion = say(" so two ten", " so", greedy(stop=(" so", "so two")))
    assert completion.finish_reason is FinishReason.EOS


def test_a_closed_box_ends_the_completion_unless_told_not_to() -> None:
    text = " so <think>x</think>\\boxed{7} yes"
    boxed = say(text, " so", greedy(40, stop_at_boxed=True))
    assert boxed.text == " <think>x</think>\\boxed{7}", "the markers stay in the text"
    assert boxed.finish_reason is FinishReason.BOXED
    assert say(text, " so", greedy(40)).text.endswith("\\boxed{7} yes")


def test_a_box_in_a_think_block_that_the_prompt_opened_ends_nothing() -> None:
    text = " so\\boxed{7} yes"
    params = greedy(40, stop_at_boxed=True)
    assert say(text, "<think> so", params).finish_reason is FinishReason.EOS
    assert say(text, "<think></think> so", params).finish_reason is FinishReason.BOXED


def test_loops_end_early_unless_told_not_to() -> None:
    model = speaking_model(" so two")
    again = ids_of(" so two")
    with torch.no_grad():
        model.lm_head.weight[tokenizer().eos_token_id, again[-1]] = 0.0
        model.lm_head.weight[again[0], again[-1]] = 2.0
    request = Request(prompt_ids=(again[0],), params=greedy(120, detect_loops=True))
    completion = one(make_engine(model), request)
    assert completion.finish_reason is FinishReason.LOOP
    assert len(completion.token_ids) < 100
    completion = one(make_engine(model), Request(prompt_ids=(again[0],), params=greedy(120)))
    assert (completion.finish_reason, len(completion.token_ids)) == (FinishReason.LENGTH, 120)


def test_a_completion_ends_at_the_edge_of_the_context() -> None:
    model = make_model("gpt2", max_position_embeddings=24)  # learned positions: there is no 25th
    found = make_engine(model).generate(
        [
            Request(prompt_ids=prompt_of(20), params=greedy(100)),
            Request(prompt_ids=prompt_of(5), params=greedy(10)),
        ]
    )
    assert [len(c.token_ids) for [c] in found] == [4, 10]
    assert found[0][0].finish_reason is FinishReason.LENGTH


# Messages and prefixes


def test_messages_go_through_the_chat_template() -> None:
    engine = make_engine()
    messages = ({"role": "user", "content": "what is 3 + 4?"},)
    expected = ids_of("<|user|>what is 3 + 4?<|assistant|>")
    assert engine.prompt_ids(Request(messages=messages)) == tuple(expected)
    with_prefix = Request(messages=messages, prefix="<think> so")
    assert engine.prompt_ids(with_prefix) == (*expected, *ids_of("<think> so"))
    several = [Request(prompt_ids=(5, 6)), with_prefix, Request(messages=messages), with_prefix]
    together = encode_prompts(engine.tokenizer, several)
    assert together == [engine.prompt_ids(request) for request in several]


@pytest.mark.parametrize(
    ("prefix", "said", "text", "reason"),
    [
        ("so \\boxed{", "\\boxed{7} yes", "7}", FinishReason.BOXED),
        ("<think> so", " so\\boxed{7} yes", "\\boxed{7} yes", FinishReason.EOS),
        ("\\boxed{3} no, so", " so {7} yes", " {7} yes", FinishReason.EOS),
        ("", "<|assistant|>\\boxed{7} yes", "\\boxed{7}", FinishReason.BOXED),
    ],
)
def test_a_completion_continues_its_prefix(
    prefix: str, said: str, text: str, reason: FinishReason
) -> None:
    messages = ({"role": "user", "content": "what is 3 + 4?"},)
    request = Request(messages=messages, prefix=prefix, params=greedy(40, stop_at_boxed=True))
    completion = one(make_engine(speaking_model(said)), request)
    assert (completion.text, completion.finish_reason) == (text, reason)


def test_a_template_that_refuses_is_an_engine_error() -> None:
    engine = make_engine()
    engine.tokenizer = copy.deepcopy(tokenizer())
    engine.tokenizer.chat_template = "{{ raise_exception('no system messages') }}"
    with pytest.raises(EngineError, match="no system messages"):
        engine.generate([Request(messages=({"role": "system", "content": "x"},))])


# What is refused


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (Request(prompt_ids=()), "no tokens"),
        (Request(prompt_ids=(5, 100_000)), "between 0 and"),
        (Request(prompt_ids=(5, -1)), "between 0 and"),
        (Request(prompt_ids=prompt_of(256)), "256 tokens and the model's context holds 256"),
        (Request(prompt_ids=prompt_of(9), prefix="so"), "prefix goes with messages"),
        (Request(prompt_ids=prompt_of(9), params=sampled(stop=("x", ""))), "stop string is empty"),
    ],
)
def test_a_request_that_cannot_be_sampled_is_named(request_: Request, said: str) -> None:
    heard: list[int] = []
    fine = Request(prompt_ids=prompt_of(3), params=sampled(2))
    with pytest.raises(EngineError, match=f"request 1 .*{said}"):
        make_engine().generate([fine, request_], lambda i, _: heard.append(i))
    assert heard == [], "nothing is sampled before every request is known to be sound"


def test_a_text_that_outgrows_a_sliding_window_is_refused() -> None:
    engine = make_engine(make_model("mistral"))
    with pytest.raises(EngineError, match="sliding window of 64"):
        engine.generate([Request(prompt_ids=prompt_of(50), params=greedy(15))])
    prompt = prompt_of(50)
    completion = one(engine, Request(prompt_ids=prompt, params=greedy(14)))
    assert list(completion.token_ids) == generate_greedily(engine.model, prompt, 14)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (lambda: make_model("bloom"), "bloom does not work"),
        (lambda: make_model("mamba"), "mamba has"),
        (lambda: make_wrong_model(), "decodes differently"),
        (lambda: make_model(attention="flex_attention"), "flex_attention"),
    ],
    ids=["alibi", "state space", "wrong", "attention"],
)
def test_a_model_that_it_would_sample_wrongly_is_refused(model: Any, said: str) -> None:
    with pytest.raises(EngineError, match=said):
        make_engine(model())


def make_wrong_model() -> Any:
    """A model of an untested family whose head does what the engine knows nothing of."""
    model = make_model("gpt_neox")
    forward = model.forward

    def halved(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.logits = output.logits / 2
        return output

    model.forward = halved
    return model


def test_broken_weights_are_an_error_and_leave_no_trace() -> None:
    model = copy.deepcopy(llama())
    engine = make_engine(model)
    request = Request(prompt_ids=prompt_of(3), params=sampled(4))
    expected = engine.generate([request])
    with torch.no_grad():
        model.model.layers[0].self_attn.v_proj.weight.fill_(float("nan"))
    with pytest.raises(EngineError, match="not finite"):
        one(engine, request)
    engine.update_weights(llama(), 1)
    assert_same(engine.generate([request]), expected)


# New weights


def test_update_weights_copies_in_place_and_sets_the_version() -> None:
    model = copy.deepcopy(llama()).to(torch.bfloat16)
    source = make_model()
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(0.5)
    engine = make_engine(model)
    before = [parameter.data_ptr() for parameter in model.parameters()]
    request = Request(prompt_ids=prompt_of(3), params=greedy(2))
    assert one(engine, request).policy_version == 0
    engine.update_weights(source, 7)
    assert [parameter.data_ptr() for parameter in model.parameters()] == before
    for mine, theirs in zip(model.parameters(), source.parameters(), strict=True):
        assert mine.dtype == torch.bfloat16
        assert torch.equal(mine, theirs.bfloat16())
    assert one(engine, request).policy_version == 7


def test_samples_after_an_update_are_those_of_the_new_weights() -> None:
    engine = make_engine(make_model(rms_norm_eps=1e-5))
    request = Request(prompt_ids=prompt_of(3), params=sampled(8))
    one(engine, request)
    source = copy.deepcopy(llama())
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.mul_(1.1)
    engine.update_weights(source, 1)
    completion = one(engine, request)
    expected = naive_logprobs(source, completion.prompt_ids, completion.token_ids)
    assert completion.logprobs == pytest.approx(expected, abs=1e-3)


def test_the_dtype_may_change_between_calls() -> None:
    engine = make_engine(copy.deepcopy(llama()))
    request = Request(prompt_ids=prompt_of(3), params=sampled(6))
    for dtype in (torch.float32, torch.bfloat16, torch.float32):
        engine.model.to(dtype)
        fresh = make_engine(engine.model).generate([request])
        assert_same(engine.generate([request]), fresh)


def test_sampling_leaves_the_global_random_state_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    make_engine().generate(mixed_requests())
    assert torch.equal(torch.rand(4), expected)


# Text as it grows


def told_by(engine: LocalEngine, requests: list[Request]) -> tuple[dict[Any, str], list[Piece]]:
    """The texts that the pieces make, by (request, sibling), after checking each against what was
    told before; and the completions agree."""
    texts: dict[Any, str] = {}
    pieces: list[Piece] = []

    def tell(piece: Piece) -> None:
        key = (piece.request, piece.sibling)
        texts[key] = texts.get(key, "")[: piece.start] + piece.text
        pieces.append(piece)

    found = engine.generate(requests, on_piece=tell)
    completed = {(i, s): c.text for i, group in enumerate(found) for s, c in enumerate(group)}
    assert {key: text for key, text in completed.items() if text} == texts
    return texts, pieces


def test_the_pieces_told_of_a_completion_are_its_text() -> None:
    _, pieces = told_by(make_engine(max_rows=3), mixed_requests())
    assert len(pieces) > 3 * len({(p.request, p.sibling) for p in pieces}), "a token at a time"
    assert_same(make_engine(max_rows=3).generate(mixed_requests()), alone())


def test_a_letter_of_several_tokens_is_told_with_the_last_of_them() -> None:
    text = " so \u00e9\u4e16 \U0001f600 it ends"
    ids = ids_of(text)
    if len(set(ids)) < len(ids):
        pytest.skip("this tokenizer repeats a byte of these letters")
    request = Request(prompt_ids=tuple(ids_of(" so")), params=greedy(40))
    texts, pieces = told_by(make_engine(speaking_model(text)), [request])
    assert texts[0, 0] == text.removeprefix(" so")
    assert not any("\ufffd" in piece.text for piece in pieces)
    assert all(
        piece.start == sum(len(p.text) for p in pieces[:i]) for i, piece in enumerate(pieces)
    )


def test_a_row_whose_time_is_over_before_it_began_costs_nothing() -> None:
    late = [Request(prompt_ids=prompt_of(5), params=sampled(max_seconds=1e-9, n=2))]
    shapes, handle = recorded_inputs(llama())
    try:
        [group] = make_engine().generate(late)
    finally:
        handle.remove()
    assert shapes == []
    assert [c.finish_reason for c in group] == [FinishReason.BUDGET] * 2
    assert sum((c.usage for c in group), start=Usage()) == Usage(num_calls=1)


def test_no_step_begins_that_would_end_past_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    engine = make_engine(max_rows=1)
    step = engine._decoder.step

    def slow(*arguments: Any) -> Any:
        now[0] += 1.0
        return step(*arguments)

    monkeypatch.setattr(engine._decoder, "step", slow)
    timed = Request(prompt_ids=prompt_of(5), params=sampled(max_tokens=40, max_seconds=3.5))
    free = Request(prompt_ids=prompt_of(6), params=sampled(max_tokens=6))
    [[first], [second], [never]] = engine.generate([timed, free, timed])
    assert first.finish_reason is FinishReason.BUDGET and len(first.token_ids) == 1 + 3
    assert len(second.token_ids) == 6 and second.finish_reason is FinishReason.LENGTH
    assert never.token_ids == () and never.finish_reason is FinishReason.BUDGET
