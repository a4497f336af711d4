"""What the fused step's kernels compute, in plain torch: `sampling/triton_kernels.py`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def _rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    x = x.float()
    return x * (x.square().mean(-1, keepdim=True) + epsilon).rsqrt() * weight.float()


def add_norm(hidden: Tensor, delta: Tensor | None, weight: Tensor, epsilon: float) -> Tensor:
    if delta is not None:
        hidden.add_(delta.float())
    return _rms_norm(hidden, weight, epsilon).to(weight.dtype)


def silu_gate(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (F.silu(gate) * up).to(gate_up.dtype)


def attend(
    heads: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    rotation: tuple[Tensor, Tensor],
    norms: tuple[Tensor, Tensor] | None,
    epsilon: float,
    scale: float,
) -> Tensor:
    kv_heads, num_heads = keys.shape[1], heads.shape[1] - 2 * keys.shape[1]
    q, k, v = heads.float().split([num_heads, kv_heads, kv_heads], dim=1)
    if norms is not None:
        q, k = (_rms_norm(x, norm, epsilon) for x, norm in zip((q, k), norms, strict=True))
    cos, sin = (table[lengths][:, None] for table in rotation)
    q, k = (x * cos + torch.cat([-x.chunk(2, -1)[1], x.chunk(2, -1)[0]], -1) * sin for x in (q, k))
    found = []
    for r, length in enumerate(lengths.tolist()):
        keys[r, :, length], values[r, :, length] = k[r].to(keys.dtype), v[r].to(values.dtype)
        mine = (
            x[r, :, : length + 1].float().repeat_interleave(num_heads // kv_heads, 0)
            for x in (keys, values)
        )
        found.append(F.scaled_dot_product_attention(q[r][:, None], *mine, scale=scale)[:, 0])
    return torch.stack(found).flatten(1).to(heads.dtype)
