"""SmolLM2-135M after the cold start of recipes/smollm2-arithmetic.toml, made once a folder."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

from forethought.models.load import load_model
from forethought.models.save import save_model
from forethought.toml import to_toml
from trl_side import ROOT


def cold_start(folder: Path, seed: int = 0) -> Path:
    """A model folder in float32, for both sides."""
    if not (folder / "model").exists():
        run = train(folder, seed)
        save_float32(str(run), folder / "model")
    return folder / "model"


def train(folder: Path, seed: int) -> Path:
    """The SFT stage of the recipe alone."""
    tables = tomllib.loads((ROOT / "recipes" / "smollm2-arithmetic.toml").read_text("utf-8"))
    run = folder / "cold-start"
    head = {"run_dir": str(run), "model": tables["model"], "seed": seed}
    folder.mkdir(parents=True, exist_ok=True)
    recipe = folder / "cold-start.toml"
    recipe.write_text(to_toml(tables["sft"] | head), encoding="utf-8")
    command = [sys.executable, "-m", "forethought", "train", str(recipe)]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return run / "model"


def save_float32(source: str, folder: Path) -> None:
    loaded = load_model(source, dtype="float32")
    save_model(loaded.model, loaded.tokenizer, folder)
