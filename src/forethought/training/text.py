"""Documents for pretraining and SFT, drawn from a recipe's mixture or read from a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

from transformers import PreTrainedTokenizerBase

from forethought.errors import RecipeError
from forethought.schema_tables import Mixture
from forethought.tasks import traces
from forethought.tasks.base import FAMILIES
from forethought.tasks.traces import WRITERS, Document, TraceQuality, draw_document
from forethought.training.strips import Row
from forethought.training.supervised import encode_documents

_LOT = 32  # documents encoded at once


def build_mixture(config: Mixture) -> traces.Mixture:
    """The recipe's mixture, its names checked against what exists. Raises RecipeError."""
    for key, names, known in (
        ("families", config.families, FAMILIES),
        ("writers", config.writers, WRITERS),
        ("max_difficulty", config.max_difficulty, FAMILIES),
    ):
        for name in names:
            if name not in known:
                raise RecipeError(
                    f"mixture.{key}.{name} is unknown; known names are {', '.join(known)}"
                )
    for name, difficulty in config.max_difficulty.items():
        if name not in config.families:
            raise RecipeError(
                f"mixture.max_difficulty.{name}={difficulty} is of a family that the mixture does "
                f"not have; add mixture.families.{name} or remove it"
            )
        if difficulty > FAMILIES[name].max_difficulty:
            raise RecipeError(
                f"mixture.max_difficulty.{name}={difficulty} is out of range; "
                f"use 1 to {FAMILIES[name].max_difficulty}"
            )
    quality = TraceQuality(**config.quality.model_dump())
    return traces.Mixture(
        families=config.families,
        writers=config.writers,
        max_difficulty=config.max_difficulty,
        quality=quality,
    )


def generated_rows(
    config: Mixture,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    prompt_weight: float,
    context: int | None,
    enough: Callable[[list[Row]], bool],
) -> Callable[[int], list[Row]]:
    """A pure function of the step: fresh documents until there are enough.

    Documents of more tokens than `context` are left out; RecipeError when hardly any fits.
    """
    mixture = build_mixture(config)

    def rows_at(step: int) -> list[Row]:
        rng = Random(f"{seed}/step/{step}")
        rows: list[Row] = []
        while not enough(rows):
            documents = [draw_document(mixture, FAMILIES, rng) for _ in range(_LOT)]
            encoded = encode_documents(tokenizer, documents, prompt_weight)
            fitting = [row for row in encoded if _fits(row, context)]
            if not fitting:
                shortest = min(len(row.token_ids) for row in encoded)
                raise RecipeError(
                    f"mixture.families make documents of at least {shortest} tokens and the "
                    f"model's context is {context}; lower mixture.max_difficulty, or take a model "
                    "of longer context"
                )
            for row in fitting:
                if not enough(rows):
                    rows.append(row)
        return rows

    return rows_at


def file_rows(
    documents: Sequence[Document],
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    count: int,
    context: int | None,
) -> Callable[[int], list[Row]]:
    """`count` of the documents a step, reshuffled every epoch; pure in the step.

    Raises RecipeError naming the first document of more tokens than `context`.
    """
    rows = encode_documents(tokenizer, documents, prompt_weight=0.0)
    for number, row in enumerate(rows, 1):
        if not _fits(row, context):
            raise RecipeError(
                f"data holds {len(row.token_ids)} tokens in document {number} and the model's "
                f"context is {context}; shorten or remove it"
            )

    def rows_at(step: int) -> list[Row]:
        return [rows[shuffled_index(len(rows), seed, (step - 1) * count + i)] for i in range(count)]

    return rows_at


def _fits(row: Row, context: int | None) -> bool:
    return context is None or len(row.token_ids) <= context


def shuffled_index(size: int, seed: int, position: int) -> int:
    """Where `position` of an endless, epoch-wise shuffled walk over `size` items lands."""
    epoch, offset = divmod(position, size)
    return _epoch_order(size, seed, epoch)[offset]


def _epoch_order(size: int, seed: int, epoch: int) -> list[int]:
    key = (size, seed, epoch)
    if key not in _ORDERS:
        _ORDERS.clear()  # a walk only ever needs the epoch it is in
        order = list(range(size))
        Random(f"{seed}/epoch/{epoch}").shuffle(order)
        _ORDERS[key] = order
    return _ORDERS[key]


_ORDERS: dict[tuple[int, int, int], list[int]] = {}


def read_documents(path: Path) -> list[Document]:
    """A JSONL file of {"prompt": text, "completion": text}. Raises RecipeError naming the line."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"data={path} cannot be read ({error}); check the path") from None
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    documents = [_read_document(line, f"{path} line {number}") for number, line in numbered]
    if not documents:
        raise RecipeError(f"data={path} is empty; give a file with at least one document")
    return documents


def _read_document(line: str, place: str) -> Document:
    try:
        row = json.loads(line)
        prompt, completion = row["prompt"], row["completion"]
    except (ValueError, TypeError, KeyError, RecursionError):
        prompt = completion = None
    if not isinstance(prompt, str) or not isinstance(completion, str):
        raise RecipeError(
            f'data={place} is not {{"prompt": text, "completion": text}}; fix or remove it'
        )
    return Document(prompt=prompt, completion=completion)
