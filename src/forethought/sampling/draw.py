"""From logits to tokens: one uniform a row through the cumulative distribution."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from forethought.types import SamplingParams


def stable_seed(*parts: object) -> int:
    """A 63-bit seed that is a pure function of its parts, the same on every machine."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def row_uniforms(seed: int, sibling: int, count: int) -> Tensor:
    """The `count` uniforms in [0, 1) that decide every draw of one row: (count,) float32."""
    generator = torch.Generator().manual_seed(stable_seed("row", seed, sibling))
    return torch.rand(count, generator=generator)


_LOWEST = 1e-6  # temperatures below draw as this one does
_BLOCK = 256
_WORTH_SHARING = 1 << 13  # logits among threads
_TINY = 1e-38  # stands for a probability of 0, whose logarithm is not finite


@dataclass(frozen=True, slots=True)
class Drawn:
    """Sampled token ids (n,) and their log-probabilities in nats (n,); one confidence a row, or
    none at all where no row asked for it."""

    token_ids: Tensor
    logprobs: Tensor
    confidences: Sequence[float] = ()


class Wants(NamedTuple):
    """What a row asks of its draws; mostly all rows of a batch ask the same."""

    temperature: float
    top_p: float
    top_logprobs: int


class Kinds(NamedTuple):
    """What the host knows of a batch's draws, so that no value must be read back from a device."""

    is_tempered: bool  # a temperature is not 1
    any_greedy: bool
    all_greedy: bool
    any_top_p: bool  # a row cuts its distribution

    @staticmethod
    def of(params: Collection[Wants | SamplingParams]) -> Kinds:
        temperatures = {p.temperature for p in params}
        return Kinds(
            is_tempered=not temperatures <= {1},
            any_greedy=0 in temperatures,
            all_greedy=temperatures <= {0},
            any_top_p=any(cut < 1 for cut in {p.top_p for p in params}),
        )


def draw_tokens(
    logits: Tensor,
    temperature: Tensor,
    top_p: Tensor,
    uniforms: Tensor,
    num_top: Sequence[int] = (),
    *,
    kinds: Kinds,
) -> Drawn:
    """Sample one token a row.

    logits: (n, V) float32; temperature, top_p, uniforms: (n,), of the `kinds`. Temperature 0 takes
    the largest logit and reports its log-probability at temperature 1. Log-probabilities are those
    of the distribution at the row's temperature before top_p cuts it; so are the confidences, each
    over the row's `num_top` likeliest tokens.
    """
    kernel = _kernel() if logits.device.type == "cpu" else None
    if kernel is not None:
        return _draw_apart(kernel, logits, temperature, top_p, uniforms, num_top, kinds)
    return _draw(logits, temperature, top_p, uniforms, num_top, kinds)


def _draw(
    logits: Tensor,
    temperature: Tensor,
    top_p: Tensor,
    uniforms: Tensor,
    num_top: Sequence[int],
    kinds: Kinds,
) -> Drawn:
    """By torch's operations, on any device."""
    greedy = temperature == 0
    if kinds.is_tempered:
        # a temperature as good as 0 must not overflow
        logits = logits / temperature.clamp(min=_LOWEST).masked_fill(greedy, 1.0)[:, None]
    weights = logits.softmax(dim=-1)  # (n, V)
    if kinds.all_greedy:
        token_ids = logits.argmax(dim=-1)
    else:
        kept = _nucleus(weights, top_p) if kinds.any_top_p else weights
        token_ids = _pick(kept, uniforms)
        if kinds.any_greedy:
            token_ids = torch.where(greedy, logits.argmax(dim=-1), token_ids)
    logprobs = weights.gather(1, token_ids[:, None])[:, 0].log()
    return Drawn(token_ids, logprobs, _confidences(weights, num_top) if any(num_top) else ())


@cache
def _kernel() -> Any:
    """The compiled draw, None without numba, an extra."""
    try:
        from forethought.sampling import draw_kernel
    except ImportError:  # or it does not go with what else is installed
        return None
    return draw_kernel.draw_rows


