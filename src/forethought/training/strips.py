"""Siblings on one strip: the prompt once, their completions behind it.

A group of G rollouts repeats its prompt of P tokens G times. Laid out as prompt, completion 1, ...,
completion G, the prompt is computed once; a mask keeps the completions from seeing each other, and
each counts its positions from the end of the prompt, so every token's log-probability, and the
gradient, are those of separate rows (the idea of Prefix Grouper, arXiv 2506.05433). What it costs
is attention, which grows with the square of the strip: siblings join only while that pays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One sequence to learn from. All sequences have one length.

    `weights[t]` normalises the loss of token t (0 leaves the token out); `advantage` multiplies
    all of them (1 in supervised training); `sampler_logprobs[t]` is what the sampler recorded.
    The first `num_prompt` tokens may be shared with other rows; they must carry no loss.
    """

    token_ids: Sequence[int]
    weights: Sequence[float]
    advantage: float = 1.0
    sampler_logprobs: Sequence[float] | None = None
    num_prompt: int = 0


class Learned(NamedTuple):
    """A token that carries loss, and the column of the strip that predicts it."""

    predictor: int
    target: int
    weight: float
    advantage: float
    sampler_logprob: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Strip:
    """A row of cells: a prompt (branch 0) and completions (branches 1, 2, ...)."""

    token_ids: Sequence[int]
    position_ids: Sequence[int]
    branches: Sequence[int]
    learned: Sequence[Learned]


def lay_out(rows: Sequence[Row], *, pairs_per_token: float, max_tokens: int) -> list[Strip]:
    """The strips of all rows; siblings share one where that saves work and fits `max_tokens`.

    `pairs_per_token` says what a token costs outside attention, in pairs of a query and a key: a
    sibling joins while the prompt tokens it saves cost more than the pairs it adds. 0 shares none.
    """
    strips: list[Strip] = []
    for siblings in _by_prompt(rows):
        joined: list[Row] = []
        for row in siblings:
            if joined and not _is_worth_joining(joined, row, pairs_per_token, max_tokens):
                strips.append(_strip(joined))
                joined = []
            joined.append(row)
        strips.append(_strip(joined))
    return strips


def _by_prompt(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows of one prompt together, in the order in which they first appear."""
    groups: dict[object, list[Row]] = {}
    for i, row in enumerate(rows):
        alone = row.num_prompt == 0
        key = i if alone else tuple(row.token_ids[: row.num_prompt])
        groups.setdefault(key, []).append(row)
    return list(groups.values())


def _is_worth_joining(
    joined: Sequence[Row], row: Row, pairs_per_token: float, max_tokens: int
) -> bool:
    prompt, alone = row.num_prompt, len(row.token_ids)
    before = prompt + sum(len(r.token_ids) - prompt for r in joined)
    after = before + alone - prompt
    more_pairs = after**2 - before**2 - alone**2
    is_worth_it = more_pairs < prompt * pairs_per_token
    return pairs_per_token > 0 and is_worth_it and after <= max_tokens


def _strip(rows: Sequence[Row]) -> Strip:
    prompt = rows[0].num_prompt
    token_ids = list(rows[0].token_ids[:prompt])
    position_ids, branches = list(range(prompt)), [0] * prompt
    learned: list[Learned] = []
    for branch, row in enumerate(rows, start=1):
        start, count = len(token_ids), len(row.token_ids)
        token_ids += row.token_ids[prompt:]
        position_ids += range(prompt, count)
        branches += [branch] * (count - prompt)
        logprobs = row.sampler_logprobs
        for t in range(max(1, prompt), count):
            if row.weights[t]:
                learned.append(
                    Learned(
                        # the first token of a completion is predicted by the prompt's last
                        predictor=prompt - 1 if t == prompt else start + t - prompt - 1,
                        target=row.token_ids[t],
                        weight=row.weights[t],
                        advantage=row.advantage,
                        sampler_logprob=0.0 if logprobs is None else logprobs[t],
                    )
                )
    return Strip(token_ids=token_ids, position_ids=position_ids, branches=branches, learned=learned)
