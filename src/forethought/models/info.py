"""What a model folder holds, read from its headers: no weights are loaded, torch is not needed."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forethought.errors import ModelError
from forethought.models.resolve import WEIGHTS, read_config, resolve

HEADER_LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000
EXCERPT_CHARACTERS = 400
FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """Facts about one model. None where the files do not say.

    `num_parameters` counts shared tensors once. `context_tokens` is the longest row the model was
    made for. `weights_bytes` is the size of the weights on disk.
    """

    spec: str
    folder: str
    model_type: str
    num_parameters: int | None
    num_layers: int | None
    vocab_size: int | None
    context_tokens: int | None
    dtype: str | None
    has_chat_template: bool
    weights_bytes: int
    card: str | None


def describe(spec: str) -> ModelInfo:
    """Facts about the model that `spec` names; raises ModelError, also for a hub id."""
    folder = resolve(spec)
    if isinstance(folder, str):
        raise ModelError(f"model {spec!r} is a hub id: download it and give its folder.")
    config = read_config(folder)
    tensors = read_headers(folder)
    files = {path for pattern in WEIGHTS for path in folder.glob(pattern)}
    return ModelInfo(
        spec=spec,
        folder=str(folder),
        model_type=str(config["model_type"]),
        num_parameters=sum(math.prod(shape) for _, shape in tensors) or None,
        num_layers=first_number(config, "num_hidden_layers", "n_layer", "num_layers"),
        vocab_size=first_number(config, "vocab_size"),
        context_tokens=first_number(config, "max_position_embeddings", "n_positions", "n_ctx"),
        dtype=commonest_dtype(tensors) or config.get("dtype") or config.get("torch_dtype"),
        has_chat_template=has_chat_template(folder),
        weights_bytes=sum(path.stat().st_size for path in files),
        card=card_excerpt(folder),
    )


def read_headers(folder: Path) -> list[tuple[str, list[int]]]:
    """(dtype, shape) of every tensor in the folder's safetensors files; empty without any.

    Format: 8 bytes of little-endian header length, then the header as JSON. Raises ModelError.
    """
    tensors: list[tuple[str, list[int]]] = []
    for path in sorted(folder.glob("*.safetensors")):
        try:
            header = read_header(path)
            tensors += [
                (entry["dtype"], entry["shape"])
                for name, entry in header.items()
                if name != "__metadata__"
            ]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(
                f"{path} is not a safetensors file, or is cut short: fetch or save it again."
            ) from error
    return tensors


def read_header(path: Path) -> dict[str, Any]:
    """The JSON header of one safetensors file; raises ValueError when it is none."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(HEADER_LENGTH_BYTES), "little")
        if length > MAX_HEADER_BYTES:
            raise ValueError(f"header of {length} bytes")
        header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("header is not an object")
    return header


def commonest_dtype(tensors: list[tuple[str, list[int]]]) -> str | None:
    """The type of most parameters, by torch's name."""
    totals: dict[str, int] = {}
    for dtype, shape in tensors:
        totals[dtype] = totals.get(dtype, 0) + math.prod(shape)
    best = max(totals, key=lambda dtype: totals[dtype], default=None)
    return FLOATS.get(best, best.lower()) if best else None


def first_number(config: dict[str, Any], *keys: str) -> int | None:
    """The first of `keys` that config, or its text part, has as a whole number."""
    text = config.get("text_config")
    for source in (config, text if isinstance(text, dict) else {}):
        for key in keys:
            if isinstance(value := source.get(key), int):
                return value
    return None


def has_chat_template(folder: Path) -> bool:
    """True when the folder brings a chat template of its own."""
    if (folder / "chat_template.jinja").is_file():
        return True
    path = folder / "tokenizer_config.json"
    try:
        return bool(json.loads(path.read_text(encoding="utf-8")).get("chat_template"))
    except (OSError, ValueError, AttributeError):
        return False


def card_excerpt(folder: Path) -> str | None:
    """The first paragraph of the model card that is no heading, without control characters."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    if text.startswith("---\n"):
        text = text[4:].partition("\n---\n")[2]
    paragraphs = (" ".join(part.split()) for part in text.split("\n\n"))
    first = next((part for part in paragraphs if part and not part.startswith("#")), "")
    printable = "".join(letter for letter in first if letter.isprintable())
    return printable[:EXCERPT_CHARACTERS] or None
