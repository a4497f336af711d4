"""Only the last layers learn: everything else stays what it was, and costs nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from forethought.config import parse_recipe
from forethought.errors import RecipeError
from forethought.models.trained_layers import num_kept, train_last
from forethought.training.learner import build_learner
from forethought.training.stages import run_stage, start_run
from model_families import make_model
from tiny_runs import EVEN_REWARD, rl_tables, save_tiny, sft_tables, train_in_two, without_clock

pytestmark = pytest.mark.usefixtures("one_thread", "on_cpu")
FAMILIES = {
    "llama": {"model.layers.1.", "model.norm."},
    "qwen2": {"model.layers.1.", "model.norm."},
    "gemma2": {"model.layers.1.", "model.norm."},
    "gpt2": {"transformer.h.1.", "transformer.ln_f."},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"))


def rl(base: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    (folder / "even.py").write_text(EVEN_REWARD)
    reward = {"parts": {f"{folder}/even.py:even": 1.0}}
    return rl_tables(base, folder / "run", reward=reward, trained_layers=1, **changes)


def train(tables: dict[str, Any]) -> list[dict[str, Any]]:
    recipe = parse_recipe(tables)
    with start_run(recipe, ["test"]) as run:
        run_stage(recipe, run)
        return run.metrics()


def changed(base: Path, run_dir: Path) -> set[str]:
    before, after = load_file(base / "model.safetensors"), load_file(run_dir / "model.safetensors")
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_layer_and_what_is_behind_it_learn(family: str) -> None:
    model = make_model(family)
    train_last(model, 1)
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learning == {
        name for name, _ in model.named_parameters() if name.startswith(tuple(FAMILIES[family]))
    }
    assert num_kept(model) == 1


def test_without_a_number_everything_learns() -> None:
    model = make_model()
    train_last(model, None)
    assert all(p.requires_grad for p in model.parameters())
    assert num_kept(model) == 2


def test_the_gradient_is_that_of_the_whole_model() -> None:
    found = []
    for count in (None, 1):
        model = make_model()
        train_last(model, count)
        ids = torch.tensor([[5, 9, 11, 6, 40, 41]])
        model(ids).logits.logsumexp(-1).mean().backward()
        found.append({name: p.grad for name, p in model.named_parameters()})
    whole, last = found
    assert any(gradient is None for gradient in last.values())
    for name, gradient in last.items():
        assert gradient is None or torch.equal(gradient, whole[name])


@pytest.mark.parametrize(
    "changes", [{}, {"kl_coefficient": 0.1}, {"estimator": "ppo"}], ids=["plain", "kl", "ppo"]
)
def test_rl_moves_them_alone(changes: dict[str, Any], base: Path, tmp_path: Path) -> None:
    tables = rl(base, tmp_path / "rl", **changes)
    train(tables)
    run_dir = Path(tables["run_dir"])
    names = changed(base, run_dir / "model")
    assert names and all(name.startswith(("model.layers.1.", "model.norm.")) for name in names)
    kept = load_file(run_dir / "checkpoints" / "step_000004" / "weights.safetensors")
    assert not any("embed_tokens" in name or "layers.0." in name for name in kept)


def test_sft_moves_them_alone(base: Path, tmp_path: Path) -> None:
    train(sft_tables(base, tmp_path / "run", trained_layers=1))
    names = changed(base, tmp_path / "run" / "model")
    assert names and all(name.startswith(("model.layers.1.", "model.norm.")) for name in names)


def test_a_resumed_run_ends_in_the_same_bits(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = rl(base, tmp_path / "rl", kl_coefficient=0.1)
    whole = train(tables)
    broken = train_in_two(tables | {"run_dir": str(tmp_path / "broken")}, monkeypatch)
    assert without_clock(broken) == without_clock(whole)
    weights = [
        (folder / "model" / "model.safetensors").read_bytes()
        for folder in (tmp_path / "broken", tmp_path / "rl" / "run")
    ]
    assert weights[0] == weights[1]


def test_the_reference_shares_what_does_not_learn(base: Path, tmp_path: Path) -> None:
    recipe = parse_recipe(rl(base, tmp_path / "rl", kl_coefficient=0.1))
    with start_run(recipe, ["test"]) as run:
        learner = build_learner(recipe, run)  # type: ignore[arg-type]
    assert learner.reference is not None
    pairs = zip(learner.policy.parameters(), learner.reference.parameters(), strict=True)
    for mine, theirs in pairs:
        assert (mine is theirs) == (not mine.requires_grad)


def test_more_layers_than_there_are_is_one_sentence(base: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="trained_layers=9 is more than the 2 layers"):
        train(rl(base, tmp_path / "rl") | {"trained_layers": 9})


def test_an_adapter_and_last_layers_contradict_each_other(base: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="trained_layers=1 is not for adapters"):
        parse_recipe(rl(base, tmp_path / "rl", lora={"rank": 4}))
