"""What stands between the matrix products of the fused decoding step, compiled by Triton.

On a GPU a step of few rows takes as long as its kernels are many: here a layer has three besides
its products. Sums are in float32 whatever the weights are in. A row's result never depends on the
other rows. The first call of a kernel compiles it and keeps the machine code on disk. Triton comes
with torch for CUDA.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import triton
import triton.language as tl
from torch import Tensor

_COLUMNS = {2: 64, 4: 16}  # of the cache that a row attends to at a time, by bytes of a number
_WIDTH = 1024  # of the MLP that a program gates
_LEAST = 16  # rows and columns of a product on tensor cores
Kernel = TypeVar("Kernel", bound=Callable[..., Any])


def _jit(function: Kernel) -> Any:
    return triton.jit(function)


def add_norm(hidden: Tensor, delta: Tensor | None, weight: Tensor, epsilon: float) -> Tensor:
    """hidden (n, D) float32 += delta (n, D); its RMSNorm (arXiv 1910.07467) in weight's dtype."""
    count, width = hidden.shape
    out = torch.empty(count, width, dtype=weight.dtype, device=hidden.device)
    _add_norm[(count,)](
        hidden,
        hidden if delta is None else delta,
        weight,
        out,
        width,
        epsilon,
        HAS_DELTA=delta is not None,
        BLOCK=triton.next_power_of_2(width),
    )
    return out


@_jit
def _add_norm(  # type: ignore[no-untyped-def]
    hidden, delta, weight, out, width, epsilon,
    HAS_DELTA: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * width
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    x = tl.load(hidden + row + columns, mask=inside, other=0.0)
    if HAS_DELTA:
        x += tl.load(delta + row + columns, mask=inside, other=0.0).to(tl.float32)
    factor = 1.0 / tl.sqrt(tl.sum(x * x, axis=0) / width + epsilon)
    if HAS_DELTA:  # behind the sum, at which the row's threads have all read
        tl.store(hidden + row + columns, x, mask=inside)
    scale = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row + columns, x * factor * scale, mask=inside)


def silu_gate(gate_up: Tensor) -> Tensor:
    """SwiGLU (arXiv 2002.05202): silu(gate) * up of gate_up (n, 2 * F). Returns (n, F)."""
    count, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty(count, width, dtype=gate_up.dtype, device=gate_up.device)
    _silu_gate[(count, triton.cdiv(width, _WIDTH))](gate_up, out, width, BLOCK=_WIDTH)
    return out


@_jit
def _silu_gate(gate_up, out, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64) * width
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    gate = tl.load(gate_up + 2 * row + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + 2 * row + width + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row + columns, gate * tl.sigmoid(gate) * up, mask=inside)


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
    """Attention of one token a row, which stands at position lengths[r] and goes into the cache.

    heads: (n, query heads + 2 * kv_heads, head_dim), queries, keys and values side by side, not
    turned yet; keys, values: (rows, kv_heads, columns, head_dim), the cache of a layer; lengths:
    (n,); rotation: cosines and sines (columns, head_dim) in float32 (arXiv 2104.09864); norms: the
    weights (head_dim,) of RMSNorms of queries and keys. Returns (n, query heads * head_dim).
    """
    count, num_heads, size = heads.shape
    kv_heads = keys.shape[1]
    num_heads -= 2 * kv_heads
    group = num_heads // kv_heads
    out = torch.empty(count, num_heads * size, dtype=heads.dtype, device=heads.device)
    query_norm, key_norm = (heads, heads) if norms is None else norms
    _attend[(count, kv_heads)](
        heads,
        keys,
        values,
        lengths,
        *rotation,
        query_norm,
        key_norm,
        out,
        epsilon,
        scale,
        keys.stride(0),
        keys.stride(1),
        NUM_HEADS=num_heads,
        KV_HEADS=kv_heads,
        SIZE=size,
        PADDED=max(_LEAST, triton.next_power_of_2(size)),
        GROUP=group,
        TILE=max(_LEAST, triton.next_power_of_2(group)),
        HAS_NORMS=norms is not None,
        BLOCK=_COLUMNS[keys.element_size()],
    )
    return out


