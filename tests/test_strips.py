"""Siblings on one strip: laid out rightly, and worth exactly what separate rows are worth."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from forethought.training.batch import Batch, batch_logprobs, mask_of, pack_batches, pairs_per_token
from forethought.training.strips import Row, Strip, lay_out
from model_families import FAMILIES, make_model

ALWAYS = 1e9  # pairs a token: sharing always pays


def row(prompt: Sequence[int], completion: Sequence[int], advantage: float = 1.0) -> Row:
    length = len(prompt) + len(completion)
    return Row(
        token_ids=[*prompt, *completion],
        weights=[0.0] * len(prompt) + [0.5] * len(completion),
        advantage=advantage,
        sampler_logprobs=[-0.1 * t for t in range(length)],
        num_prompt=len(prompt),
    )


def test_a_strip_by_hand() -> None:
    rows = [row([7, 8], [1, 2, 3], 2.0), row([7, 8], [4, 5], -1.0)]
    [strip] = lay_out(rows, pairs_per_token=ALWAYS, max_tokens=99)
    assert strip.token_ids == [7, 8, 1, 2, 3, 4, 5]
    assert strip.position_ids == [0, 1, 2, 3, 4, 2, 3]
    assert strip.branches == [0, 0, 1, 1, 1, 2, 2]
    found = strip.learned
    predicted = list(zip(found.predictors, found.targets, found.advantages, strict=True))
    # the prompt's last token predicts the first of both completions
    assert predicted == [(1, 1, 2.0), (2, 2, 2.0), (3, 3, 2.0), (1, 4, -1.0), (5, 5, -1.0)]
    assert found.sampler_logprobs == pytest.approx([-0.2, -0.3, -0.4, -0.2, -0.3])


def test_a_mask_by_hand() -> None:
    rows = [row([7, 8], [1, 2]), row([7, 8], [4]), row([9], [3])]
    [batch] = pack_batches(rows, max_batch_tokens=99, pad_id=0, pairs_per_token=ALWAYS)
    assert batch.input_ids.tolist() == [[7, 8, 1, 2, 4], [9, 3, 0, 0, 0]]
    assert batch.branches is not None and batch.position_ids is not None
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 2], [0, 1, 0, 0, 0]]
    mask = mask_of(batch.branches)
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]
    assert mask.any(dim=-1).all()  # nobody sees nothing, padding included
    assert not mask[1, 0, :2, 2:].any()  # and nobody sees the padding


def test_strips_behind_each_other_do_not_see_each_other() -> None:
    rows = [row([7, 8], [1, 2]), row([7, 8], [4]), row([9], [3])]
    [batch] = pack_batches(rows, max_batch_tokens=99, pad_id=0, pairs_per_token=ALWAYS, flat_step=1)
    assert batch.input_ids.tolist() == [[7, 8, 1, 2, 4, 9, 3]]
    assert batch.branches is not None and batch.position_ids is not None
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 2, 0, 1]]
    assert (batch.positions.tolist(), batch.targets.tolist()) == ([1, 2, 1, 5], [1, 2, 4, 3])
    assert mask_of(batch.branches)[0, 0, 4:].int().tolist() == [
        [1, 1, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1, 1],
    ]


def test_rows_alone_need_no_mask() -> None:
    rows = [row([7, 8], [1, 2]), row([7, 9], [4])]
    for pairs in (0.0, ALWAYS):
        [batch] = pack_batches(rows, max_batch_tokens=99, pad_id=0, pairs_per_token=pairs)
        assert batch.branches is None and batch.position_ids is None


PROMPTS = st.sampled_from([(7, 8), (7, 8, 9), (5,)])
COMPLETIONS = st.lists(st.integers(1, 50), min_size=1, max_size=9)
ROWS = st.lists(st.builds(row, PROMPTS, COMPLETIONS, st.floats(-2, 2)), min_size=1, max_size=20)


def learned(strips: Sequence[Strip]) -> Counter[tuple[Any, ...]]:
    """Every learned token with what stands before it, as its strip shows it."""
    found: Counter[tuple[Any, ...]] = Counter()
    for strip in strips:
        for predictor, *token in zip(*strip.learned, strict=True):
            branch = strip.branches[predictor]  # 0 for the first token of a completion
            before = tuple(
                strip.token_ids[c] for c in range(predictor + 1) if strip.branches[c] in (0, branch)
            )
            found[(before, *token)] += 1
    return found


@given(ROWS, st.sampled_from([0.0, 5.0, 20.0, ALWAYS]), st.integers(1, 60))
def test_sharing_loses_and_repeats_nothing(rows: list[Row], pairs: float, limit: int) -> None:
    alone = lay_out(rows, pairs_per_token=0.0, max_tokens=limit)
    strips = lay_out(rows, pairs_per_token=pairs, max_tokens=limit)
    assert len(alone) == len(rows)
    assert learned(strips) == learned(alone)
    assert sum(len(s.token_ids) for s in strips) <= sum(len(r.token_ids) for r in rows)
    for strip in strips:
        is_shared = max(strip.branches) > 1
        assert not is_shared or len(strip.token_ids) <= limit


def test_siblings_join_while_it_pays() -> None:
    def num_strips(prompt: int, completion: int, pairs: float) -> int:
        rows = [row([7] * prompt, [1] * completion) for _ in range(8)]
        return len(lay_out(rows, pairs_per_token=pairs, max_tokens=10**6))

    assert num_strips(40, 40, 0.0) == 8
    assert num_strips(40, 40, 768.0) == 1  # a model of width 128
    assert num_strips(40, 4000, 768.0) == 8  # attention would cost more than the prompt saves


def gradient(model: Any, batches: Sequence[Batch]) -> Tensor:
    model.zero_grad(set_to_none=True)
    for batch in batches:
        logprobs = batch_logprobs(model, batch)
        (logprobs * batch.weights * batch.advantages).sum().backward()
    parts = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return torch.cat(parts)


@pytest.mark.parametrize(
    ("family", "attention"), [(f, None) for f in FAMILIES] + [("llama", "eager"), ("gpt2", "eager")]
)
def test_the_gradient_of_a_strip_is_that_of_its_rows(family: str, attention: str | None) -> None:
    model = make_model(family, attention).eval()  # no dropout, as in training
    generator = torch.Generator().manual_seed(0)

    def tokens(count: int) -> list[int]:
        return torch.randint(3, 290, (count,), generator=generator).tolist()

    first, second = tokens(6), tokens(4)
    # more tokens on the strip than the sliding window of 64 holds, but not in any row
    rows = [row(first, tokens(n), 1.0 - n / 9) for n in (12, 18, 3, 7, 15, 19, 11)]
    rows += [row(second, tokens(n)) for n in (5, 8)]
    alone = list(pack_batches(rows, max_batch_tokens=10**4, pad_id=0))
    shared = list(
        pack_batches(rows, max_batch_tokens=10**4, pad_id=0, pairs_per_token=pairs_per_token(model))
    )
    assert not any(is_shared(b) for b in alone) and all(is_shared(b) for b in shared)
    assert sum(b.num_tokens for b in shared) < 0.8 * sum(b.num_tokens for b in alone)
    expected = gradient(model, alone)
    flat = list(
        pack_batches(rows, max_batch_tokens=10**4, pad_id=0, pairs_per_token=ALWAYS, flat_step=1)
    )
    for batches in (shared, flat):
        assert (gradient(model, batches) - expected).abs().max() < 1e-4 * expected.abs().max()


def is_shared(batch: Batch) -> bool:
    return batch.branches is not None


def test_the_gradient_of_a_strip_has_the_same_bits_every_time() -> None:
    """Siblings share the position that predicts their first token; indexing would add such terms
    up in the order in which the threads come."""
    model = make_model().eval()
    rows = [row([7] * 9, [1 + (i + t) % 50 for t in range(30 + i % 7)]) for i in range(64)]
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        batches = list(pack_batches(rows, max_batch_tokens=4096, pad_id=0, pairs_per_token=ALWAYS))
        first = gradient(model, batches)
        assert all(torch.equal(gradient(model, batches), first) for _ in range(5))
    finally:
        torch.set_num_threads(before)


def test_a_model_that_reads_strips_differently_shares_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make_model()
    assert pairs_per_token(model) == math.inf
    forward = model.model.forward

    def deaf(position_ids: object = None, **arguments: Any) -> Any:
        return forward(**arguments)

    monkeypatch.setattr(model.model, "forward", deaf)
    assert pairs_per_token(model) == 0.0
