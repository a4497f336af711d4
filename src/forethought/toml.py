"""Recipes as text: dotted overrides into tables, and tables into TOML.

What `tomllib` leaves out. Nothing here knows which keys a recipe has.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from typing import Any

from forethought.errors import RecipeError


def copy_tables(data: Mapping[str, Any]) -> dict[str, Any]:
    """`data` with tables of its own, which a caller may change."""
    return {k: copy_tables(v) if isinstance(v, Mapping) else v for k, v in data.items()}


def apply_override(data: dict[str, Any], override: str) -> None:
    """Set one dotted key (a part with dots of its own in quotes).

    The value is read as TOML, or as a bare string when it is none. Raises RecipeError.
    """
    key, equals, raw = override.partition("=")
    *tables, leaf = _key_parts(key) if equals else [""]
    if not leaf:
        raise RecipeError(f"--set {override!r} needs the form key=value")
    for table in tables:
        data = data.setdefault(table, {})
        if not isinstance(data, dict):
            raise RecipeError(f"--set {override!r} is wrong: {table} is a value, not a table")
    data[leaf] = _override_value(raw)


def _key_parts(key: str) -> list[str]:
    """`a."b.c"` -> ["a", "b.c"], by the rules of TOML; [""] when it is no key."""
    if "\n" in key:
        return [""]
    try:
        nested: Any = tomllib.loads(f"{key} = 0")
    except tomllib.TOMLDecodeError:
        return [""]
    parts: list[str] = []
    while isinstance(nested, dict) and nested:
        [(name, nested)] = nested.items()
        parts.append(name)
    return parts or [""]


def _override_value(raw: str) -> object:
    try:
        value = tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        return raw
    # no key of a recipe is a date: 2026-01-31 is the name of a folder
    return value if isinstance(value, (bool, int, float, str, list, dict)) else raw


def to_toml(data: Mapping[str, Any]) -> str:
    """Tables as TOML; a None is left out. Reading it again gives the same tables."""
    lines, tables = _toml_lines(data, "")
    return "\n".join([*lines, *tables]) + "\n"


def _toml_lines(data: Mapping[str, Any], prefix: str) -> tuple[list[str], list[str]]:
    lines: list[str] = []
    tables: list[str] = []
    for key, value in data.items():
        if value is None:
            continue
        if isinstance(value, Mapping):
            inner, deeper = _toml_lines(value, f"{prefix}{_toml_key(key)}.")
            tables += ["", f"[{prefix}{_toml_key(key)}]", *inner, *deeper]
        else:
            lines.append(f"{_toml_key(key)} = {_toml_value(value)}")
    return lines, tables


def _toml_key(key: str) -> str:
    is_bare = key.isascii() and key.replace("_", "").replace("-", "").isalnum()
    return key if is_bare else _toml_value(key)


def _toml_value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # JSON's escapes are TOML's too, but for DEL, which JSON leaves alone
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    return repr(value)
