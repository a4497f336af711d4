"""Writing model folders so that a crash, a full disk or Ctrl-C never leaves half of one.

Nothing heavy is imported until a model is really saved.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from forethought.errors import ModelError
from forethought.models.quiet import quiet_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = ("float32", "bfloat16", "float16")
# A staging folder this old belongs to a process that died: nobody writes a model for an hour.
STALE_AFTER_SECONDS = 3600


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path | str,
    *,
    dtype: str | None = None,
    card: str | None = None,
) -> None:
    """Write a Hugging Face folder that `from_pretrained` opens, all of it or nothing.

    `dtype` ("float32", "bfloat16", "float16") is the type on disk, by default the model's own;
    the model in memory is not touched. `card` becomes README.md. A model already at `folder` is
    replaced once the new one is safely on disk. Raises ModelError when the folder cannot be
    written, holds something other than a model, or `dtype` is unknown.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ModelError(f"dtype {dtype!r} is unknown: choose one of {', '.join(DTYPES)}.")
    with staged_folder(Path(folder)) as staging, quiet_transformers():
        write_weights(model, staging, dtype)
        tokenizer.save_pretrained(staging)
        if card is not None:
            (staging / "README.md").write_text(card, encoding="utf-8")


def write_weights(model: PreTrainedModel, staging: Path, dtype: str | None) -> None:
    """Write config and safetensors into `staging`, floating tensors in `dtype`."""
    if dtype is None:
        model.save_pretrained(staging)
        return
    import torch

    target: torch.dtype = getattr(torch, dtype)
    state = {
        name: tensor.to(target) if tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
    }
    model.save_pretrained(staging, state_dict=state)
    # save_pretrained names the type of the model in memory: the config must name the one on disk.
    config_path = staging / "config.json"
    config = json.loads(config_path.read_text(encoding="utf-8"))
    config["dtype"] = dtype
    config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """Yield an empty sibling folder that becomes `target` when the block ends well.

    The files are flushed to disk before the rename. When the block raises, the sibling is removed
    and `target` stays as it was. OSError and SafetensorError become ModelError.
    """
    target = target.expanduser()
    try:
        check_replaceable(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_stale(target)
        staging = target.parent / f"{staging_prefix(target)}{uuid.uuid4().hex[:12]}"
        staging.mkdir()
        try:
            yield staging
            share(staging)
            flush(staging)
            swap_in(staging, target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise ModelError(write_failure(target, error)) from error


def staging_prefix(target: Path) -> str:
    """How the names of the temporary siblings of `target` begin."""
    return f".{target.name}.tmp-"


def check_replaceable(target: Path) -> None:
    """Raise ModelError when replacing `target` would delete something that is no model."""
    if not target.exists():
        return
    configs = ("config.json", "adapter_config.json")
    is_model = target.is_dir() and any((target / name).is_file() for name in configs)
    if is_model or (target.is_dir() and not any(target.iterdir())):
        return
    raise ModelError(f"{target} exists and is not a model folder: choose another folder.")


def remove_stale(target: Path) -> None:
    """Clear what killed processes left beside `target`, and undo a swap that one broke off."""
    backup = backup_of(target)
    if backup.exists() and not target.exists():
        backup.rename(target)
    for leftover in target.parent.glob(staging_prefix(target) + "*"):
        if time.time() - leftover.stat().st_mtime > STALE_AFTER_SECONDS:
            shutil.rmtree(leftover, ignore_errors=True)


def share(folder: Path) -> None:
    """Give the files the folder's permissions: safetensors makes its own private."""
    mode = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def flush(folder: Path) -> None:
    """Force every file of `folder`, and its list of names, onto the disk."""
    for path in [*folder.rglob("*"), folder]:
        flush_one(path)


def flush_one(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open a folder
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def swap_in(staging: Path, target: Path) -> None:
    """Rename `staging` to `target`; an older `target` is moved aside first, then deleted."""
    backup = backup_of(target)
    shutil.rmtree(backup, ignore_errors=True)
    if target.exists():
        target.rename(backup)
    try:
        staging.rename(target)
    except OSError:
        if backup.exists():
            backup.rename(target)
        raise
    flush_one(target.parent)
    shutil.rmtree(backup, ignore_errors=True)


def backup_of(target: Path) -> Path:
    return target.parent / f".{target.name}.old"


def write_failure(target: Path, error: Exception) -> str:
    """One sentence: what could not be written, why, and the fix."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    fix = "free some space" if "space" in reason.lower() else "check its permissions"
    return f"cannot write the model folder {target} ({reason}): {fix} or choose another folder."
