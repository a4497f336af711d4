"""From logits to tokens: one uniform a row through the cumulative distribution."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor


def stable_seed(*parts: object) -> int:
    """A 63-bit seed that is a pure function of its parts, the same on every machine."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def row_uniforms(seed: int, sibling: int, count: int) -> Tensor:
    """The `count` uniforms in [0, 1) that decide every draw of one row: (count,) float32."""
    generator = torch.Generator().manual_seed(stable_seed("row", seed, sibling))
    return torch.rand(count, generator=generator)


_LOWEST = 1e-6  # temperatures below draw as this one does


@dataclass(frozen=True, slots=True)
class Drawn:
    """Sampled token ids (n,) and their log-probabilities in nats (n,)."""

    token_ids: Tensor
    logprobs: Tensor


def draw_tokens(logits: Tensor, temperature: Tensor, top_p: Tensor, uniforms: Tensor) -> Drawn:
    """Sample one token a row.

    logits: (n, V) float32; temperature, top_p, uniforms: (n,). Temperature 0 takes the largest
    logit and reports its log-probability at temperature 1. Log-probabilities are those of the
    distribution at the row's temperature before top_p cuts it.
    """
    greedy = temperature == 0
    # a temperature as good as 0 must not overflow
    scaled = logits / torch.where(greedy, 1.0, temperature.clamp(min=_LOWEST))[:, None]
    logprobs = scaled.log_softmax(dim=-1)  # (n, V)
    if bool(greedy.all()):
        token_ids = logits.argmax(dim=-1)
    else:
        weights = logprobs.exp()
        if bool((top_p < 1).any()):
            weights = _nucleus(weights, top_p)
        cumulative = weights.cumsum(dim=-1)
        # just below the total, so that the draw always lands on a token with weight
        threshold = uniforms.clamp(max=1 - 1e-6) * cumulative[:, -1]
        token_ids = torch.searchsorted(cumulative, threshold[:, None], right=True)[:, 0]
        token_ids = token_ids.clamp(max=logits.shape[-1] - 1)
        token_ids = torch.where(greedy, logits.argmax(dim=-1), token_ids)
    return Drawn(token_ids, logprobs.gather(1, token_ids[:, None])[:, 0])


def _nucleus(weights: Tensor, top_p: Tensor) -> Tensor:
    """Zero all but the smallest set of most likely tokens whose mass reaches top_p (n,).

    Rows with top_p 1 keep every token, whatever the rounding of the sum.
    """
    ordered, index = weights.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(dim=-1) - ordered
    is_cut = (before >= top_p[:, None]) & (top_p < 1)[:, None]
    ordered = ordered.masked_fill(is_cut, 0.0)
    return torch.zeros_like(weights).scatter(1, index, ordered)
