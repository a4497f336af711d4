"""A preallocated key-value cache whose rows come and go, and the two forward passes that fill it.

Row r of every layer holds one sequence from column 0 on. Live rows are 0..n-1; when one leaves,
the last live row moves into its place, so a forward pass only ever sees live rows and there is no
concatenation per token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

from forethought.errors import EngineError
from forethought.models.heads import attention_mask, project

_GROWTH = 64  # columns: capacity is rounded up so that similar calls reuse one allocation


class SlotLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """Keys and values of one layer: (max_rows, kv_heads, max_columns, head_dim)."""

    is_compileable = False
    is_sliding = False
    keys: Tensor
    values: Tensor

    def __init__(self, owner: SlotCache) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.owner = owner

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        rows, columns = self.owner.max_rows, self.owner.max_columns
        self.keys = key_states.new_zeros(rows, key_states.shape[1], columns, key_states.shape[3])
        self.values = value_states.new_zeros(
            rows, value_states.shape[1], columns, value_states.shape[3]
        )
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write one token a live row at its own column; return the live window."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        rows, columns = self.owner.row_index, self.owner.write_columns
        self.keys[rows, :, columns] = key_states[:, :, 0]
        self.values[rows, :, columns] = value_states[:, :, 0]
        live, width = len(rows), self.owner.width
        return self.keys[:live, :, :width], self.values[:live, :, :width]

    def store(self, row: int, keys: Tensor, values: Tensor) -> None:
        """Copy a prefilled prompt (kv_heads, P, head_dim) into a row."""
        if not self.is_initialized:
            self.lazy_initialization(keys[None], values[None])
        self.keys[row, :, : keys.shape[1]] = keys
        self.values[row, :, : values.shape[1]] = values

    def move(self, source: int, target: int, length: int) -> None:
        self.keys[target, :, :length] = self.keys[source, :, :length]
        self.values[target, :, :length] = self.values[source, :, :length]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.owner.width, 0

    def get_seq_length(self) -> int:
        return self.owner.width

    def get_max_length(self) -> int:
        return self.owner.max_columns


class SlotCache(Cache):
    """The cache of every layer, with the write positions that one decoding step sets."""

    def __init__(self, model: PreTrainedModel, max_rows: int, max_columns: int) -> None:
        num_layers = int(model.config.get_text_config().num_hidden_layers)
        self.slot_layers = [SlotLayer(self) for _ in range(num_layers)]
        super().__init__(layers=[*self.slot_layers])
        self.max_rows = max_rows
        self.max_columns = round_up(max_columns)
        self.dtype = model.dtype
        self.device = model.device
        self.row_index = torch.empty(0, dtype=torch.int64)
        self.write_columns = torch.empty(0, dtype=torch.int64)
        self.width = 0
        self.num_rows = 0
        # (layers, 2, rows, kv_heads, columns, head_dim), of which the layers' tensors are views;
        # None where layers differ in shape
        self._table: Tensor | None = None

    def fits(self, model: PreTrainedModel, rows: int, columns: int) -> bool:
        """Whether `model`, which may have changed its dtype or device, can use this allocation."""
        is_same = (self.dtype, self.device) == (model.dtype, model.device)
        return is_same and rows <= self.max_rows and columns <= self.max_columns

    def begin_step(self, lengths: Tensor, width: int) -> Tensor:
        """Set where this step writes: row r at column lengths[r], of `width` that are looked at.
        Returns the mask (n, 1, 1, W)."""
        self.row_index = torch.arange(len(lengths), device=lengths.device)
        self.write_columns = lengths
        self.width = width
        columns = torch.arange(self.width, device=lengths.device)
        return (columns[None, :] <= lengths[:, None])[:, None, None, :]

    def join(self, row: int, prompt: Sequence[int], prefill: Prefill) -> None:
        """Row `row`, the next free one, begins behind `prompt`."""
        if isinstance(prefill.layers, Tensor):
            self._table_like(prefill.layers)[:, :, row, :, : len(prompt)] = prefill.layers
        else:
            for layer, (keys, values) in zip(self.slot_layers, prefill.layers, strict=True):
                layer.store(row, keys, values)
        self.num_rows = row + 1

    def leave(self, row: int, length: int) -> None:
        """Row `row` ends; the last live row, which has `length` tokens in all, takes its place."""
        self.num_rows -= 1
        last = self.num_rows
        if row == last:
            return
        if self._table is not None:
            self._table[:, :, row, :, :length] = self._table[:, :, last, :, :length]
        else:
            for layer in self.slot_layers:
                layer.move(last, row, length)

    def _table_like(self, layers: Tensor) -> Tensor:
        """The table, made at the first row that joins."""
        if self._table is None:
            num_layers, _, kv_heads, _, size = layers.shape
            shape = (num_layers, 2, self.max_rows, kv_heads, self.max_columns, size)
            self._table = layers.new_zeros(shape)
            for layer, (keys, values) in zip(self.slot_layers, self._table, strict=True):
                layer.keys, layer.values, layer.is_initialized = keys, values, True
        return self._table


@dataclass(frozen=True, slots=True)
class Prefill:
    """What the siblings of one prompt share."""

    logits: Tensor  # (V,)
    # keys and values of each layer, (kv_heads, P, head_dim) both: one tensor (layers, 2, ...), so
    # that a copy is one operation, where all have one shape
    layers: Tensor | list[tuple[Tensor, Tensor]]


def prefill(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> list[Prefill]:
    """Run the prompts once, right-padded: causal attention never looks at the padding."""
    width = max(map(len, prompts))
    input_ids = torch.zeros(len(prompts), width, dtype=torch.int64)  # (B, P)
    for b, prompt in enumerate(prompts):
        input_ids[b, : len(prompt)] = torch.tensor(prompt)
    cache: Any = DynamicCache()
    hidden = model.base_model(
        input_ids=input_ids.to(model.device), past_key_values=cache, use_cache=True
    ).last_hidden_state  # (B, P, D)
    ends = torch.tensor([len(p) - 1 for p in prompts], device=hidden.device)
    logits = project(model, hidden[torch.arange(len(prompts), device=hidden.device), ends])
    return [Prefill(logits[b], _part(cache, b, len(prompt))) for b, prompt in enumerate(prompts)]


def _part(cache: Any, b: int, length: int) -> Tensor | list[tuple[Tensor, Tensor]]:
    """Row b of a prefilled cache. Copied: a view would keep the whole batch alive while one sibling
    waits."""
    pairs = [(layer.keys[b, :, :length], layer.values[b, :, :length]) for layer in cache.layers]
    parts = list(chain.from_iterable(pairs))
    if len({part.shape for part in parts}) == 1:
        return torch.stack(parts).view(len(pairs), 2, *parts[0].shape)
    return [(keys.clone(), values.clone()) for keys, values in pairs]


def decode(
    model: PreTrainedModel, cache: SlotCache, token_ids: Sequence[int], lengths: Sequence[int]
) -> Tensor:
    """Feed one token a live row, whose cache holds lengths[r] tokens: logits (n, V)."""
    return decode_at(
        model,
        cache,
        torch.tensor(token_ids, device=model.device),
        torch.tensor(lengths, device=model.device),
        max(lengths) + 1,
    )


def decode_at(
    model: PreTrainedModel, cache: SlotCache, token_ids: Tensor, positions: Tensor, width: int
) -> Tensor:
    """The same of tensors (n,) on the model's device, whose values the host does not look at: no
    position may reach `width`. Logits (n, V)."""
    mask = attention_mask(model, cache.begin_step(positions, width))
    hidden = model.base_model(
        input_ids=token_ids[:, None],
        attention_mask=mask,
        position_ids=positions[:, None],
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state  # (n, 1, D)
    return project(model, hidden[:, 0])


# Families whose cached decoding the tests compare with transformers' own, token for token.
TESTED_FAMILIES = frozenset({"gemma2", "gemma3_text", "gpt2", "llama", "mistral", "qwen2", "qwen3"})


def require_supported(model: PreTrainedModel) -> None:
    """Raise EngineError for a model that this engine would sample from wrongly.

    A family outside TESTED_FAMILIES must first decode a few tokens as its own full forward does.
    """
    config = model.config.get_text_config()
    other = set(getattr(config, "layer_types", None) or []) - {
        "full_attention",
        "sliding_attention",
    }
    if other:
        raise unsupported(model, f"has {', '.join(sorted(other))} layers")
    attention = model.config._attn_implementation
    if attention not in ("eager", "sdpa"):
        raise unsupported(model, f"attends with {attention}; load it with sdpa or eager")
    if config.model_type not in TESTED_FAMILIES and (problem := _try_decoding(model)):
        raise unsupported(model, problem)


def unsupported(model: PreTrainedModel, problem: str) -> EngineError:
    return EngineError(
        f"the local engine cannot sample from this model: {model.config.model_type} {problem}"
    )


@torch.inference_mode()
def _try_decoding(model: PreTrainedModel) -> str | None:
    """What is wrong with the cached decoding of two rows of unequal length, None when nothing."""
    rows = [[5, 7, 6, 9, 8, 4], [6, 5, 8, 7]]  # ids that every vocabulary has
    cache = SlotCache(model, len(rows), 8)
    caller: Any = model
    try:
        for slot, found in enumerate(prefill(model, [row[:-2] for row in rows])):
            cache.join(slot, rows[slot][:-2], found)
        for back in (2, 1):
            lengths = [len(row) - back for row in rows]
            logits = decode(model, cache, [row[-back] for row in rows], lengths).float()  # (2, V)
        full = [caller(torch.tensor([row], device=model.device)).logits[0, -1] for row in rows]
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError) as error:
        return f"does not work with its cache ({type(error).__name__})"
    wanted = torch.stack(full).float()
    tolerance = 0.01 if model.dtype == torch.float32 else 0.5  # low precision wanders
    distance = (logits - wanted).abs().max() / wanted.std()
    return None if bool(distance <= tolerance) else "decodes differently with a cache than without"


def round_up(columns: int) -> int:
    return -(-columns // _GROWTH) * _GROWTH


def cache_shape(model: PreTrainedModel) -> tuple[int, int, int]:
    """Layers, key-value heads and their size."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(config.num_hidden_layers), int(heads), int(size)


def row_bytes(model: PreTrainedModel, columns: int, dtype: torch.dtype) -> int:
    """Bytes that one row of at least `columns` tokens takes in a cache of that format."""
    return 2 * math.prod(cache_shape(model)) * round_up(columns) * dtype.itemsize


def sliding_window(model: PreTrainedModel) -> int | None:
    """The reach of the model's sliding attention in tokens; None when every layer sees all."""
    config = model.config.get_text_config()
    layer_types = getattr(config, "layer_types", None)
    if layer_types is not None and "sliding_attention" not in layer_types:
        return None
    return getattr(config, "sliding_window", None)
