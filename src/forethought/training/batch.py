"""Rows of tokens become right-padded batches under a token budget.

The only place that shifts tokens: `targets[n]` is the token that flat position `positions[n]`
predicts. Rows that begin with the same prompt may stand on one strip, the prompt once and their
completions behind it (`training/strips.py`); all others stand alone, padded on the right, where
causal attention never sees the padding and no attention mask is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from forethought.models.heads import Reading, read_tokens
from forethought.training.lean_layers import has_lean_attention, lean_layers
from forethought.training.pieces import in_pieces
from forethought.training.strips import Row, Strip, lay_out, pieces_of

# a batch ends early where rows become this much shorter than its first: padding is not computed
_MIN_WIDTH_RATIO = 0.8
# ... unless it is still so small, and padded so little, that starting another would cost more
_MIN_CELLS, _MAX_PADDING = 1024, 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Strips padded to one width; `positions` picks the N predicting positions that carry loss.

    `position_ids` and `mask` are None where every strip is one row: then each token stands at its
    own column and sees all before it.
    """

    input_ids: Tensor  # (B, T) int64
    positions: Tensor  # (N,) int64, flat indices into (B * T)
    targets: Tensor  # (N,) int64
    weights: Tensor  # (N,) float32
    advantages: Tensor  # (N,) float32
    sampler_logprobs: Tensor  # (N,) float32, 0 where the rows bring none
    old_logprobs: Tensor  # (N,) float32, the same
    rows: Tensor  # (N,) int64, the number of the row that a target belongs to
    columns: Tensor  # (N,) int64, where in its row it stands
    position_ids: Tensor | None  # (B, T) int64
    mask: Tensor | None  # (B, 1, T, T) bool, True where a query (dim 2) sees a key (dim 3)
    pieces: Sequence[Sequence[int]]  # of each strip, see `pieces_of`
    num_tokens: int  # unpadded


def pack_batches(
    rows: Sequence[Row],
    *,
    max_batch_tokens: int,
    pad_id: int,
    device: str = "cpu",
    pairs_per_token: float = 0.0,
) -> Iterator[Batch]:
    """Batches of strips of similar length, at most `max_batch_tokens` cells each (one strip at
    least). `pairs_per_token` decides which rows share a strip (see `lay_out`); 0 shares none.

    The widest batch comes first, so that running out of memory shows at once.
    """
    strips = lay_out(rows, pairs_per_token=pairs_per_token, max_tokens=max_batch_tokens)
    order = sorted(range(len(strips)), key=lambda i: (-len(strips[i].token_ids), i))
    start = 0
    while start < len(order):
        lengths = [len(strips[i].token_ids) for i in order[start:]]
        count = _batch_size(lengths, max_batch_tokens)
        yield _collate([strips[i] for i in order[start : start + count]], pad_id, device)
        start += count


def _batch_size(lengths: Sequence[int], max_batch_tokens: int) -> int:
    """How many of the strips, longest first, go into one batch."""
    width = lengths[0]
    count, padding = 1, 0
    while count < len(lengths) and (count + 1) * width <= max_batch_tokens:
        padding += width - lengths[count]
        is_worth_ending = count * width >= _MIN_CELLS or padding > _MAX_PADDING
        if lengths[count] < _MIN_WIDTH_RATIO * width and is_worth_ending:
            break
        count += 1
    return count


def _collate(strips: Sequence[Strip], pad_id: int, device: str) -> Batch:
    width = len(strips[0].token_ids)
    learned = [(b * width, token) for b, strip in enumerate(strips) for token in strip.learned]
    is_shared = any(max(strip.branches) > 1 for strip in strips)

    def floats(name: str) -> Tensor:
        return torch.tensor([getattr(t, name) for _, t in learned], dtype=torch.float32).to(device)

    def integers(name: str) -> Tensor:
        return torch.tensor([getattr(t, name) for _, t in learned], dtype=torch.int64).to(device)

    def cells(name: str, fill: int) -> Tensor:
        padded = [[*getattr(s, name), *[fill] * (width - len(s.token_ids))] for s in strips]
        return torch.tensor(padded, dtype=torch.int64).to(device)

    return Batch(
        input_ids=cells("token_ids", pad_id),
        positions=torch.tensor([at + t.predictor for at, t in learned], dtype=torch.int64).to(
            device
        ),
        targets=integers("target"),
        weights=floats("weight"),
        advantages=floats("advantage"),
        sampler_logprobs=floats("sampler_logprob"),
        old_logprobs=floats("old_logprob"),
        rows=integers("row"),
        columns=integers("column"),
        position_ids=cells("position_ids", 0) if is_shared else None,
        mask=_mask(cells("branches", -1)) if is_shared else None,
        pieces=[pieces_of(strip) for strip in strips],
        num_tokens=sum(len(strip.token_ids) for strip in strips),
    )


def _mask(branches: Tensor) -> Tensor:
    """Who sees whom: everyone the prompt (branch 0) and its own branch, as far as it came before.

    branches: (B, T). Returns (B, 1, T, T). Padding is a branch of its own, so that it sees
    something: a row without any key would come out as not a number.
    """
    keys, queries = branches[:, None, :], branches[:, :, None]
    return (((keys == 0) | (keys == queries)).tril())[:, None]


def batch_logprobs(model: PreTrainedModel, batch: Batch, temperature: float = 1.0) -> Tensor:
    """log pi (N,) in nats of the batch's targets under `model`."""
    return read_batch(model, batch, temperature).logprobs


def read_batch(
    model: PreTrainedModel, batch: Batch, temperature: float = 1.0, *, wants_entropy: bool = False
) -> Reading:
    """Log-probabilities of the batch's targets, hidden states and, if wanted, entropies."""
    width = batch.input_ids.shape[1]
    with in_pieces(batch.mask, batch.pieces), lean_layers(model, batch.pieces, width):
        return read_tokens(
            model,
            batch.input_ids,
            batch.positions,
            batch.targets,
            temperature,
            position_ids=batch.position_ids,
            mask=batch.mask,
            wants_entropy=wants_entropy,
        )


# The same siblings as in a group: one prompt, completions of different lengths.
_SIBLINGS = [[5, 7, 6, 9, 8], [5, 7, 6, 4], [5, 7, 6, 8, 8, 9]]  # ids that every vocabulary has
_TOLERANCE = 0.01  # nats; a wrong mask or position is off by tenths


@torch.no_grad()
def pairs_per_token(model: PreTrainedModel) -> float:
    """What a token costs this model outside attention, in pairs of a query and a key.

    About 24 * width^2 operations a token and block in the matrix products, 4 * width a pair. 0 for
    a model that reads a strip differently from separate rows, so that nothing is shared: found out
    by trying both on three short rows.
    """
    worth = 6.0 * float(model.config.get_text_config().hidden_size)
    if has_lean_attention(model):  # made for strips, and held to that by tests
        return worth
    rows = [
        Row(token_ids=ids, weights=[0.0] * 3 + [1.0] * (len(ids) - 3), num_prompt=3)
        for ids in _SIBLINGS
    ]
    found = []
    for pairs in (0.0, 1e9):
        [batch] = pack_batches(
            rows, max_batch_tokens=99, pad_id=0, device=str(model.device), pairs_per_token=pairs
        )
        logprobs = batch_logprobs(model, batch)
        found.append(sorted(zip(batch.targets.tolist(), logprobs.tolist(), strict=True)))
    alone, shared = found
    pairs_found = zip(alone, shared, strict=True)
    agrees = all(abs(a - b) <= _TOLERANCE for (_, a), (_, b) in pairs_found)  # never with a NaN
    return worth if agrees else 0.0