@_jit
def _attend(  # type: ignore[no-untyped-def]
    heads, keys, values, lengths, cos, sin, query_norm,
    key_norm, out, epsilon, scale, row_stride, head_stride,
    NUM_HEADS: tl.constexpr, KV_HEADS: tl.constexpr, SIZE: tl.constexpr, PADDED: tl.constexpr,
    GROUP: tl.constexpr, TILE: tl.constexpr, HAS_NORMS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row and one head of keys and values, for the GROUP query heads that share it."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    length = tl.load(lengths + row)
    d = tl.arange(0, PADDED)[None, :]
    g = tl.arange(0, TILE)[:, None]
    inside = d < SIZE
    # rotating pairs each number with the one half a head away
    other = tl.where(inside, (d + SIZE // 2) % SIZE, 0)
    c = tl.load(cos + length * SIZE + d, mask=inside, other=0.0)
    s = tl.load(sin + length * SIZE + d, mask=inside, other=0.0)
    s = tl.where(d < SIZE // 2, -s, s)
    mine = heads + row * (NUM_HEADS + 2 * KV_HEADS) * SIZE
    places = (head * GROUP + g) * SIZE
    is_query = (g < GROUP) & inside
    q = tl.load(mine + places + d, mask=is_query, other=0.0).to(tl.float32)  # (TILE, PADDED)
    q_other = tl.load(mine + places + other, mask=is_query, other=0.0).to(tl.float32)
    mine += (NUM_HEADS + head) * SIZE
    k = tl.load(mine + d, mask=inside, other=0.0).to(tl.float32)  # (1, PADDED)
    k_other = tl.load(mine + other, mask=inside, other=0.0).to(tl.float32)
    v = tl.load(mine + KV_HEADS * SIZE + d, mask=inside, other=0.0).to(tl.float32)
    if HAS_NORMS:
        q, q_other = _normed(q, q_other, query_norm, d, other, inside, epsilon, SIZE)
        k, k_other = _normed(k, k_other, key_norm, d, other, inside, epsilon, SIZE)
    q = (q * c + q_other * s) * scale
    k = k * c + k_other * s
    keys += row * row_stride + head * head_stride
    values += row * row_stride + head * head_stride
    tl.store(keys + length * SIZE + d, k, mask=inside)
    tl.store(values + length * SIZE + d, v, mask=inside)
    # a running softmax, which begins with the token itself
    top = tl.sum(q * k, axis=1)
    total = tl.full((TILE,), 1.0, tl.float32)
    found = tl.zeros((TILE, PADDED), tl.float32) + v
    q_narrow = q.to(keys.dtype.element_ty)
    t = tl.arange(0, BLOCK)[:, None]
    for start in range(0, length, BLOCK):
        is_before = start + t < length
        at = (start + t) * SIZE + d
        k_block = tl.load(keys + at, mask=is_before & inside, other=0.0)  # (BLOCK, PADDED)
        v_block = tl.load(values + at, mask=is_before & inside, other=0.0)
        scores = tl.dot(q_narrow, tl.trans(k_block), input_precision="ieee")  # (TILE, BLOCK)
        scores = tl.where(tl.trans(is_before), scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, axis=1))
        shrink = tl.exp(top - higher)
        weights = tl.exp(scores - higher[:, None])
        total = total * shrink + tl.sum(weights, axis=1)
        more = tl.dot(weights.to(v_block.dtype), v_block, input_precision="ieee")
        found = found * shrink[:, None] + more
        top = higher
    found = found / total[:, None]
    tl.store(out + row * NUM_HEADS * SIZE + places + d, found, mask=is_query)


@_jit
def _normed(  # type: ignore[no-untyped-def]
    x, x_other, weight, d, other, inside, epsilon,
    SIZE: tl.constexpr,
):  # fmt: skip
    """RMSNorm of the rows of x, and of the same numbers half a head away."""
    scale = tl.load(weight + d, mask=inside, other=0.0).to(tl.float32)
    scale_other = tl.load(weight + other, mask=inside, other=0.0).to(tl.float32)
    factor = (1.0 / tl.sqrt(tl.sum(x * x, axis=1) / SIZE + epsilon))[:, None]
    return x * factor * scale, x_other * factor * scale_other
