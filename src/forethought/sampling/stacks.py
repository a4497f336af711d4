"""The linear layers of a Llama or Qwen block that read one input, and so can be one product."""

from __future__ import annotations

from typing import Any

from torch import nn

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
