"""A key-value cache in two parts: prompts, one copy for all siblings, and what each row sampled.

A group is a prompt that has live rows; when its last row leaves, the last group takes its place.
Own keys and values stand by row, as in `SlotCache`: live rows are 0..n-1, and when one leaves the
last live row moves into its place.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from forethought.sampling.cache import Prefill, cache_shape, round_up

Prompt = tuple[int, ...]
Floats = NDArray[np.float32]
Indices = NDArray[np.int64]
_FIRST_GROUPS = 8  # room for so many at first; it doubles when they are full


class SharedCache:
    """Keys and values in float32 of `max_rows` rows, whose prompts fit `prompt_columns` and whose
    completions fit `own_columns`.

    `prompts`: (layers, keys and values, groups, kv_heads, columns, head_dim); `own`: by rows.
    """

    def __init__(
        self, model: PreTrainedModel, max_rows: int, prompt_columns: int, own_columns: int
    ) -> None:
        self._shape = cache_shape(model)  # layers, kv_heads, head_dim
        self.max_rows = max_rows
        self._prompt_columns = round_up(prompt_columns)
        self.own = self._allocate(max_rows, round_up(own_columns))
        self.prompts = self._allocate(min(max_rows, _FIRST_GROUPS), self._prompt_columns)
        self._groups: list[Prompt] = []
        self._place: dict[Prompt, int] = {}  # of each prompt in _groups
        self._num_members: list[int] = []  # rows of each group
        self._group_of: list[int] = []  # of each live row

    def _allocate(self, count: int, columns: int) -> Floats:
        layers, kv_heads, head_dim = self._shape
        return np.empty((layers, 2, count, kv_heads, columns, head_dim), dtype=np.float32)

    @property
    def max_columns(self) -> int:
        """The most tokens that a row can attend to."""
        return self._prompt_columns + int(self.own.shape[4])

    def join(self, row: int, prompt: Prompt, prefill: Prefill) -> None:
        """Row `row`, the next free one, begins behind `prompt`."""
        assert row == len(self._group_of)
        if prompt not in self._place:
            self._add_group(prompt, prefill)
        group = self._place[prompt]
        self._num_members[group] += 1
        self._group_of.append(group)

    def _add_group(self, prompt: Prompt, prefill: Prefill) -> None:
        group = len(self._groups)
        if group == self.prompts.shape[2]:
            more = self._allocate(min(group, self.max_rows - group), self._prompt_columns)
            self.prompts = np.concatenate([self.prompts, more], axis=2)
        self._groups.append(prompt)
        self._place[prompt] = group
        self._num_members.append(0)
        for layer, pair in enumerate(prefill.layers):
            for part, values in enumerate(pair):  # (kv_heads, P, head_dim)
                self.prompts[layer, part, group, :, : len(prompt)] = values.float().numpy()

    def leave(self, row: int, length: int) -> None:
        """Row `row` ends; the last live row, which has `length` tokens in all, takes its place."""
        last = len(self._group_of) - 1
        group = self._group_of[row]
        if last != row:
            moved = self._group_of[last]
            own = length - len(self._groups[moved])
            self.own[:, :, row, :, :own] = self.own[:, :, last, :, :own]
            self._group_of[row] = moved
        self._group_of.pop()
        self._num_members[group] -= 1
        if not self._num_members[group]:
            self._drop_group(group)

    def _drop_group(self, group: int) -> None:
        last = len(self._groups) - 1
        del self._place[self._groups[group]]
        if group != last:
            self.prompts[:, :, group] = self.prompts[:, :, last]
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
