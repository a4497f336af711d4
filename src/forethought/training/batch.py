"""Rows of tokens become right-padded batches under a token budget.

The only place that shifts tokens: `targets[n]` is the token that flat position `positions[n]`
predicts. Rows that begin with the same prompt may stand on one strip, the prompt once and their
completions behind it (`training/strips.py`); all others stand alone. A batch has a strip a row,
padded on the right, where causal attention never sees the padding; or, for models whose attention
goes by where strips begin (`training/lean_layers.py`), all strips behind each other in one row.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from forethought.models.heads import Reading, read_tokens
from forethought.models.precision import wide_attention
from forethought.models.recurring import largest_step, recurring
from forethought.training.lean_layers import has_lean_attention, lean_head, lean_layers
from forethought.training.pieces import in_pieces
from forethought.training.strips import Row, Strip, lay_out, pieces_of

# a batch ends early where rows become this much shorter than its first: padding is not computed
_MIN_WIDTH_RATIO = 0.8
# ... unless it is still so small, and padded so little, that starting another would cost more
_MIN_CELLS, _MAX_PADDING = 1024, 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Strips padded to one width, or behind each other in one row of cells; `positions` picks the
    N predicting positions that carry loss.

    `position_ids` and `branches` are None where each token stands at its own column and sees all
    before it.
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
    branches: Tensor | None  # (B, T) int64, see `mask_of`
    pieces: Sequence[Sequence[int]]  # of each strip, see `pieces_of`
    starts: Sequence[int]  # the cell where each strip begins, and where the last one's padding ends
    num_tokens: int  # unpadded

    @property
    def mask(self) -> Tensor | None:
        """(B, 1, T, T), see `mask_of`; None where causal attention is what is meant."""
        return None if self.branches is None else mask_of(self.branches)

    @property
    def is_flat(self) -> bool:
        return len(self.input_ids) < len(self.pieces)


def pack_batches(
    rows: Sequence[Row],
    *,
    max_batch_tokens: int,
    pad_id: int,
    device: str = "cpu",
    pairs_per_token: float = 0.0,
    flat_step: int = 0,
) -> Iterator[Batch]:
    """Batches of strips of similar length, at most `max_batch_tokens` cells each (one strip at
    least). `pairs_per_token` decides which rows share a strip (see `lay_out`); 0 shares none.
    `flat_step`: where it is not 0 strips stand behind each other, not below, and a multiple of it
    is a good number of cells (see `recurring`).

    The longest strips come first, so that running out of memory shows at once.
    """
    strips = lay_out(rows, pairs_per_token=pairs_per_token, max_tokens=max_batch_tokens)
    order = sorted(range(len(strips)), key=lambda i: (-len(strips[i].token_ids), i))
    start = 0
    while start < len(order):
        lengths = [len(strips[i].token_ids) for i in order[start:]]
        count = (_num_behind if flat_step else _num_below)(lengths, max_batch_tokens)
        some = [strips[i] for i in order[start : start + count]]
        widths = [lengths[0]] * count
        if flat_step:
            whole = sum(lengths[:count])
            rest = max(0, min(recurring(whole, flat_step), max_batch_tokens) - whole)
            widths = [*lengths[: count - 1], lengths[count - 1] + rest]
        yield _collate(some, widths, pad_id, device, is_flat=flat_step > 0)
        start += count


def _num_behind(lengths: Sequence[int], max_batch_tokens: int) -> int:
    """How many of the strips, longest first, go into one row, so that all rows that are needed
    become about as long: a last one with what is left would have a length of its own every time."""
    whole = sum(lengths)
    share = whole / -(-whole // max_batch_tokens)
    count, total = 1, lengths[0]
    while total < share and total + lengths[count] <= max_batch_tokens:
        total += lengths[count]
        count += 1
    return count


def _num_below(lengths: Sequence[int], max_batch_tokens: int) -> int:
    """How many of the strips, longest first, go below each other."""
    width = lengths[0]
    count, padding = 1, 0
    while count < len(lengths) and (count + 1) * width <= max_batch_tokens:
        padding += width - lengths[count]
        is_worth_ending = count * width >= _MIN_CELLS or padding > _MAX_PADDING
        if lengths[count] < _MIN_WIDTH_RATIO * width and is_worth_ending:
            break
        count += 1
    return count


def _collate(
    strips: Sequence[Strip], widths: Sequence[int], pad_id: int, device: str, *, is_flat: bool
) -> Batch:
    starts = list(accumulate(widths, initial=0))
    offsets = np.repeat(starts[:-1], [len(strip.learned.targets) for strip in strips])
    is_plain = not is_flat and all(max(strip.branches) <= 1 for strip in strips)

    def numbers(name: str, dtype: type[np.generic]) -> Tensor:
        """Of all tokens that carry loss; numpy reads a list several times faster than torch."""
        several = chain.from_iterable(getattr(strip.learned, name) for strip in strips)
        return torch.from_numpy(np.fromiter(several, dtype, len(offsets))).to(device)

    def cells(rows: Iterable[Sequence[int]], fill: int) -> Tensor:
        padded: list[int] = []
        for row, width in zip(rows, widths, strict=True):
            padded += row
            padded += [fill] * (width - len(row))
        found = torch.from_numpy(np.array(padded, np.int64))
        return found.view(1 if is_flat else len(strips), -1).to(device)

    branches = [
        [branch + (number * _MOST_BRANCHES if is_flat else 0) for branch in strip.branches]
        for number, strip in enumerate(strips)
    ]
    return Batch(
        input_ids=cells((s.token_ids for s in strips), pad_id),
        positions=torch.from_numpy(offsets).to(device) + numbers("predictors", np.int64),
        targets=numbers("targets", np.int64),
        weights=numbers("weights", np.float32),
        advantages=numbers("advantages", np.float32),
        sampler_logprobs=numbers("sampler_logprobs", np.float32),
        old_logprobs=numbers("old_logprobs", np.float32),
        rows=numbers("rows", np.int64),
        columns=numbers("columns", np.int64),
        position_ids=None if is_plain else cells((s.position_ids for s in strips), 0),
        branches=None if is_plain else cells(branches, -1),
        pieces=[pieces_of(strip) for strip in strips],
        starts=starts,
        num_tokens=sum(len(strip.token_ids) for strip in strips),
    )


_MOST_BRANCHES = 1 << 20


def mask_of(branches: Tensor) -> Tensor:
    """Who sees whom, (B, 1, T, T) bool, True where a query (dim 2) sees a key (dim 3): everyone
    the prompt of its strip and its own branch, as far as it came before.

    branches: (B, T), the number of the row's strip times _MOST_BRANCHES, plus 0 for a prompt and 1,
    2, ... for completions. Padding (-1) is a branch of its own, so that it sees something: a row
    without any key would come out as not a number.
    """
    keys, queries = branches[:, None, :], branches[:, :, None]
    is_prompt = keys == queries - queries % _MOST_BRANCHES
    return ((is_prompt | (keys == queries)).tril())[:, None]


def batch_logprobs(model: PreTrainedModel, batch: Batch, temperature: float = 1.0) -> Tensor:
    """log pi (N,) in nats of the batch's targets under `model`."""
    return read_batch(model, batch, temperature).logprobs


