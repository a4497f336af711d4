"""What passes over weights that do not change use again: weights in another format or order, and
the memory of a large table, which as new memory comes in pages that must be found and cleared one
by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(slots=True)
class _Kept:
    made: dict[Any, Tensor] = field(default_factory=dict)
    tables: dict[torch.dtype, list[Tensor]] = field(default_factory=dict)  # flat


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
    if weight.dtype == dtype:
        return weight.detach()
    return keep(dtype, weight, lambda found: found.to(dtype))


def keep(name: Any, weight: Tensor, make: Callable[[Tensor], Tensor]) -> Tensor:
    """What is made of the weight, without gradient, made once under that name while it is kept; the
    weight must not change meanwhile."""
    kept, weight = _kept.get(), weight.detach()
    if kept is None:
        return make(weight)
    key = (weight.data_ptr(), weight.shape, name)
    if key not in kept.made:
        kept.made[key] = make(weight)
    return kept.made[key]


def take_table(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Room for (rows, columns) numbers, with anything in it."""
    kept = _kept.get()
    known = [] if kept is None else kept.tables.get(dtype, [])
    found = known.pop() if known else torch.empty(0, dtype=dtype)
    if len(found) < rows * columns:
        found = torch.empty(rows * columns, dtype=dtype)
    return found[: rows * columns].view(rows, columns)


def give_back(table: Tensor) -> None:
    """Whoever took the table needs it no longer."""
    kept = _kept.get()
    if kept is not None and table._base is not None:
        # all of it, a view of which was taken
        kept.tables.setdefault(table.dtype, []).append(table._base)
