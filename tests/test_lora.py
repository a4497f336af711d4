"""Adapters: they alone learn, and everybody else sees a plain model with them merged in."""

from __future__ import annotations

import copy
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from forethought.config import parse_recipe
from forethought.errors import RecipeError
from forethought.models.load import load_model
from forethought.models.lora import adapted_layers, add_adapter, plain_copy, without_adapter
from forethought.models.save import save_model
from forethought.sampling import products
from forethought.sampling.local import LocalEngine
from forethought.schema_tables import Lora
from forethought.training.batch import batch_logprobs, pack_batches, pairs_per_token
from forethought.training.learner import build_learner
from forethought.training.rl import train_step
from forethought.training.stages import run_stage, start_run
from forethought.training.strips import Row
from forethought.types import Request, SamplingParams
from model_families import make_model, tokenizer
from tiny_runs import (
    EVEN_REWARD,
    NARROWEST,
    rl_tables,
    sft_tables,
    tiny_policy,
    tiny_tokenizer,
    train_in_two,
    without_clock,
)

CONFIG = Lora(rank=4)
IDS = torch.tensor([[5, 9, 11, 6, 40, 41], [7, 7, 8, 30, 5, 12]])


pytestmark = pytest.mark.usefixtures("one_thread")


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(IDS.to(model.device)).logits
    return found.cpu()


def adapted(family: str = "llama", config: Lora = CONFIG, **options: Any) -> Any:
    """A model whose adapter has learned something: B is no longer 0."""
    model = make_model(family, **options)
    add_adapter(model, config, seed=3)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.02, generator=generator)
    return model


# --- the model ---


def test_a_new_adapter_changes_nothing_and_learns_alone() -> None:
    model = make_model()
    before, kind = logits(model), type(model)
    add_adapter(model, CONFIG, seed=3)
    assert type(model) is kind and torch.equal(logits(model), before)
    learned = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(learned) == 2 * 2 * 7  # A and B of seven matrices in two blocks
    assert all(".lora_A." in name or ".lora_B." in name for name in learned)


def test_an_adapter_is_drawn_from_its_seed_alone() -> None:
    def first_matrix(seed: int) -> torch.Tensor:
        torch.rand(seed)  # whatever torch's own generator has been up to
        model = make_model()
        add_adapter(model, CONFIG, seed=seed)
        return next(iter(adapted_layers(model).values())).lora_A["default"].weight

    before = torch.get_rng_state()
    assert torch.equal(first_matrix(0), first_matrix(0))
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(first_matrix(0), first_matrix(1))


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "gpt2"])
def test_a_plain_copy_is_the_same_model(family: str) -> None:
    model = adapted(family)
    base = {name: p.clone() for name, p in model.named_parameters()}
    plain = plain_copy(model)
    assert not adapted_layers(plain) and type(plain) is type(model)
    assert plain.state_dict().keys() == make_model(family).state_dict().keys()
    assert torch.allclose(logits(plain), logits(model), atol=1e-5)
    assert not torch.allclose(logits(plain), logits(make_model(family)), atol=1e-2)
    assert all(torch.equal(p, base[name]) for name, p in model.named_parameters())
    assert plain.get_input_embeddings().weight is model.get_input_embeddings().weight
    assert copy.deepcopy(plain).state_dict().keys() == plain.state_dict().keys()


def test_a_plain_copy_in_another_format_leaves_the_model_alone() -> None:
    model = adapted()
    assert {p.dtype for p in plain_copy(model, torch.bfloat16).parameters()} == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_the_reference_is_the_model_without_its_adapter() -> None:
    model = adapted()
    before = logits(model)
    loss = model(IDS).logits.logsumexp(-1).mean()
    with without_adapter(model) as reference:
        assert torch.equal(logits(reference), logits(make_model()))
    assert torch.equal(logits(model), before)
    loss.backward()  # of a pass that began before the block
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
    assert any(p.requires_grad for p in model.parameters())


def test_strips_of_an_adapted_model_are_worth_separate_rows() -> None:
    model = adapted()
    rows = [
        Row(token_ids=[5, 9, 11, *more], weights=[0.0] * 3 + [1.0] * len(more), num_prompt=3)
        for more in ([6, 40], [41, 7, 7], [8])
    ]
    found = {}
    for name, learner, pairs in (("apart", model, 0.0), ("strip", model, 1e9)):
        [batch] = pack_batches(rows, max_batch_tokens=99, pad_id=0, pairs_per_token=pairs)
        order = batch.targets.argsort(stable=True)
        found[name] = batch_logprobs(learner, batch)[order]
    assert torch.allclose(found["apart"], found["strip"], atol=1e-5)
    assert pairs_per_token(model) == pairs_per_token(make_model())


