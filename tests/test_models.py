"""Loading models: what a spec means, and what every bad folder says."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig, BertForMaskedLM

from forethought.errors import ModelError, UserError
from forethought.models import load, registry, resolve
from forethought.models.hub import hub_reachable
from forethought.models.load import load_model, load_tokenizer, pick_device
from tiny_models import TEMPLATE, logits, make_folder, tiny_config, tiny_model, tiny_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "models" / "tiny")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORETHOUGHT_CACHE", str(tmp_path / "cache"))


def test_load_returns_the_saved_model_in_eval_mode_with_its_tokenizer(folder: Path) -> None:
    loaded = load_model(str(folder), device="cpu")
    assert torch.equal(logits(loaded.model), logits(tiny_model()))
    assert not loaded.model.training
    assert loaded.model.dtype == torch.float32
    assert (loaded.spec, loaded.folder) == (str(folder), folder)
    assert loaded.tokenizer.pad_token == "<pad>"
    assert loaded.tokenizer.chat_template == TEMPLATE


def test_load_in_bfloat16(folder: Path) -> None:
    assert load_model(str(folder), dtype="bfloat16", device="cpu").model.dtype == torch.bfloat16


def test_pick_device_names_a_device_that_works() -> None:
    assert pick_device() in ("cuda", "mps", "cpu")
    assert torch.empty(0, device=pick_device()).numel() == 0


@pytest.mark.parametrize("options", [{"dtype": "float8"}, {"device": "gpu"}, {"device": "cpu:x"}])
def test_wrong_dtype_or_device_is_named(folder: Path, options: dict[str, str]) -> None:
    with pytest.raises(ModelError, match=next(iter(options.values()))):
        load_model(str(folder), **{"device": "cpu", **options})


@pytest.mark.parametrize(
    ("removed", "said"),
    [
        ("config.json", "no config.json"),
        ("model.safetensors", "no weights"),
        ("tokenizer.json", "no tokenizer"),
    ],
)
def test_incomplete_folder_fails_at_resolve(folder: Path, removed: str, said: str) -> None:
    (folder / removed).unlink()
    with pytest.raises(ModelError, match=said):
        resolve.resolve(str(folder))


@pytest.mark.parametrize("text", ["{", "[]", "{}", "\x00"])
def test_broken_config_is_one_sentence(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json"):
        load_model(str(folder), device="cpu")


def test_truncated_weights_are_an_error_not_a_crash(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(str(folder), device="cpu")


def test_missing_tensors_are_not_filled_with_random_numbers(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(ModelError, match="lack 9 tensors"):
        load_model(str(folder), device="cpu")


@pytest.mark.parametrize("text", ["", "{", "{}", "[1]"])
def test_broken_tokenizer_is_one_sentence(folder: Path, text: str) -> None:
    (folder / "tokenizer.json").write_text(text)
    with pytest.raises(ModelError, match="tokenizer"):
        load_model(str(folder), device="cpu")


def test_tokenizer_larger_than_the_model_is_refused(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    tokenizer.add_tokens(["<more>"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match="embeddings"):
        load_model(str(folder), device="cpu")


def test_an_encoder_is_not_a_causal_model(tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=300, hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
        intermediate_size=8, max_position_embeddings=8,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    tiny_tokenizer(eos_token="<end>").save_pretrained(tmp_path / "bert")
    with pytest.raises(ModelError, match="BertForMaskedLM, not a causal"):
        load_model(str(tmp_path / "bert"), device="cpu")


def test_hub_without_a_network_fails_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(load, "hub_reachable", lambda: False)
    started = time.monotonic()
    with pytest.raises(ModelError, match=r"nobody/nothing.*hub.*network"):
        load_model("nobody/nothing", device="cpu")
    assert time.monotonic() - started < 10


def test_offline_switch_means_the_hub_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert not hub_reachable()


def test_loading_is_silent(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_model(str(folder), device="cpu")
    assert capfd.readouterr() == ("", "")


# --- tokenizer completion ----------------------------------------------------------------------


def test_pad_falls_back_to_the_end_token(tmp_path: Path) -> None:
    tiny_tokenizer(eos_token="<end>").save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).pad_token == "<end>"


def test_end_token_comes_from_the_config_when_the_tokenizer_has_none(tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path, config=tiny_config(eos_token_id=[1, 0])).eos_token == "<end>"
    with pytest.raises(ModelError, match="no end token"):
        load_tokenizer(tmp_path, config=tiny_config(eos_token_id=None))


def test_plain_template_joins_by_lines_and_keeps_prompts_as_prefixes(tmp_path: Path) -> None:
    tiny_tokenizer(eos_token="<end>").save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "2+2?"},
    ]
    prompt = tokenizer.apply_chat_template(chat[:2], add_generation_prompt=True, tokenize=False)
    whole = tokenizer.apply_chat_template(chat, tokenize=False)
    assert prompt == "Be brief.\n1+1?\n"
    assert whole == prompt + "2<end>\n2+2?\n"


def test_plain_template_adds_the_begin_token_only_where_the_tokenizer_does() -> None:
    tokenizer = tiny_tokenizer(eos_token="<end>", bos_token="<begin>")
    assert "bos_token" not in load.plain_template_for(tokenizer)
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<begin> $A", special_tokens=[("<begin>", 2)]
    )
    assert load.plain_template_for(tokenizer).startswith("{{ bos_token }}")


# --- what a spec means -------------------------------------------------------------------------


def test_bundled_models_are_found_and_listed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "BUNDLED_DIR", folder.parent)
    assert resolve.resolve("bundled:tiny") == folder
    for wrong in ("seed", "", "../tiny", "tiny/"):
        with pytest.raises(ModelError, match="bundled models are bundled:tiny"):
            resolve.resolve(f"bundled:{wrong}")


def test_registered_name_says_how_to_fetch_it(folder: Path) -> None:
    with pytest.raises(ModelError, match="run `forethought model get smollm2-135m`"):
        resolve.resolve("smollm2-135m")
    target = registry.model_folder("smollm2-135m")
    shutil.copytree(folder, target)
    assert resolve.resolve("smollm2-135m") == target


def test_run_folder_means_its_model(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    with pytest.raises(ModelError, match="no saved model yet"):
        resolve.resolve(str(run))
    shutil.copytree(folder, run / "model")
    assert resolve.resolve(str(run)) == run / "model"


def test_a_folder_comes_before_a_hub_id(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent.parent)
    spec = f"{folder.parent.name}/{folder.name}"
    assert isinstance(resolve.resolve(spec), Path)
    assert resolve.resolve("some/where") == "some/where"


@pytest.mark.parametrize(
    "spec", ["", " ", "nope", "/no/such/folder", "../up/there", "a/b/c", "~x", "~\0", "x" * 5000]
)
def test_unknown_specs_are_one_sentence(spec: str) -> None:
    with pytest.raises(ModelError, match="give a model folder, a hub id org/name, or"):
        resolve.resolve(spec)


def test_a_file_is_not_a_folder(folder: Path) -> None:
    with pytest.raises(ModelError, match="is a file"):
        resolve.resolve(str(folder / "config.json"))


@given(st.text(max_size=20))
def test_any_text_is_a_folder_an_id_or_a_user_error(spec: str) -> None:
    try:
        found = resolve.resolve(spec)
    except UserError as error:
        assert str(error).endswith(".")
    else:
        assert isinstance(found, str) and found.count("/") == 1


def test_resolving_and_describing_import_nothing_heavy(folder: Path) -> None:
    code = (
        "import sys; from forethought.models.load import resolve; import forethought.cli.model; "
        "from forethought.models.info import describe; resolve(sys.argv[1]); describe(sys.argv[1]);"
        "assert not {'torch', 'transformers', 'numpy', 'pydantic'} & set(sys.modules)"
    )
    source = str(Path(load.__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": source}
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, env=environment)
