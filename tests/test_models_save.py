"""Saving models: whole or not at all, and opened by transformers alone."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from forethought.errors import ModelError
from forethought.models import save
from forethought.models.info import describe
from forethought.models.load import load_model
from forethought.models.save import save_model, staged_folder
from tiny_models import logits, make_folder, tiny_model, tiny_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "models" / "tiny")


def test_saved_folder_opens_with_transformers_alone(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(logits(model), logits(tiny_model()))
    assert AutoTokenizer.from_pretrained(folder).decode([40, 41]) == tiny_tokenizer().decode(
        [40, 41]
    )
    assert (folder / "README.md").read_text().startswith("# Tiny")


@pytest.mark.parametrize("dtype", save.DTYPES)
def test_dtype_on_disk_leaves_the_model_in_memory_alone(tmp_path: Path, dtype: str) -> None:
    model = tiny_model()
    before = logits(model)
    save_model(model, tiny_tokenizer(eos_token="<end>"), tmp_path / "out", dtype=dtype)
    assert torch.equal(logits(model), before) and model.dtype == torch.float32
    assert describe(str(tmp_path / "out")).dtype == dtype
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == dtype
    reloaded = load_model(str(tmp_path / "out"), device="cpu").model
    assert torch.allclose(logits(reloaded), before, atol=0.02)


def test_untied_head_survives(tmp_path: Path) -> None:
    model = tiny_model(tie_word_embeddings=False)
    save_model(model, tiny_tokenizer(eos_token="<end>"), tmp_path / "out", dtype="float32")
    reloaded = load_model(str(tmp_path / "out"), device="cpu").model
    assert torch.equal(logits(reloaded), logits(model))


def test_saving_replaces_a_model_and_leaves_nothing_beside_it(folder: Path) -> None:
    (folder / "old.txt").write_text("old")
    save_model(tiny_model(), tiny_tokenizer(eos_token="<end>"), folder)
    assert not (folder / "old.txt").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["tiny"]


def test_a_failed_save_keeps_the_old_model(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(KeyboardInterrupt), staged_folder(folder) as staging:
        (staging / "config.json").write_text("{}")
        raise KeyboardInterrupt
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["tiny"]


def test_full_disk_is_one_sentence(folder: Path) -> None:
    said = r"No space left on device.*free some space"
    with pytest.raises(ModelError, match=said), staged_folder(folder):
        raise OSError(28, "No space left on device")
    assert load_model(str(folder), device="cpu")


def test_a_folder_that_is_no_model_is_never_deleted(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(ModelError, match="not a model folder"):
        save_model(tiny_model(), tiny_tokenizer(), tmp_path)
    with pytest.raises(ModelError, match="cannot write"):
        save_model(tiny_model(), tiny_tokenizer(), tmp_path / "thesis.txt" / "model")
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_leftovers_of_killed_processes_are_cleared_and_broken_swaps_undone(folder: Path) -> None:
    young, old = (folder.parent / f".tiny.tmp-{name}" for name in ("young", "old"))
    young.mkdir()
    old.mkdir()
    os.utime(old, (0, 0))
    folder.rename(folder.parent / ".tiny.old")
    with pytest.raises(RuntimeError), staged_folder(folder):
        raise RuntimeError
    assert sorted(path.name for path in folder.parent.iterdir()) == [young.name, "tiny"]


def test_unknown_dtype_on_disk(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="int4"):
        save_model(tiny_model(), tiny_tokenizer(), tmp_path / "out", dtype="int4")
