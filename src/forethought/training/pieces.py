"""Attention of strips piece by piece: nothing is computed that a strip's mask would throw away.

On a strip (`training/strips.py`) a completion sees its prompt and itself. Attention over the whole
strip works out every pair of its tokens all the same, and grows with the square of its length; here
each completion attends to the prompt and itself alone. On a CPU, where torch's attention skips
nothing that a mask hides; a GPU would wait for so many small calls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

Lengths = Sequence[int]  # of a strip's prompt and of its completions
# What a piece costs beside its arithmetic, there and back, in pairs of a query and a key times the
# width of all heads: some 0.1 ms, in which a processor makes 14 * 1.2 million operations.
_COST = 1_200_000


def in_pieces(mask: Tensor | None, pieces: Sequence[Lengths]) -> AbstractContextManager[object]:
    """Where a model attends with `mask` (B, 1, T, T), strip b is attended to in `pieces[b]`."""
    if mask is None or mask.device.type != "cpu":
        return nullcontext()
    return _InPieces(mask, pieces)


def is_cheaper(pieces: Sequence[Lengths], length: int, width: int) -> bool:
    """Whether pieces cost less than whole strips, padded to `length`; `width` is that of all query
    heads."""
    needed = 0
    for prompt, *completions in pieces:
        needed += prompt**2 + sum(own * (prompt + own) for own in completions)
    saved = len(pieces) * length**2 - needed  # pairs
    return saved * width > _COST * sum(map(len, pieces))


class _InPieces(TorchFunctionMode):
    def __init__(self, mask: Tensor, pieces: Sequence[Lengths]) -> None:
        super().__init__()
        self._mask, self._pieces = mask, pieces
        self._ahead = _ahead(pieces)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is not scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        return self._attend(*args, **(kwargs or {}))

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if enable_gqa:
            repeats = query.shape[1] // key.shape[1]
            key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
        if not dropout_p and self._is_whole(query, key, value, attn_mask):
            return attend(query, key, value, self._pieces, self._ahead, scale)
        return scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale
        )

    def _is_whole(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> bool:
        """Whether this is attention of strips with their mask, and dearer than its pieces."""
        if mask is None or mask.data_ptr() != self._mask.data_ptr():
            return False
        is_plain = query.shape == key.shape == value.shape and mask.shape == self._mask.shape
        _, num_heads, length, head_dim = query.shape
        return is_plain and is_cheaper(self._pieces, length, num_heads * head_dim)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pieces: Sequence[Lengths],
    ahead: Tensor,
    scale: float | None = None,
) -> Tensor:
    """query, key, value: (B, H, T, head_dim). Returns the same, 0 at the padding behind a strip.

    In float32 whatever they are in, as `wide_attention` has it. `split` and `cat` are each other's
    gradients, so that none is added up over the whole strip.
    """
    found = []
    with torch.autocast(query.device.type, enabled=False):
        strips = zip(*(torch.split(x.float(), 1) for x in (query, key, value)), pieces, strict=True)
        for queries, keys, values, lengths in strips:
            padded = [*lengths, queries.shape[2] - sum(lengths)]
            q, k, v = (torch.split(x, padded, dim=2) for x in (queries, keys, values))
            parts = [scaled_dot_product_attention(q[0], k[0], v[0], is_causal=True, scale=scale)]
            for i, length in enumerate(lengths[1:], start=1):
                seen = torch.cat([k[0], k[i]], dim=2), torch.cat([v[0], v[i]], dim=2)
                mask = _seen(ahead, lengths[0], length)
                parts.append(scaled_dot_product_attention(q[i], *seen, mask, scale=scale))
            found.append(torch.cat([*parts, torch.zeros_like(q[-1])], dim=2))
        return torch.cat(found).to(value.dtype)


def _ahead(pieces: Sequence[Lengths]) -> Tensor:
    """What is added to the scores (longest completion, longest prompt + it): -inf where a key lies
    ahead of its query."""
    prompt = max(lengths[0] for lengths in pieces)
    longest = max(max(lengths[1:], default=0) for lengths in pieces)
    return torch.full((longest, prompt + longest), -torch.inf).triu(prompt + 1)


def _seen(ahead: Tensor, prompt: int, length: int) -> Tensor:
    """The part of it for a completion of `length` behind `prompt` tokens."""
    start = ahead.shape[1] - ahead.shape[0] - prompt
    return ahead[:length, start : start + prompt + length]
