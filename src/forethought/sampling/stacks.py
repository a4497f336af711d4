"""The linear layers of a Llama or Qwen block that read one input, and so can be one product."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

NUM_STACKS = 4


def stacks_of(layer: Any) -> list[list[nn.Linear]]:
    """Queries, keys and values; the output of attention; gate and up; down. Each side by side."""
    attention, mlp = layer.self_attn, layer.mlp
    return [
        [attention.q_proj, attention.k_proj, attention.v_proj],
        [attention.o_proj],
        [mlp.gate_proj, mlp.up_proj],
        [mlp.down_proj],
    ]


def side_by_side(layers: Sequence[Any]) -> tuple[Tensor, Tensor | None]:
    """The weights (N, K) of linear layers one below the other, and their biases; by numpy, which
    starts no threads of its own inside one that packs."""
    weights = [layer.weight.detach() for layer in layers]
    biases = [layer.bias for layer in layers]
    weight = weights[0] if len(weights) == 1 else _below(weights)
    return weight, None if any(b is None for b in biases) else _below([b.detach() for b in biases])


def _below(tensors: Sequence[Tensor]) -> Tensor:
    same_bits = torch.int16 if tensors[0].dtype == torch.bfloat16 else tensors[0].dtype  # for numpy
    joined = np.concatenate([tensor.view(same_bits).numpy() for tensor in tensors])
    return torch.from_numpy(joined).view(tensors[0].dtype)
