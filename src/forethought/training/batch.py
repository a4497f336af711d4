"""Rows of tokens become right-padded batches under a token budget.

The only place that shifts tokens: `targets[b, t]` is the token that position t predicts. Padding
stands on the right, so causal attention never sees it and no attention mask is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# a batch ends early where its rows become this much shorter than its first: padding is not computed
_MIN_WIDTH_RATIO = 0.8
_MIN_CELLS = 1024  # ... unless it is still so small that starting another would cost more


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One sequence to learn from. All sequences have one length.

    `weights[t]` normalises the loss of token t (0 leaves the token out); `advantage` multiplies
    all of them (1 in supervised training); `sampler_logprobs[t]` is what the sampler recorded.
    """

    token_ids: Sequence[int]
    weights: Sequence[float]
    advantage: float = 1.0
    sampler_logprobs: Sequence[float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Rows padded to one width; `positions` picks the N predicting positions that carry loss."""

    input_ids: Tensor  # (B, T) int64
    positions: Tensor  # (N,) int64, flat indices into (B * T)
    targets: Tensor  # (N,) int64
    weights: Tensor  # (N,) float32
    advantages: Tensor  # (N,) float32
    sampler_logprobs: Tensor  # (N,) float32, 0 where the rows bring none
    num_tokens: int  # unpadded


def pack_batches(
    rows: Sequence[Row], *, max_batch_tokens: int, pad_id: int, device: str = "cpu"
) -> Iterator[Batch]:
    """Batches of rows of similar length, at most `max_batch_tokens` cells each (one row at least).

    The widest batch comes first, so that running out of memory shows at once.
    """
    order = sorted(range(len(rows)), key=lambda i: (-len(rows[i].token_ids), i))
    start = 0
    while start < len(order):
        lengths = [len(rows[i].token_ids) for i in order[start:]]
        count = _batch_size(lengths, max_batch_tokens)
        yield _collate([rows[i] for i in order[start : start + count]], pad_id, device)
        start += count


def _batch_size(lengths: Sequence[int], max_batch_tokens: int) -> int:
    """How many of the rows, longest first, go into one batch."""
    width = lengths[0]
    count = 1
    while count < len(lengths) and (count + 1) * width <= max_batch_tokens:
        if lengths[count] < _MIN_WIDTH_RATIO * width and count * width >= _MIN_CELLS:
            break
        count += 1
    return count


def _collate(rows: Sequence[Row], pad_id: int, device: str) -> Batch:
    width = len(rows[0].token_ids)
    input_ids = torch.full((len(rows), width), pad_id, dtype=torch.int64)
    weights, advantages, sampler = (torch.zeros(len(rows), width) for _ in range(3))
    for b, row in enumerate(rows):
        length = len(row.token_ids)
        input_ids[b, :length] = torch.tensor(row.token_ids)
        weights[b, :length] = torch.tensor(row.weights)
        advantages[b, :length] = row.advantage
        if row.sampler_logprobs is not None:
            sampler[b, :length] = torch.tensor(row.sampler_logprobs)
    # token t + 1 is predicted at position t; the first token is never predicted
    learned = weights[:, 1:].nonzero(as_tuple=True)
    return Batch(
        input_ids=input_ids.to(device),
        positions=(learned[0] * width + learned[1]).to(device),
        targets=input_ids[:, 1:][learned].to(device),
        weights=weights[:, 1:][learned].to(device),
        advantages=advantages[:, 1:][learned].to(device),
        sampler_logprobs=sampler[:, 1:][learned].to(device),
        num_tokens=sum(len(row.token_ids) for row in rows),
    )
