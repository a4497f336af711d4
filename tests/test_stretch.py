"""Several tokens sampled in one go are those sampled one by one.

On CUDA a stretch is replayed from a graph; here the same step runs as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import chain
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forethought.sampling.cache import Prefill, SlotCache
from forethought.sampling.decoder import Decoder
from forethought.sampling.local import LocalEngine
from forethought.sampling.pieces import Piece
from forethought.sampling.stretch import TOKENS, Stretches
from forethought.types import Completion, Request, SamplingParams
from test_sampling import make_engine, prompt_of


@pytest.fixture
def num_stretches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Stretches wherever they can be: the numbers of rows of those that there were."""
    counts: list[int] = []
    run = Stretches.run

    def counted(self: Stretches, rows: Any) -> Any:
        counts.append(len(rows))
        return run(self, rows)

    monkeypatch.setattr(Stretches, "run", counted)
    monkeypatch.setattr("forethought.sampling.decoder.find_spec", lambda name: None)
    monkeypatch.setattr(Decoder, "_is_ahead", True)
    yield counts


def one_by_one(
    requests: list[Request], model: Any = None, **options: Any
) -> list[list[Completion]]:
    engine = make_engine(model, **options)
    engine._decoder.stretch = lambda cache, rows: None  # type: ignore[method-assign]
    return engine.generate(requests)


def assert_same(found: list[list[Completion]], wanted: list[list[Completion]]) -> None:
    for mine, theirs in zip(chain(*found), chain(*wanted), strict=True):
        assert mine.token_ids == theirs.token_ids
        assert mine.text == theirs.text
        assert mine.finish_reason == theirs.finish_reason
        assert mine.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)
        assert mine.usage.sampled_tokens == theirs.usage.sampled_tokens


PARAMS = st.builds(
    SamplingParams,
    max_tokens=st.integers(1, 4 * TOKENS),
    n=st.integers(1, 4),
    seed=st.integers(0, 9),
    temperature=st.sampled_from([0.0, 0.7, 1.0]),
    top_p=st.sampled_from([0.5, 1.0]),
)


@settings(max_examples=15, deadline=None)
@given(calls=st.lists(st.lists(PARAMS, min_size=1, max_size=4), min_size=1, max_size=2))
def test_whatever_is_asked_for(calls: list[list[SamplingParams]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("forethought.sampling.decoder.find_spec", lambda name: None)
        patch.setattr(Decoder, "_is_ahead", True)
        engine = make_engine(max_rows=5)  # fewer than rows, so that some wait for a place
        for call in calls:
            requests = [Request(prompt_ids=prompt_of(3 + i), params=p) for i, p in enumerate(call)]
            assert_same(engine.generate(requests), one_by_one(requests, max_rows=5))


def test_rows_that_end_early_are_cut_where_they_end(num_stretches: list[int]) -> None:
    params = SamplingParams(max_tokens=30, n=6, seed=3)
    requests = [Request(prompt_ids=prompt_of(4), params=params)]
    engine = make_engine()
    plain = one_by_one(requests)
    tokens = [c.token_ids for c in plain[0]]
    engine._end_ids = frozenset({tokens[0][2], tokens[1][11]})  # within a stretch
    found = engine.generate(requests)
    assert num_stretches
    for mine, whole in zip(found[0], tokens, strict=True):
        ends = [i for i, token in enumerate(whole) if token in engine._end_ids]
        assert mine.token_ids == (whole[: ends[0] + 1] if ends else whole)


def test_a_stretch_may_reach_beyond_the_context(num_stretches: list[int]) -> None:
    engine = make_engine()
    context = engine.capabilities.context
    assert context is not None
    prompt = prompt_of(3) * 50
    requests = [
        Request(prompt_ids=prompt[: context - 5], params=SamplingParams(max_tokens=99)),
        Request(prompt_ids=prompt_of(4), params=SamplingParams(max_tokens=40)),
    ]
    assert_same(engine.generate(requests), one_by_one(requests))
    assert num_stretches


def test_changed_weights_are_sampled_from(num_stretches: list[int]) -> None:
    model = copy.deepcopy(make_engine().model)
    requests = [Request(prompt_ids=prompt_of(4), params=SamplingParams(max_tokens=20, n=3))]
    engine: LocalEngine = make_engine(model)
    before = engine.generate(requests)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    after = engine.generate(requests)
    assert_same(after, one_by_one(requests, model))
    assert [c.token_ids for c in after[0]] != [c.token_ids for c in before[0]]


@pytest.mark.skipif(torch.cuda.is_available(), reason="here a step can be captured")
def test_a_step_that_cannot_be_captured_runs_without(
    num_stretches: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    requests = [Request(prompt_ids=prompt_of(4), params=SamplingParams(max_tokens=20, n=3))]
    engine = make_engine()
    engine.generate(requests)
    stretches = engine._decoder._stretches
    assert stretches is not None
    stretches._captures = True
    assert_same(engine.generate(requests), one_by_one(requests))
    assert "decoding without a CUDA graph" in caplog.text


def test_text_is_told_as_it_grows(num_stretches: list[int]) -> None:
    told: list[Piece] = []
    requests = [Request(prompt_ids=prompt_of(4), params=SamplingParams(max_tokens=20))]
    [[found]] = make_engine().generate(requests, on_piece=told.append)
    text = ""
    for piece in told:
        text = text[: piece.start] + piece.text
    assert text == found.text
    assert num_stretches


@pytest.mark.parametrize("extra", [{"top_logprobs": 3}, {"max_seconds": 60.0}])
def test_where_every_token_must_be_looked_at_there_is_no_stretch(
    extra: dict[str, Any], num_stretches: list[int]
) -> None:
    params = SamplingParams(max_tokens=12, **extra)
    requests = [Request(prompt_ids=prompt_of(4), params=params)]
    assert_same(make_engine().generate(requests), one_by_one(requests))
    assert not num_stretches


def test_layers_of_unequal_shape_have_tables_of_their_own() -> None:
    """As of families whose layers differ in heads, or whose keys are wider than their values."""
    model = make_engine().model
    count = int(model.config.num_hidden_layers)
    sizes = [(2 + layer, 3) for layer in range(count)]
    cache = SlotCache(model, 3, 8)
    prompts = [(5, 7), (6,), (8, 9, 4)]
    parts = [
        [(torch.randn(1, len(p), wide), torch.randn(1, len(p), narrow)) for wide, narrow in sizes]
        for p in prompts
    ]
    for row, (prompt, layers) in enumerate(zip(prompts, parts, strict=True)):
        cache.join(row, prompt, Prefill(torch.zeros(4), layers))
    cache.leave(0, len(prompts[2]))
    for layer, slots in enumerate(cache.slot_layers):
        keys, values = parts[2][layer]
        assert torch.equal(slots.keys[0, :, :3], keys)
        assert torch.equal(slots.values[0, :, :3], values)
