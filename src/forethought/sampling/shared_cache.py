"""A key-value cache in two parts: prompts, one copy for all siblings, and what each row sampled.

A group is a prompt that has live rows; when its last row leaves, the last group takes its place.
Own keys and values stand by row, as in `SlotCache`: live rows are 0..n-1, and when one leaves the
last live row moves into its place. So a step reads a prompt once however many siblings it has, with
all their query heads in one matrix product (as Hydragen does, arXiv 2402.05099).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from forethought.sampling.cache import Prefill, cache_shape, round_up

Prompt = tuple[int, ...]
_FIRST_GROUPS = 8  # room for so many at first; it doubles when they are full


class SharedCache:
    """Keys and values of `max_rows` rows, whose prompts fit `prompt_columns` and whose completions
    fit `own_columns`."""

    def __init__(
        self, model: PreTrainedModel, max_rows: int, prompt_columns: int, own_columns: int
    ) -> None:
        self.shape = cache_shape(model)  # layers, kv_heads, head_dim
        self.dtype, self.device = model.dtype, model.device
        self.max_rows = max_rows
        self._prompt_columns, self.own_columns = round_up(prompt_columns), round_up(own_columns)
        self.own = self._allocate(max_rows, self.own_columns)
        self._prompts = self._allocate(min(max_rows, _FIRST_GROUPS), self._prompt_columns)
        self._groups: list[Prompt] = []
        self._place: dict[Prompt, int] = {}  # of each prompt in _groups
        self._members: list[list[int]] = []  # the rows of each group
        self._group_of: list[int] = []  # of each live row
        self._seating: _Seating | None = None

    def _allocate(self, count: int, columns: int) -> Tensor:
        """(layers, keys and values, count, kv_heads, columns, head_dim)"""
        layers, kv_heads, head_dim = self.shape
        shape = (layers, 2, count, kv_heads, columns, head_dim)
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    def join(self, row: int, prompt: Prompt, prefill: Prefill) -> None:
        """Row `row`, the next free one, begins behind `prompt`."""
        if prompt not in self._place:
            self._add_group(prompt, prefill)
        group = self._place[prompt]
        self._members[group].append(row)
        self._group_of.append(group)
        self._seating = None

    def _add_group(self, prompt: Prompt, prefill: Prefill) -> None:
        group = len(self._groups)
        if group == self._prompts.shape[2]:
            more = self._allocate(min(group, self.max_rows - group), self._prompt_columns)
            self._prompts = torch.cat([self._prompts, more], dim=2)
        self._groups.append(prompt)
        self._place[prompt] = group
        self._members.append([])
        for layer, pair in enumerate(prefill.layers):
            for part, values in enumerate(pair):  # (kv_heads, P, head_dim)
                self._prompts[layer, part, group, :, : len(prompt)] = values

    def leave(self, row: int, length: int) -> None:
        """Row `row` ends; the last live row, which has `length` tokens in all, takes its place."""
        last = len(self._group_of) - 1
        group = self._group_of[row]
        self._members[group].remove(row)
        if last != row:
            moved = self._group_of[last]
            own = length - len(self._groups[moved])
            self.own[:, :, row, :, :own] = self.own[:, :, last, :, :own]
            members = self._members[moved]
            members[members.index(last)] = row
            self._group_of[row] = moved
        self._group_of.pop()
        if not self._members[group]:
            self._drop_group(group)
        self._seating = None

    def _drop_group(self, group: int) -> None:
        last = len(self._groups) - 1
        del self._place[self._groups[group]]
        if group != last:
            self._prompts[:, :, group] = self._prompts[:, :, last]
            for row in self._members[last]:
                self._group_of[row] = group
            self._groups[group], self._members[group] = self._groups[last], self._members[last]
            self._place[self._groups[last]] = group
        self._groups.pop()
        self._members.pop()

    def begin_step(self, lengths: Sequence[int], num_heads: int) -> Step:
        """Row r's next token stands at position lengths[r], prompt included."""
        if self._seating is None:
            self._seating = self._seat(num_heads)
        return Step(self, self._seating, lengths)

    def _seat(self, num_heads: int) -> _Seating:
        seats = [0] * len(self._group_of)
        for members in self._members:
            for seat, row in enumerate(members):
                seats[row] = seat
        _, kv_heads, head_dim = self.shape
        num_groups, num_seats = len(self._groups), max(map(len, self._members))
        device = self.device
        lengths = torch.tensor([len(prompt) for prompt in self._groups], device=device)
        groups = torch.tensor(self._group_of, device=device)
        at_head = groups[:, None] * kv_heads + torch.arange(kv_heads, device=device)
        seated = at_head * num_seats + torch.tensor(seats, device=device)[:, None]
        width = int(lengths.max())
        prompts = self._prompts[:, :, :num_groups, :, :width].flatten(2, 3)
        is_hidden = torch.arange(width, device=device) >= lengths[:, None]
        # seats that nobody sits on stay 0 and are never read back
        lead = (num_groups * kv_heads * num_seats, num_heads // kv_heads)
        return _Seating(
            prompt_lengths=lengths[groups],
            seats=seated.flatten(),
            mask=_minus_infinity(is_hidden, self.dtype).repeat_interleave(kv_heads, 0)[:, None],
            keys=prompts[:, 0].transpose(2, 3).unbind(),
            values=prompts[:, 1].unbind(),
            queries=self.own.new_zeros(*lead, head_dim),
            weights=self.own.new_zeros(*lead, width),
        )


def _minus_infinity(where: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(where.shape, dtype=dtype, device=where.device).masked_fill_(
        where, float("-inf")
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seating:
    """What holds until a row comes or leaves. N = n * kv_heads: a row and one of its key-value
    heads; r: the query heads of one key-value head; g = groups * kv_heads."""

    prompt_lengths: Tensor  # (n,)
    seats: Tensor  # (N,), each one's place among all seats of all groups
    mask: Tensor  # (g, 1, P): -inf where a prompt has no such column
    keys: Sequence[Tensor]  # a layer: (g, head_dim, P)
    values: Sequence[Tensor]  # a layer: (g, P, head_dim)
    queries: Tensor  # (all seats, r, head_dim)
    weights: Tensor  # (all seats, r, P)


class Step:
    """What all layers of one decoding step share."""

    def __init__(self, cache: SharedCache, seating: _Seating, lengths: Sequence[int]) -> None:
        _, kv_heads, head_dim = cache.shape
        device, n = cache.device, len(lengths)
        self._seating = seating
        self._scale = head_dim**-0.5
        self._num_written = 2 * kv_heads
        own = torch.tensor(lengths, device=device) - seating.prompt_lengths  # (n,)
        width = int(own.max()) + 1
        is_hidden = torch.arange(width, device=device) > own[:, None]
        self._mask = _minus_infinity(is_hidden, cache.dtype).repeat_interleave(kv_heads, 0)[:, None]
        shown = cache.own[:, :, :n, :, :width].flatten(2, 3)
        self._keys = shown[:, 0].transpose(2, 3).unbind()  # a layer: (N, head_dim, T)
        self._values = shown[:, 1].unbind()  # a layer: (N, T, head_dim)
        self._stores = cache.own.flatten(1, 4).unbind()  # a layer: (all columns, head_dim)
        parts = torch.arange(2, device=device)[:, None] * cache.max_rows
        rows = torch.arange(n, device=device)[:, None, None]
        heads = (parts + rows) * kv_heads + torch.arange(kv_heads, device=device)
        self._written = (heads * cache.own_columns + own[:, None, None]).flatten()

    def attend(self, layer: int, heads: Tensor) -> Tensor:
        """Write this token's keys and values and attend: (n, query heads * head_dim).

        heads: (n, query heads + 2 * kv_heads, head_dim), queries before keys before values.
        """
        n, _, head_dim = heads.shape
        written = heads[:, -self._num_written :].reshape(-1, head_dim)
        self._stores[layer].index_copy_(0, self._written, written)
        num_rows = len(self._mask)
        queries = heads[:, : -self._num_written].reshape(num_rows, -1, head_dim)  # (N, r, head_dim)
        at = self._seating
        scores = torch.cat(
            [
                self._with_group(at.queries, queries, at.keys[layer], at.mask),
                torch.baddbmm(self._mask, queries, self._keys[layer], alpha=self._scale),
            ],
            dim=-1,
        )  # (N, r, P + T)
        weights = scores.softmax(dim=-1, dtype=torch.float32).to(heads.dtype)
        prompt, own = weights.split_with_sizes([at.mask.shape[-1], self._mask.shape[-1]], dim=-1)
        found = self._with_group(at.weights, prompt, at.values[layer])
        return found.baddbmm_(own, self._values[layer]).view(n, -1)

    def _with_group(
        self, seated: Tensor, rows: Tensor, right: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Rows (N, r, K) by what their group shares (g, K, M): (N, r, M); with a mask, scores."""
        seats = self._seating.seats
        seated.index_copy_(0, seats, rows)
        left = seated.view(len(right), -1, seated.shape[2])
        found = (
            torch.bmm(left, right)
            if mask is None
            else torch.baddbmm(mask, left, right, alpha=self._scale)
        )
        return found.view(*seated.shape[:2], -1).index_select(0, seats)
