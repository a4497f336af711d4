"""A key-value cache in two parts: prompts, one copy for all siblings, and what each row sampled.

A group is a prompt that has live rows. Live rows are 0..n-1, as in `SlotCache`, and when one leaves
the last live row takes its number; but nothing is copied: a row stays in its seat, as a group does,
and a free one is taken again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from forethought.sampling.cache import Prefill, cache_shape, round_up
from forethought.sampling.lanes import LANES

Prompt = tuple[int, ...]
Numbers = NDArray[np.float32] | NDArray[np.uint16] | NDArray[np.uint32]
Indices = NDArray[np.int64]
# Of bfloat16 the upper half of a float32 is kept. In "paired" it stands in words of two numbers,
# for AMX: of a key its numbers 2i and 2i + 1, of values those of tokens 2t and 2t + 1.
Form = Literal["float32", "bfloat16", "paired"]
_PAIRED = 2 * LANES  # tokens whose values are read together where they are paired


class Table(NamedTuple):
    """Keys (layers, count, kv_heads, blocks, head_dim, LANES), in blocks of LANES tokens, and
    values (layers, count, kv_heads, columns, head_dim rounded up to whole vectors). In pairs keys
    (layers, count, kv_heads, blocks, head_dim / 2, LANES), uint32, and values (layers, count,
    kv_heads, columns / 2, head_dim * 2), uint16."""

    keys: Numbers
    values: Numbers

    @staticmethod
    def room(model: PreTrainedModel, count: int, columns: int, form: Form) -> Table:
        """For `count` sequences, not filled in yet; by torch, whose memory begins where a
        register's does."""
        layers, kv_heads, head_dim = cache_shape(model)
        columns = round_up(columns)
        blocks, width = columns // LANES, _whole(head_dim, LANES)
        shapes = (blocks, head_dim, LANES), (columns, width)
        kinds = [torch.float32 if form == "float32" else torch.uint16] * 2
        if form == "paired":
            shapes = (blocks, head_dim // 2, LANES), (columns // 2, 2 * head_dim)
            kinds = [torch.uint32, torch.uint16]
        return Table(
            *(
                torch.empty(layers, count, kv_heads, *shape, dtype=kind).numpy()
                for shape, kind in zip(shapes, kinds, strict=True)
            )
        )

    @property
    def is_paired(self) -> bool:
        return self.keys.dtype == np.uint32

    def end(self, lengths: Indices) -> None:
        """Make what is read beyond each sequence's end 0, where it must be a number."""
        if self.is_paired:
            for place, length in enumerate(lengths):
                self.values[:, place, :, length // 2 : self._entries(length)] = 0

    def alone(self, place: int, length: int) -> Table:
        """A copy of the first `length` tokens of one place: a view would keep all of them alive."""
        blocks = _whole(length, LANES) // LANES
        return Table(
            self.keys[:, place : place + 1, :, :blocks].copy(),
            self.values[:, place : place + 1, :, : self._entries(length)].copy(),
        )

    def copy(self, origin: Table, source: int, target: int, length: int) -> None:
        """The first `length` tokens of one place in `origin` to one here."""
        blocks, entries = _whole(length, LANES) // LANES, self._entries(length)
        self.keys[:, target, :, :blocks] = origin.keys[:, source, :, :blocks]
        self.values[:, target, :, :entries] = origin.values[:, source, :, :entries]

    def fill(self, layer: int, place: int, keys: Tensor, values: Tensor) -> None:
        """keys, values: (kv_heads, P, head_dim)."""
        kv_heads, length, size = keys.shape
        blocks, entries = _whole(length, LANES) // LANES, self._entries(length)
        padded = keys.new_zeros(kv_heads, blocks * LANES, size)
        padded[:, :length] = keys
        in_blocks = padded.view(kv_heads, blocks, LANES, size).transpose(2, 3).contiguous()
        if self.is_paired:
            pairs = in_blocks.view(kv_heads, blocks, size // 2, 2, LANES).transpose(3, 4)
            words = pairs.bfloat16().contiguous().view(torch.int32)[..., 0]
            self.keys[layer, place, :, :blocks] = words.numpy().view(np.uint32)
            padded = values.new_zeros(kv_heads, 2 * entries, size)
            padded[:, :length] = values
            pairs = padded.view(kv_heads, entries, 2, size).transpose(2, 3).flatten(2)
            self.values[layer, place, :, :entries] = self._stored(pairs)
            return
        self.keys[layer, place, :, :blocks] = self._stored(in_blocks)
        self.values[layer, place, :, :length, :size] = self._stored(values)

    def _entries(self, length: int) -> int:
        """What is read of values (their fourth dimension) for so many tokens."""
        return _whole(length, _PAIRED) // 2 if self.is_paired else length

    def _stored(self, numbers: Tensor) -> Numbers:
        if self.values.dtype == np.uint16:
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
        self.own = Table.room(model, max_rows, own_columns, form)
        self.prompts = Table.room(model, max_rows, prompt_columns, form)  # untouched, it is nothing
        # of each live row, one below the other: its group, that is its place in `prompts`, how long
        # the prompt is, and its seat, in `own`
        self._rows = np.zeros((3, max_rows), np.int64)
        self._num_rows = 0
        self._order: tuple[Indices, Indices] | None = None  # while the rows stay
        self._free_seats = [*reversed(range(max_rows))]
        self._free_groups = [*reversed(range(max_rows))]
        self._place: dict[Prompt, int] = {}  # of each group that has rows
        self._prompts: list[Prompt] = [()] * max_rows  # of the groups
        self._num_members = [0] * max_rows

    def join(self, row: int, prompt: Prompt, prefill: Prefill | Read) -> None:
        """Row `row`, the next free one, begins behind `prompt`."""
        assert row == self._num_rows
        if prompt not in self._place:
            self._add_group(prompt, prefill)
        group = self._place[prompt]
        self._num_members[group] += 1
        self._rows[:, row] = group, len(prompt), self._free_seats.pop()
        self._num_rows, self._order = row + 1, None

    def _add_group(self, prompt: Prompt, prefill: Prefill | Read) -> None:
        group = self._free_groups.pop()
        self._prompts[group] = prompt
        self._place[prompt] = group
        if isinstance(prefill, Read):
            self.prompts.copy(prefill.table, 0, group, len(prompt))
        else:
            for layer, (keys, values) in enumerate(prefill.layers):
                self.prompts.fill(layer, group, keys, values)

    def leave(self, row: int, length: int) -> None:
        """Row `row` ends; the last live row, of that `length`, takes its number. Only a cache that
        copies it, as `SlotCache` does, needs to know the length."""
        group, _, seat = self._rows[:, row].tolist()
        self._free_seats.append(seat)
        self._num_rows, self._order = self._num_rows - 1, None
        self._rows[:, row] = self._rows[:, self._num_rows]
        self._num_members[group] -= 1
        if not self._num_members[group]:
            del self._place[self._prompts[group]]
            self._free_groups.append(group)

    def order(self) -> tuple[Indices, Indices]:
        """Live rows with siblings next to each other, and where in that order row r stands."""
        if self._order is None:
            order = np.argsort(self._rows[0, : self._num_rows], kind="stable")
            self._order = order, np.argsort(order)
        return self._order

    def seats(self, lengths: Indices) -> tuple[Indices, Indices, Indices, Indices]:
        """Where row r, whose next token stands at position lengths[r], prompt included, finds what
        it attends to: its group, its prompt's length, its seat, and how many own tokens it has with
        the next. Each (n,)."""
        groups, prompts, seats = self._rows[:, : self._num_rows]
        return groups, prompts, seats, lengths - prompts + 1


def _whole(count: int, size: int) -> int:
    """`count` rounded up to a multiple of `size`."""
    return -(-count // size) * size