def _draw_apart(
    kernel: Any,
    logits: Tensor,
    temperature: Tensor,
    top_p: Tensor,
    uniforms: Tensor,
    num_top: Sequence[int],
    kinds: Kinds,
) -> Drawn:
    """The rows that cut their distribution, or ask for confidences, by torch, and the others
    compiled, so that no row's draw depends on its neighbours'."""
    if not kinds.any_top_p and not any(num_top):
        return _draw_compiled(kernel, logits, temperature, uniforms)
    asked = torch.tensor(list(num_top) or [0] * len(logits))
    special = (top_p < 1) | (asked > 0)
    by_torch = _draw(
        logits[special],
        temperature[special],
        top_p[special],
        uniforms[special],
        asked[special].tolist(),
        kinds,
    )
    rest = _draw_compiled(kernel, logits[~special], temperature[~special], uniforms[~special])
    token_ids, logprobs = torch.empty(len(logits), dtype=torch.int64), torch.empty(len(logits))
    confidences = torch.zeros(len(logits))
    for where, drawn in ((special, by_torch), (~special, rest)):
        token_ids[where], logprobs[where] = drawn.token_ids, drawn.logprobs
    if any(num_top):
        confidences[special] = torch.tensor(by_torch.confidences)
    return Drawn(token_ids, logprobs, confidences.tolist() if any(num_top) else ())


def _draw_compiled(kernel: Any, logits: Tensor, temperature: Tensor, uniforms: Tensor) -> Drawn:
    """The same in one pass over each row."""
    token_ids, logprobs = torch.empty(len(logits), dtype=torch.int64), torch.empty(len(logits))
    temperature = torch.where(temperature == 0, temperature, temperature.clamp(min=_LOWEST))
    given = (logits.contiguous(), temperature, uniforms, token_ids, logprobs)
    is_worth_sharing = logits.numel() > _WORTH_SHARING
    kernel(torch.get_num_threads() if is_worth_sharing else 1, *(x.numpy() for x in given))
    return Drawn(token_ids, logprobs)


def _confidences(weights: Tensor, num_top: Sequence[int]) -> list[float]:
    """Minus the mean log-probability of the likeliest tokens of each row (n, V)."""
    counts = torch.tensor(num_top, device=weights.device).clamp(1, weights.shape[1])[:, None]
    top = weights.topk(int(counts.max()), dim=-1).values.clamp(min=_TINY).log()
    means: list[float] = (-top.cumsum(-1).gather(1, counts - 1) / counts)[:, 0].tolist()
    return means


def _pick(weights: Tensor, uniforms: Tensor) -> Tensor:
    """The token (n,) at which the cumulative weight (n, V) passes the uniform.

    In two levels, blocks and then the tokens of one block: a running sum over the whole vocabulary
    would take several times as long.
    """
    whole = weights.shape[1] // _BLOCK * _BLOCK
    sums = weights[:, :whole].view(-1, whole // _BLOCK, _BLOCK).sum(-1) if whole else weights[:, :0]
    sums = torch.cat([sums, weights[:, whole:].sum(-1, keepdim=True)], dim=1)
    block, rest = _first_beyond(sums, uniforms * sums.sum(-1))
    columns = block[:, None] * _BLOCK + torch.arange(_BLOCK, device=weights.device)
    inside = weights.gather(1, columns.clamp(max=weights.shape[1] - 1))
    inside = inside.masked_fill_(columns >= weights.shape[1], 0.0)
    within, _ = _first_beyond(inside, rest)
    # weights that are not numbers have no place: the caller sees it from their log-probability
    return (block * _BLOCK + within).clamp(max=weights.shape[1] - 1)


def _first_beyond(weights: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    """The first place (n,) whose cumulative weight is above `threshold`, and what of the threshold
    is left when it is reached. It always has weight, though rounding may put the threshold at the
    very end."""
    cumulative = weights.cumsum(dim=-1)
    threshold = torch.minimum(threshold, cumulative[:, -1] * (1 - 1e-6))[:, None]
    place = torch.searchsorted(cumulative, threshold, right=True)
    place = place.clamp(max=weights.shape[1] - 1)
    before = cumulative.gather(1, place) - weights.gather(1, place)
    return place[:, 0], (threshold - before)[:, 0].clamp(min=0.0)


def _nucleus(weights: Tensor, top_p: Tensor) -> Tensor:
    """Zero all but the smallest set of most likely tokens whose mass reaches top_p (n,).

    Rows with top_p 1 keep every token, whatever the rounding of the sum.
    """
    ordered, index = weights.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(dim=-1) - ordered
    is_cut = (before >= top_p[:, None]) & (top_p < 1)[:, None]
    ordered = ordered.masked_fill(is_cut, 0.0)
    return torch.zeros_like(weights).scatter(1, index, ordered)
