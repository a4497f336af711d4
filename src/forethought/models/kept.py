"""What passes over weights that do not change use again: weights in another format, and the memory
of a large table, which as new memory comes in pages that must be found and cleared one by one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(slots=True)
class _Kept:
    casts: dict[Any, Tensor] = field(default_factory=dict)
    tables: dict[torch.dtype, Tensor] = field(default_factory=dict)  # flat, one of a format


_kept: ContextVar[_Kept | None] = ContextVar("kept", default=None)


@contextmanager
def keeping() -> Iterator[None]:
    """Until the end of this what is cast and given back is kept."""
    before = _kept.set(_Kept())
    try:
        yield
    finally:
        _kept.reset(before)


def cast_weight(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight in that format, without gradient; it must not change while it is kept."""
    kept, weight = _kept.get(), weight.detach()
    if kept is None or weight.dtype == dtype:
        return weight.to(dtype)
    key = (weight.data_ptr(), weight.shape, dtype)
    if key not in kept.casts:
        kept.casts[key] = weight.to(dtype)
    return kept.casts[key]


def take_table(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Room for (rows, columns) numbers, with anything in it."""
    kept = _kept.get()
    found = None if kept is None else kept.tables.pop(dtype, None)
    if found is None or len(found) < rows * columns:
        found = torch.empty(rows * columns, dtype=dtype)
    return found[: rows * columns].view(rows, columns)


def give_back(table: Tensor) -> None:
    """Whoever took the table needs it no longer."""
    kept = _kept.get()
    if kept is not None and table._base is not None:
        kept.tables[table.dtype] = table._base  # all of it, a view of which was taken
