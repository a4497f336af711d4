"""A key-value cache in two parts: prompts, one copy for all siblings, and what each row sampled.

A group is a prompt that has live rows; when its last row leaves, the last group takes its place.
Own keys and values stand by row, as in `SlotCache`: live rows are 0..n-1, and when one leaves the
last live row moves into its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from forethought.sampling.cache import Prefill, cache_shape, round_up
from forethought.sampling.lanes import LANES

Prompt = tuple[int, ...]
Numbers = NDArray[np.float32] | NDArray[np.uint16]  # of bfloat16, the upper half of a float32
Indices = NDArray[np.int64]
Form = Literal["float32", "bfloat16"]
_FIRST_GROUPS = 8  # room for so many at first; it doubles when they are full


class Table(NamedTuple):
    """Keys (layers, count, kv_heads, blocks, head_dim, LANES), in blocks of LANES tokens, and
    values (layers, count, kv_heads, columns, head_dim rounded up to whole vectors)."""

    keys: Numbers
    values: Numbers

    @staticmethod
    def room(model: PreTrainedModel, count: int, columns: int, form: Form) -> Table:
        """For `count` sequences, not filled in yet; by torch, whose memory begins where a
        register's does."""
        layers, kv_heads, head_dim = cache_shape(model)
        dtype = torch.float32 if form == "float32" else torch.uint16
        columns = round_up(columns)
        shapes = (columns // LANES, head_dim, LANES), (columns, _whole(head_dim, LANES))
        return Table(
            *(torch.empty(layers, count, kv_heads, *s, dtype=dtype).numpy() for s in shapes)
        )

    def alone(self, place: int, length: int) -> Table:
        """A copy of the first `length` tokens of one place: a view would keep all of them alive."""
        blocks = _whole(length, LANES) // LANES
        return Table(
            self.keys[:, place : place + 1, :, :blocks].copy(),
            self.values[:, place : place + 1, :, :length].copy(),
        )

    def copy(self, origin: Table, source: int, target: int, length: int) -> None:
        """The first `length` tokens of one place in `origin` to one here."""
        blocks = _whole(length, LANES) // LANES
        self.keys[:, target, :, :blocks] = origin.keys[:, source, :, :blocks]
        self.values[:, target, :, :length] = origin.values[:, source, :, :length]

    def fill(self, layer: int, place: int, keys: Tensor, values: Tensor) -> None:
        """keys, values: (kv_heads, P, head_dim)."""
        kv_heads, length, size = keys.shape
        blocks = _whole(length, LANES) // LANES
        padded = keys.new_zeros(kv_heads, blocks * LANES, size)
        padded[:, :length] = keys
        in_blocks = padded.view(kv_heads, blocks, LANES, size).transpose(2, 3)
        self.keys[layer, place, :, :blocks] = self._stored(in_blocks)
        self.values[layer, place, :, :length, :size] = self._stored(values)

    def _stored(self, numbers: Tensor) -> Numbers:
        if self.keys.dtype == np.uint16:
            return numbers.bfloat16().view(torch.uint16).numpy()
        return numbers.float().numpy()


@dataclass(frozen=True, slots=True)
class Read:
    """A prompt that the lean step has read: its last logits (V,), and a table of what it left, and
    of nothing else."""

    logits: Tensor
    table: Table


class SharedCache:
    """Keys and values of `max_rows` rows, whose prompts fit `prompt_columns` and whose completions
    fit `own_columns`, in float32 or bfloat16."""

    def __init__(
        self,
        model: PreTrainedModel,
        max_rows: int,
        prompt_columns: int,
        own_columns: int,
        form: Form = "float32",
    ) -> None:
        self.max_rows = max_rows
        self.max_columns = round_up(prompt_columns) + round_up(own_columns)  # that a row sees
        self._room = partial(Table.room, model, columns=prompt_columns, form=form)
        self.own = Table.room(model, max_rows, own_columns, form)
        self.prompts = self._room(min(max_rows, _FIRST_GROUPS))
        self._groups: list[Prompt] = []
        self._place: dict[Prompt, int] = {}  # of each prompt in _groups
        self._num_members: list[int] = []  # rows of each group
        self._group_of: list[int] = []  # of each live row

    def join(self, row: int, prompt: Prompt, prefill: Prefill | Read) -> None:
        """Row `row`, the next free one, begins behind `prompt`."""
        assert row == len(self._group_of)
        if prompt not in self._place:
            self._add_group(prompt, prefill)
        group = self._place[prompt]
        self._num_members[group] += 1
        self._group_of.append(group)

    def _add_group(self, prompt: Prompt, prefill: Prefill | Read) -> None:
        group = len(self._groups)
        if group == self.prompts.keys.shape[1]:
            self._grow(min(2 * group, self.max_rows))
        self._groups.append(prompt)
        self._place[prompt] = group
        self._num_members.append(0)
        if isinstance(prefill, Read):
            self.prompts.copy(prefill.table, 0, group, len(prompt))
        else:
            for layer, (keys, values) in enumerate(prefill.layers):
                self.prompts.fill(layer, group, keys, values)

    def _grow(self, count: int) -> None:
        """Room for `count` prompts."""
        before, self.prompts = self.prompts, self._room(count)
        for old, new in zip(before, self.prompts, strict=True):
            new[:, : old.shape[1]] = old

    def leave(self, row: int, length: int) -> None:
        """Row `row` ends; the last live row, which has `length` tokens in all, takes its place."""
        last = len(self._group_of) - 1
        group = self._group_of[row]
        if last != row:
            moved = self._group_of[last]
            self.own.copy(self.own, last, row, length - len(self._groups[moved]))
            self._group_of[row] = moved
        self._group_of.pop()
        self._num_members[group] -= 1
        if not self._num_members[group]:
            self._drop_group(group)

    def _drop_group(self, group: int) -> None:
        last = len(self._groups) - 1
        del self._place[self._groups[group]]
        if group != last:
            self.prompts.copy(self.prompts, last, group, len(self._groups[last]))
            self._group_of = [group if g == last else g for g in self._group_of]
            self._groups[group] = self._groups[last]
            self._num_members[group] = self._num_members[last]
            self._place[self._groups[last]] = group
        self._groups.pop()
        self._num_members.pop()

    def seats(self, lengths: Sequence[int]) -> tuple[Indices, Indices, Indices]:
        """Where row r, whose next token stands at position lengths[r], prompt included, finds what
        it attends to: its group, its prompt's length, and how many own tokens it has with the next.
        Each (n,)."""
        groups = np.array(self._group_of, dtype=np.int64)
        prompts = np.array([len(prompt) for prompt in self._groups], dtype=np.int64)[groups]
        return groups, prompts, np.array(lengths, dtype=np.int64) - prompts + 1


def _whole(count: int, size: int) -> int:
    """`count` rounded up to a multiple of `size`."""
    return -(-count // size) * size
