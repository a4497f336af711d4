"""What a model spec means, found out without importing torch, so that mistakes fail at once."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from forethought.errors import ModelError
from forethought.models.registry import REGISTERED, is_fetched, model_folder

BUNDLED_DIR = Path(__file__).parent / "bundled"
BUNDLED_PREFIX = "bundled:"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# Not every *.bin holds weights (training_args.bin does not), so the names are spelled out.
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")


def resolve(spec: str) -> Path | str:
    """Return the model folder that `spec` names, or `spec` itself when it is a hub id.

    Tried in this order:
    1. `bundled:NAME`: a model shipped inside the package;
    2. an existing folder: a Hugging Face model folder, else a run folder, which means its `model/`
       (of a pipeline, that of its last stage);
    3. a registered name such as `smollm2-135m`, once `forethought model get` has fetched it;
    4. `org/name`: a hub id, returned as it is (nothing is asked of the network here).

    A folder is checked for a config, weights and a tokenizer. Raises ModelError otherwise.
    """
    spec = spec.strip()
    if spec.startswith(BUNDLED_PREFIX):
        return checked(bundled_folder(spec.removeprefix(BUNDLED_PREFIX)))
    # os.path, because pathlib raises on "~nobody" and long names; both on a null character
    path = spec if "\0" in spec else os.path.expanduser(spec)
    if os.path.isdir(path):
        return checked(folder_in(Path(path)))
    if os.path.isfile(path):
        raise ModelError(f"model {spec!r} is a file: give the folder that holds it.")
    if spec in REGISTERED:
        if not is_fetched(spec):
            raise ModelError(
                f"model {spec!r} is not on this machine: run `forethought model get {spec}`."
            )
        return checked(model_folder(spec))
    if HUB_ID.fullmatch(spec) and ".." not in spec:
        return spec
    raise ModelError(
        f"model {spec!r} is not a folder: give a model folder, a hub id org/name, "
        f"or one of {', '.join(known_names())}."
    )


def known_names() -> list[str]:
    """Every name that needs no path: bundled models, then registered ones."""
    return [BUNDLED_PREFIX + name for name in bundled_names()] + sorted(REGISTERED)


def bundled_names() -> list[str]:
    """Names of the models shipped inside the package."""
    if not BUNDLED_DIR.is_dir():
        return []
    return sorted(path.parent.name for path in BUNDLED_DIR.glob("*/config.json"))


def bundled_folder(name: str) -> Path:
    """Folder of a bundled model; raises ModelError that lists the known ones."""
    names = bundled_names()
    if name not in names:
        known = ", ".join(BUNDLED_PREFIX + known for known in names) or "none in this installation"
        raise ModelError(f"bundled model {name!r} is unknown: the bundled models are {known}.")
    return BUNDLED_DIR / name


def folder_in(path: Path) -> Path:
    """The model folder itself, or the one inside a finished run folder."""
    if (path / "config.json").is_file():
        return path
    if (path / "model" / "config.json").is_file():
        return path / "model"
    if stages := stage_folders(path):
        return folder_in(stages[-1])
    checkpoints = path / "checkpoints"
    if not checkpoints.is_dir():
        return path
    raise ModelError(
        f"run folder {path} has no saved model yet: finish it with forethought train --resume."
    )


def stage_folders(path: Path) -> list[Path]:
    """The run folders inside a pipeline's, in order (`1-sft`, `2-rl`); [] for any other folder."""
    if not (path / "run.json").is_file():
        return []
    found = [p.parent for p in path.glob("*-*/run.json") if p.parent.name.split("-")[0].isdigit()]
    return sorted(found, key=lambda folder: int(folder.name.split("-")[0]))


def checked(folder: Path) -> Path:
    """Return `folder` when it holds a config, weights and a tokenizer, else raise ModelError."""
    read_config(folder)
    if not any(any(folder.glob(pattern)) for pattern in WEIGHTS):
        raise ModelError(
            f"model folder {folder} has no weights: put its *.safetensors (or pytorch_model.bin) "
            "beside config.json."
        )
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise ModelError(
            f"model folder {folder} has no tokenizer: put its tokenizer.json beside config.json."
        )
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    """The model's config.json as a dict; raises ModelError when it is missing or broken."""
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(
            f"model folder {folder} has no config.json: give a folder saved by save_pretrained."
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read ({error}): save the model again.") from error
    if not isinstance(config, dict) or "model_type" not in config:
        raise ModelError(f"{path} names no model_type: give a folder saved by save_pretrained.")
    return config