def read_batch(
    model: PreTrainedModel, batch: Batch, temperature: float = 1.0, *, wants_entropy: bool = False
) -> Reading:
    """Log-probabilities of the batch's targets, hidden states and, if wanted, entropies."""
    with lean_layers(model, batch.pieces, batch.starts) as knows_pieces:
        mask = _UNREAD if knows_pieces else batch.mask
        in_parts = nullcontext() if knows_pieces or batch.is_flat else in_pieces(mask, batch.pieces)
        with nullcontext() if knows_pieces else wide_attention(), in_parts:
            return read_tokens(
                model,
                batch.input_ids,
                batch.positions,
                batch.targets,
                temperature,
                position_ids=batch.position_ids,
                mask=mask,
                wants_entropy=wants_entropy,
                head_function=lean_head(model),
            )


_UNREAD = torch.ones(1, 1, 1, 1, dtype=torch.bool)  # or transformers would make one of its own


def flat_step(model: PreTrainedModel, dtype: torch.dtype) -> int:
    """For `pack_batches`: 0 for a model whose attention does not know where strips begin."""
    if not has_lean_attention(model):
        return 0
    if dtype == torch.float32:
        return 1
    base: Any = model.base_model
    return largest_step(sum(p.numel() for p in base.layers.parameters()), 9)


# The same siblings as in a group: one prompt, completions of different lengths.
_SIBLINGS = [[5, 7, 6, 9, 8], [5, 7, 6, 4], [5, 7, 6, 8, 8, 9]]  # ids that every vocabulary has
_TOLERANCE = 0.01  # nats; a wrong mask or position is off by tenths


@torch.no_grad()
def pairs_per_token(model: PreTrainedModel) -> float:
    """What a token costs this model outside attention, in pairs of a query and a key.

    About 24 * width^2 operations a token and block in the matrix products, 4 * width a pair.
    Infinite where attention is made for strips, so that a sibling adds no pair that it would not
    have alone. 0 for a model that reads a strip differently from separate rows, so that nothing is
    shared: found out by trying both on three short rows.
    """
    if has_lean_attention(model):  # held to it by tests
        return math.inf
    worth = 6.0 * float(model.config.get_text_config().hidden_size)
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
