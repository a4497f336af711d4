"""How much memory an update will take, from the shape of the model and the size of a micro-batch.

    gradients     4 bytes a trained parameter
    optimizer     8 bytes a parameter (AdamW's two moments), 4 where Muon trains it
    activations   4 bytes a number that the forward pass keeps for the backward pass; a cell has
                  blocks * (8 * width + 4 * inner width + 2 * width of keys + strip)
                  + 3 * width + vocabulary

where `strip` is the length of the longest strip that siblings share (its mask is kept, once a
block; attended to in pieces, each completion keeps a copy of the keys and values that it sees
instead), and the vocabulary counts half as much again where the head computes in bfloat16.
This is what Llama and Qwen keep in float32 (tests/test_footprint.py); others keep about as
much. With lean layers (`training/lean_layers.py`) a block keeps less, and nothing of its strips:

                  6 * width + 3 * inner width + 2 * width of keys + 2 * width of a head + heads

Only blocks from the first that learns on keep anything. Weights, the sampler and the reference are
there already when the estimate is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from forethought.machine import free_memory_bytes
from forethought.models.trained_layers import num_kept
from forethought.training.lean_layers import has_lean_attention
from forethought.training.muon import Muon
from forethought.training.update import Optimizers


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Bytes that the first update adds; `free_bytes` is None where it cannot be found out."""

    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    free_bytes: int | None

    @property
    def update_bytes(self) -> int:
        return self.gradient_bytes + self.optimizer_bytes + self.activation_bytes

    @property
    def fits(self) -> bool:
        return self.free_bytes is None or self.update_bytes <= self.free_bytes


def footprint(
    model: PreTrainedModel,
    optimizers: Optimizers,
    dtype: torch.dtype,
    *,
    num_cells: int,
    strip: int = 0,
    seen: float = 0.0,
) -> Footprint:
    """What an update of micro-batches of at most `num_cells` cells will add, computed in `dtype`,
    with siblings on strips of at most `strip` cells that are attended to as a whole (0: there are
    none), or in pieces which see `seen` tokens for each cell."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    by_muon = sum(
        p.numel()
        for optimizer in optimizers
        if isinstance(optimizer, Muon)
        for group in optimizer.param_groups
        for p in group["params"]
    )
    config = model.config.get_text_config()
    num_tables = 1.0 if dtype == torch.float32 else 1.5
    is_lean, layers = has_lean_attention(model), num_kept(model)
    numbers = (
        lean_numbers(config, layers) if is_lean else numbers_per_cell(config, layers, strip, seen)
    )
    values = numbers + num_tables * config.vocab_size
    return Footprint(
        gradient_bytes=4 * trained,
        optimizer_bytes=8 * (trained - by_muon) + 4 * by_muon,
        activation_bytes=int(4 * num_cells * values),
        free_bytes=free_bytes(str(model.device)),
    )


def numbers_per_cell(config: Any, num_layers: int, strip: int, seen: float = 0.0) -> int:
    """Numbers that so many layers of the model keep of one cell for the backward pass, but for its
    head's."""
    width, heads = config.hidden_size, config.num_attention_heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    keys = (getattr(config, "head_dim", None) or width // heads) * key_heads
    inner = getattr(config, "intermediate_size", None) or 4 * width
    pieces = 2 * seen * attention_width(config)
    block = 8 * width + 4 * inner + 2 * keys + strip + pieces
    return int(num_layers * block + 3 * width)


def lean_numbers(config: Any, num_layers: int) -> int:
    """The same with lean layers, of which positions keep cosines and sines too."""
    width, heads = config.hidden_size, config.num_attention_heads
    head_dim = attention_width(config) // heads
    keys = head_dim * config.num_key_value_heads
    block = 6 * width + 3 * config.intermediate_size + 2 * keys + 2 * head_dim + heads
    return int(num_layers * block + 3 * width)


def attention_width(config: Any) -> int:
    """Of all query heads together."""
    heads = config.num_attention_heads
    return int((getattr(config, "head_dim", None) or config.hidden_size // heads) * heads)


def free_bytes(device: str) -> int | None:
    """Memory of the device that nobody uses; of the machine, for a CPU."""
    if not device.startswith("cuda"):
        return free_memory_bytes()
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
