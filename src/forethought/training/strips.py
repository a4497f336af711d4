"""Siblings on one strip: the prompt once, their completions behind it.

A group of G rollouts repeats its prompt of P tokens G times. Laid out as prompt, completion 1, ...,
completion G, the prompt is computed once; a mask keeps the completions from seeing each other, and
each counts its positions from the end of the prompt, so every token's log-probability, and the
gradient, are those of separate rows (the idea of Prefix Grouper, arXiv 2506.05433). What it costs
is attention, which grows with the square of the strip where it is not computed in pieces
(`training/pieces.py`): siblings join only while that would pay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One sequence to learn from. All sequences have one length.

    `weights[t]` normalises the loss of token t (0 leaves the token out); `advantage` multiplies
    all of them (1 in supervised training), or each its own where it is a sequence;
    `sampler_logprobs[t]` is what the sampler recorded, `old_logprobs[t]` what the policy said
    before the first update on the row (None: what the sampler recorded).
    The first `num_prompt` tokens may be shared with other rows; they must carry no loss.
    """

    token_ids: Sequence[int]
    weights: Sequence[float]
    advantage: float | Sequence[float] = 1.0
    sampler_logprobs: Sequence[float] | None = None
    old_logprobs: Sequence[float] | None = None
    num_prompt: int = 0


class Learned(NamedTuple):
    """The tokens that carry loss, a column of each kind of number, all of one length: the column of
    the strip that predicts the token, ..., its row's number and where in that row it stands."""

    predictors: Sequence[int]
    targets: Sequence[int]
    weights: Sequence[float]
    advantages: Sequence[float]
    sampler_logprobs: Sequence[float]
    old_logprobs: Sequence[float]
    rows: Sequence[int]
    columns: Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Strip:
    """A row of cells: a prompt (branch 0) and completions (branches 1, 2, ...)."""

    token_ids: Sequence[int]
    position_ids: Sequence[int]
    branches: Sequence[int]
    learned: Learned


def lay_out(rows: Sequence[Row], *, pairs_per_token: float, max_tokens: int) -> list[Strip]:
    """The strips of all rows; siblings share one where that saves work and fits `max_tokens`.

    `pairs_per_token` says what a token costs outside attention, in pairs of a query and a key: a
    sibling joins while the prompt tokens it saves cost more than the pairs it adds. 0 shares none.
    """
    strips: list[Strip] = []
    for siblings in _by_prompt(rows):
        joined: dict[int, Row] = {}
        for i in siblings:
            before = list(joined.values())
            if joined and not _is_worth_joining(before, rows[i], pairs_per_token, max_tokens):
                strips.append(_strip(joined))
                joined = {}
            joined[i] = rows[i]
        strips.append(_strip(joined))
    return strips


def _by_prompt(rows: Sequence[Row]) -> list[list[int]]:
    """The numbers of the rows of one prompt together, in the order in which they first appear."""
    groups: dict[object, list[int]] = {}
    for i, row in enumerate(rows):
        alone = row.num_prompt == 0
        key = i if alone else tuple(row.token_ids[: row.num_prompt])
        groups.setdefault(key, []).append(i)
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


def _strip(rows: Mapping[int, Row]) -> Strip:
    """Siblings by their number, one behind the other."""
    first = next(iter(rows.values()))
    prompt = first.num_prompt
    token_ids = list(first.token_ids[:prompt])
    position_ids, branches = list(range(prompt)), [0] * prompt
    learned: tuple[list[Any], ...] = tuple([] for _ in Learned._fields)
    for branch, (number, row) in enumerate(rows.items(), start=1):
        for column, more in zip(learned, _learned(row, number, start=len(token_ids)), strict=True):
            column += more
        count = len(row.token_ids)
        token_ids += row.token_ids[prompt:]
        position_ids += range(prompt, count)
        branches += [branch] * (count - prompt)
    return Strip(
        token_ids=token_ids,
        position_ids=position_ids,
        branches=branches,
        learned=Learned(*learned),
    )


def pieces_of(strip: Strip) -> list[int]:
    """How long the strip's prompt and its completions are, in their order."""
    return [len(list(cells)) for _, cells in groupby(strip.branches)]


def _learned(row: Row, number: int, start: int) -> Learned:
    """The tokens of `row` that carry loss, its completion laid out from column `start` on."""
    prompt, count, weights = row.num_prompt, len(row.token_ids), row.weights
    columns = [t for t in range(max(1, prompt), count) if weights[t]]
    is_all = len(columns) == count - max(1, prompt)  # as with most rows, whose numbers are a slice

    def of(numbers: Sequence[Any]) -> Sequence[Any]:
        return numbers[max(1, prompt) :] if is_all else [numbers[t] for t in columns]

    nothing, advantage = [0.0] * count, row.advantage
    sampler = nothing if row.sampler_logprobs is None else row.sampler_logprobs
    old = sampler if row.old_logprobs is None else row.old_logprobs
    each = [advantage] * count if isinstance(advantage, float | int) else advantage
    # the first token of a completion is predicted by the prompt's last
    predictors = [prompt - 1 if t == prompt else start + t - prompt - 1 for t in columns]
    given = (of(x) for x in (row.token_ids, weights, each, sampler, old))
    return Learned._make((predictors, *given, [number] * len(columns), columns))