@pytest.mark.parametrize("worth_packing", [0, 1 << 18], ids=["packed", "plain"])
def test_the_sampler_has_the_merged_weights(
    worth_packing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "_WORTH_PACKING", worth_packing)
    model = make_model()
    add_adapter(model, CONFIG, seed=3)
    engine = LocalEngine(plain_copy(model), tokenizer())
    params = SamplingParams(max_tokens=8, seed=1, n=4)
    request = Request(prompt_ids=(5, 9, 11), params=params)
    untrained = engine.generate([request])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.02)
    engine.update_weights(model, 1)
    siblings = engine.generate([request])[0]
    assert siblings[0].policy_version == 1
    assert [c.token_ids for c in siblings] != [c.token_ids for c in untrained[0]]
    for completion in siblings:
        ids = torch.tensor([[5, 9, 11, *completion.token_ids]])
        with torch.no_grad():
            table = model(ids).logits[0, 2:-1].log_softmax(-1)
        theirs = table.gather(1, ids[0, 3:, None])[:, 0]
        assert torch.allclose(torch.tensor(completion.logprobs), theirs, atol=1e-4)


# --- mistakes ---


@pytest.mark.parametrize(
    ("targets", "problem"),
    [
        (["q_prj"], "not all in this model"),
        (["lm_head"], "more than linear layers inside the blocks"),
        (["embed_tokens"], "more than linear layers inside the blocks"),
        (["norm"], "not all in this model"),
    ],
)
def test_a_wrong_target_is_one_sentence(targets: list[str], problem: str) -> None:
    with pytest.raises(RecipeError, match=problem) as found:
        add_adapter(make_model(), Lora(targets=targets), seed=0)
    assert str(targets) in str(found.value) and '"all-linear"' in str(found.value)


def test_chosen_targets_are_all_that_learns() -> None:
    model = adapted(config=Lora(rank=2, targets=["q_proj", "v_proj"]))
    assert {name.split(".")[-1] for name in adapted_layers(model)} == {"q_proj", "v_proj"}


