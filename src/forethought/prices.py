"""Price tables: what a million tokens of each model cost, from a TOML file.

[default]
prompt_per_million = 0.10
cached_per_million = 0.02
sampled_per_million = 0.40

["my/model"]
prompt_per_million = 1.0
sampled_per_million = 4.0
"""

from __future__ import annotations

import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

from forethought.budget import Prices
from forethought.errors import StrategyError


def load_prices(path: Path, model: str) -> Prices:
    """The prices of `model` in the table at `path`, else its `default`. Raises StrategyError."""
    try:
        tables: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise StrategyError(f"prices={path} cannot be read as TOML: {error}") from error
    table = tables.get(model, tables.get("default"))
    if not isinstance(table, dict):
        listed = ", ".join(tables) or "none"
        raise StrategyError(
            f"prices={path} has no table for {model} and no default: it has {listed}"
        )
    known = {field.name for field in fields(Prices)}
    for key, value in table.items():
        if key not in known:
            raise StrategyError(
                f"{key} in prices={path} is unknown; use {', '.join(sorted(known))}"
            )
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise StrategyError(f"{key}={value!r} in prices={path} must be a number")
    try:
        return Prices(**table)
    except ValueError as error:
        raise StrategyError(f"prices={path} of {model}: {error}") from error
