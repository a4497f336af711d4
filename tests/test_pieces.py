"""Attention in pieces finds, and hands back, what attention with a strip's mask does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from forethought.training import pieces as pieces_module
from forethought.training.batch import batch_logprobs, mask_of, pack_batches
from forethought.training.pieces import in_pieces, is_cheaper
from forethought.training.strips import Row
from test_lean import build

STRIPS = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=3)


def branches_of(pieces: list[list[int]], width: int) -> torch.Tensor:
    rows = [[i for i, length in enumerate(strip) for _ in range(length)] for strip in pieces]
    return torch.tensor([[*row, *[-1] * (width - len(row))] for row in rows])


@given(pieces=STRIPS, padding=st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_pieces_are_attention_with_the_mask_and_have_its_gradient(
    pieces: list[list[int]], padding: int
) -> None:
    width = max(map(sum, pieces)) + padding
    mask, is_cell = mask_of(branches_of(pieces, width)), branches_of(pieces, width) >= 0
    torch.manual_seed(width)
    given = [torch.randn(len(pieces), 2, width, 8, requires_grad=True) for _ in range(3)]
    weights = torch.randn(len(pieces), 2, width, 8) * is_cell[:, None, :, None]
    found = []
    for way in (False, True):
        with pytest.MonkeyPatch.context() as patch, in_pieces(mask if way else None, pieces):
            patch.setattr(pieces_module, "_COST", -1)  # take them whatever they cost
            out = scaled_dot_product_attention(*given, attn_mask=mask)
        gradients = torch.autograd.grad((out * weights).sum(), given)
        found.append([out * is_cell[:, None, :, None], *gradients])
    for wanted, mine in zip(*found, strict=True):
        assert torch.allclose(wanted, mine, atol=1e-5)


def test_other_attention_is_left_alone() -> None:
    mask = mask_of(branches_of([[2, 3, 3]], 8))
    other = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    x = torch.randn(1, 2, 8, 4)
    with pytest.MonkeyPatch.context() as patch, in_pieces(mask, [[2, 3, 3]]):
        patch.setattr(pieces_module, "_COST", -1)
        found = scaled_dot_product_attention(x, x, x, attn_mask=other)
    assert torch.allclose(found, scaled_dot_product_attention(x, x, x), atol=1e-6)


def test_long_completions_are_attended_to_in_pieces_and_short_ones_together() -> None:
    assert is_cheaper([[80, 90, 85, 100]], 355, 512)
    assert not is_cheaper([[30, *[20] * 8]], 190, 128)
    assert not is_cheaper([[5], [4]], 5, 4096)


def test_a_model_reads_a_strip_the_same_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = build("qwen3")  # the others have lean layers
    rows = [
        Row(
            token_ids=[5, 7, 6, *range(10, 10 + own)],
            weights=[0.0] * 3 + [1.0] * own,
            num_prompt=3,
        )
        for own in (4, 9, 1)
    ]
    [batch] = pack_batches(rows, max_batch_tokens=99, pad_id=0, pairs_per_token=1e9)
    assert list(map(list, batch.pieces)) == [[3, 4, 9, 1]]
    found, calls, attend = [], [], pieces_module.attend
    monkeypatch.setattr(pieces_module, "attend", lambda *a: (calls.append(a), attend(*a))[1])
    for cost in (1 << 60, -1):
        monkeypatch.setattr(pieces_module, "_COST", cost)
        found.append(batch_logprobs(model, batch))
    assert len(calls) == model.config.num_hidden_layers
    assert torch.allclose(*found, atol=1e-5)