@pytest.mark.parametrize("tables", [sft_tables, rl_tables])
def test_without_peft_a_recipe_is_refused_before_anything_loads(
    tables: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    recipe = parse_recipe(tables(tmp_path / "none", tmp_path / "run", lora={"rank": 8}))
    with (
        pytest.raises(RecipeError, match=r"lora.rank=8 needs peft: pip install 'foreth.*\[lora\]'"),
        start_run(recipe, ["test"]) as run,
    ):
        run_stage(recipe, run)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"lora": {"rank": 0}}, "lora.rank=0 is wrong"),
        ({"lora": {"alpha": 0}}, "lora.alpha=0 is wrong"),
        ({"lora": {"targets": []}}, "lora.targets"),
        ({"lora": {"rnk": 3}}, "did you mean rank?"),
        (
            {"lora": {}, "optimizer": {"learning_rate": 1e-3, "muon_learning_rate": 0.02}},
            "optimizer.muon_learning_rate=0.02 is not for adapters",
        ),
    ],
)
def test_a_wrong_key_is_one_sentence(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        parse_recipe(sft_tables(Path("model"), Path("run"), **changes))


def test_dropout_has_no_place_in_rl() -> None:
    with pytest.raises(RecipeError, match=r"lora\.dropout=0\.1 would train another policy"):
        parse_recipe(rl_tables(Path("model"), Path("run"), lora={"dropout": 0.1}))


# --- runs ---


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of larger weights than usual: an adapter can do little where all logits are near 0."""
    tokens = tiny_tokenizer()
    model = tiny_policy(tokens)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8 if parameter.ndim == 2 else 1)
    folder = tmp_path_factory.mktemp("model") / "tiny"
    save_model(model, tokens, folder)
    return folder


def train(tables: dict[str, Any]) -> list[dict[str, Any]]:
    recipe = parse_recipe(tables)
    with start_run(recipe, ["test"]) as run:
        run_stage(recipe, run)
        return run.metrics()


def files_of(run_dir: Path) -> dict[str, bytes]:
    names = ("model/model.safetensors", "adapter/adapter_model.safetensors")
    last = ("weights.safetensors", "optimizer.pt", "counters.json")
    paths = [run_dir / name for name in names]
    paths += [run_dir / "checkpoints" / "step_000004" / name for name in last]
    return {str(path.relative_to(run_dir)): path.read_bytes() for path in paths}


# peft's, about a name that transformers will drop
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_sft_trains_an_adapter_and_saves_it_apart_and_merged(base: Path, tmp_path: Path) -> None:
    from peft import AutoPeftModelForCausalLM, PeftModel

    rows = [{"prompt": f"What is {i} + {i}?", "completion": f"{i + i}"} for i in range(4)]
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    metrics = train(
        sft_tables(
            base,
            tmp_path / "run",
            data=str(data),
            num_steps=40,
            lora={"rank": 8, "dropout": 0.05},
        )
    )
    assert metrics[-1]["loss/mean"] < 0.5 * metrics[0]["loss/mean"]
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    plain = AutoModelForCausalLM.from_pretrained(base)
    before = logits(plain)
    apart = PeftModel.from_pretrained(plain, tmp_path / "run" / "adapter")
    found_alone = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "run" / "adapter")
    assert torch.allclose(logits(merged), logits(apart), atol=1e-5)
    assert torch.allclose(logits(merged), logits(found_alone), atol=1e-5)
    assert not torch.allclose(logits(merged), before, atol=0.1)
    trained = load_model(str(base))
    add_adapter(trained.model, Lora(rank=8), seed=0)
    [last] = sorted((tmp_path / "run" / "checkpoints").glob("step_*"))[-1:]
    learned = load_file(last / "weights.safetensors")
    assert all("lora_" in name for name in learned)
    trained.model.load_state_dict(learned, strict=False)
    assert torch.allclose(logits(merged), logits(trained.model), atol=1e-5)


@pytest.mark.usefixtures("on_cpu")
def test_sft_with_an_adapter_resumes_to_the_same_bits(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = sft_tables(base, tmp_path / "whole", lora={"rank": 4, "dropout": 0.2})
    whole = train(tables)
    broken = train_in_two(tables | {"run_dir": str(tmp_path / "broken")}, monkeypatch)
    assert without_clock(broken) == without_clock(whole)
    assert files_of(tmp_path / "broken") == files_of(tmp_path / "whole")


def even_tables(base: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    """RL that pays for even token ids, with an adapter."""
    folder.mkdir()
    (folder / "even.py").write_text(EVEN_REWARD)
    reward = {"parts": {f"{folder}/even.py:even": 1.0}}
    shared: dict[str, Any] = {"reward": reward, "lora": {"rank": 4}}
    return rl_tables(base, folder / "run", **(shared | changes))


@pytest.mark.usefixtures("on_cpu")
def test_rl_trains_an_adapter_and_samples_what_it_learned(base: Path, tmp_path: Path) -> None:
    tables = even_tables(
        base,
        tmp_path / "rl",
        num_steps=30,
        prompts_per_step=8,
        kl_coefficient=0.01,
        rollout_dtype="float32",
        optimizer={"learning_rate": 2e-2},
    )
    metrics = train(tables)
    rewards = [row["reward/mean"] for row in metrics]
    assert sum(rewards[-3:]) > sum(rewards[:3]) + 0.25
    assert max(row["policy/sampler_gap"] for row in metrics) < 1e-5
    assert metrics[0]["policy/kl"] < 1e-6 < metrics[-1]["policy/kl"]
    before = load_file(base / "model.safetensors")
    after = load_file(tmp_path / "rl" / "run" / "model" / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "_proj." in name}


def test_the_kl_penalty_is_that_to_a_copy_of_the_starting_model(base: Path, tmp_path: Path) -> None:
    """One step with the adapter switched off and one with a real second model agree."""
    tables = even_tables(base, tmp_path / "a", kl_coefficient=0.5, rollout_dtype="float32")
    recipe = parse_recipe(tables)
    found = {}
    for kind in ("free", "copy"):
        with start_run(recipe.model_copy(update={"run_dir": str(tmp_path / kind)}), ["x"]) as run:
            learner = build_learner(recipe, run)  # type: ignore[arg-type]
            assert learner.reference is learner.policy
            if kind == "copy":
                learner = replace(learner, reference=load_model(str(base)).model)
            learner.engine.update_weights(learner.policy, 0)
            metrics = [train_step(learner, run, step) for step in (1, 2, 3)]
            names = ("policy/kl", "loss/policy", "optim/grad_norm")
            found[kind] = [tuple(m[name] for name in names) for m in metrics]
    assert found["free"][-1][0] > 1e-4
    for free, copied in zip(found["free"], found["copy"], strict=True):
        assert free == pytest.approx(copied, abs=1e-6, rel=1e-4)


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize(
    "changes",
    [{"kl_coefficient": 0.1}, {"num_iterations": 3, "rollout_dtype": NARROWEST}],
    ids=["kl", "reused"],
)
def test_rl_with_an_adapter_resumes_to_the_same_bits(
    changes: dict[str, Any], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = even_tables(base, tmp_path / "rl", **changes)
    whole = train(tables)
    broken = train_in_two(tables | {"run_dir": str(tmp_path / "broken")}, monkeypatch)
    assert without_clock(broken) == without_clock(whole)
    assert files_of(tmp_path / "broken") == files_of(tmp_path / "rl" / "run")
