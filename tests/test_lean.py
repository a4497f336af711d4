"""The lean decoding step computes what transformers' own forward pass computes."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from forethought.sampling import products, whole_layers
from forethought.sampling.cache import prefill
from forethought.sampling.decoder import Decoder, has_lean_step
from forethought.sampling.lean import LeanModel
from forethought.sampling.products import (
    Half,
    Int8,
    Packed,
    Plain,
    Product,
    Weights,
    can_multiply,
    product_of,
)
from forethought.sampling.scaled import Scaled, tensor_of
from forethought.sampling.shared_cache import SharedCache
from forethought.sampling.tiled import Tiled
from forethought.sampling.whole_layers import WholeLayers
from forethought.types import Request
from test_sampling import make_engine, prompt_of, sampled

SHAPE: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
SCALED = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True)),
    "llama, stretched": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, rope_parameters=SCALED)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE, tie_word_embeddings=True)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=32)),
}


def build(name: str) -> Any:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    with torch.no_grad():  # norms and biases that do nothing would hide a mistake
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def multiply(product: Product, x: torch.Tensor) -> torch.Tensor:
    return tensor_of(product(Scaled.in_format(x, product.takes))).float()


def walk(model: Any, lean: LeanModel, steps: int, *, reads: bool = False) -> float:
    """The largest difference from full forward passes while rows of three prompts decode, one row
    leaves and a prompt's last row leaves."""
    prompts = [(5, 7, 9), (11, 4, 8, 6, 3), (21,)]
    rows = [list(prompts[p]) for p in (1, 0, 0, 2, 1, 0)]
    cache = SharedCache(model, len(rows), 5, steps + 2, lean.cache_form)
    found = lean.prefill(prompts) if reads else prefill(model, prompts)
    ready = dict(zip(prompts, found, strict=True))
    for r, row in enumerate(rows):
        cache.join(r, tuple(row), ready[tuple(row)])
    worst = 0.0
    for step in range(steps):
        for r, row in enumerate(rows):
            row.append((13 * step + 17 * r + 1) % 300)
        logits = lean.decode(cache, [row[-1] for row in rows], [len(row) - 1 for row in rows])
        for row, found in zip(rows, logits, strict=True):
            wanted = model(torch.tensor([row])).logits[0, -1]
            worst = max(worst, float((found - wanted).abs().max() / wanted.std()))
        if step in (1, 3):  # the only row of its prompt, then one of several
            leaving = {1: 3, 3: 0}[step]
            cache.leave(leaving, len(rows[-1]))
            rows[leaving] = rows[-1]
            rows.pop()
    return worst


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_decoding_equals_the_full_forward_pass(
    name: str, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if packed:
        if not can_multiply("float32"):
            pytest.skip("this torch packs no matrices")
        monkeypatch.setattr(products, "_WORTH_PACKING", 0)
    model = build(name)
    lean = LeanModel.of(model)
    assert type(lean.head) is (Packed if packed else Plain)
    assert walk(model, lean, 6) < 1e-4
    assert walk(model, lean, 6, reads=True) < 1e-4


@pytest.mark.parametrize(
    ("weights", "bound"), [("float16", 7e-3), ("bfloat16", 8e-2), ("int8", 0.3)]
)
@pytest.mark.parametrize("tiled", [True, False], ids=["tiled", "library"])
@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_coarser_weights_stay_near_the_full_forward_pass(
    name: str, tiled: bool, weights: Weights, bound: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not can_multiply(weights):
        pytest.skip(f"no {weights} product here")
    if not tiled:
        monkeypatch.setattr(products, "is_tiled", lambda layers, weights: False)
    monkeypatch.setattr(products, "_WORTH_PACKING", 0)
    model = build(name)
    lean = LeanModel.of(model, weights)
    library = {"float16": Half, "bfloat16": Packed, "int8": Int8}[weights]
    assert type(lean.head) in ({library, Tiled} if tiled else {library})
    assert isinstance(lean.layers, WholeLayers) == isinstance(lean.head, Tiled)
    assert 1e-5 < walk(model, lean, 6) < bound
    assert 1e-5 < walk(model, lean, 6, reads=True) < bound


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
@torch.inference_mode()
def test_a_row_is_the_same_in_a_large_batch_and_in_a_small_one(
    weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a large one each thread takes its rows through all layers."""
    monkeypatch.setattr(whole_layers, "_WORTH_SHARING", 0)
    model = build("llama")
    lean = LeanModel.of(model, weights)
    if not isinstance(lean.layers, WholeLayers):
        pytest.skip(f"no tiles of {weights} here")
    prompt, found = (5, 7, 9), []
    ready = lean.prefill([prompt])[0]
    for count in (80, 3):
        cache = SharedCache(model, count, len(prompt), 4, lean.cache_form)
        for row in range(count):
            cache.join(row, prompt, ready)
        for step in range(3):
            logits = lean.decode(
                cache, [(7 * row + step) % 300 for row in range(count)], [3 + step] * count
            )
        found.append(logits[:3])
    assert torch.equal(*found)
    assert not torch.equal(found[0][0], found[0][1])


@torch.inference_mode()
def test_the_lean_step_reads_prompts_as_the_model_does() -> None:
    model = build("qwen3")
    prompts = [(5, 7, 9), tuple(range(10, 60)), (21,)]
    for read, prompt in zip(LeanModel.of(model).prefill(prompts), prompts, strict=True):
        wanted = model(torch.tensor([prompt])).logits[0, -1]
        assert torch.allclose(read.logits, wanted, atol=1e-4)


@pytest.mark.skipif(not can_multiply("bfloat16"), reason="no bfloat16 product here")
@pytest.mark.parametrize("has_bias", [False, True])
def test_layers_in_bfloat16_are_packed_in_it(
    has_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "_WORTH_PACKING", 0)
    torch.manual_seed(0)
    layers = [nn.Linear(64, n, bias=has_bias).bfloat16() for n in (96, 32)]
    x = torch.randn(5, 64)
    product = product_of(layers, "float32")
    wanted = torch.cat([layer(x.bfloat16()) for layer in layers], dim=1).float()
    assert isinstance(product, Packed | Tiled) and product.takes == "bfloat16"
    assert torch.allclose(multiply(product, x), wanted, atol=2e-2, rtol=2e-2)


@pytest.mark.skipif(not can_multiply("float16"), reason="no float16 product here")
def test_a_matrix_packed_in_parts_is_the_same_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(products, "_WORTH_PACKING", 0)
    layer, x = nn.Linear(64, 97), torch.randn(5, 64)
    found = []
    for worth_splitting in (0, 1 << 30):
        monkeypatch.setattr(products, "_WORTH_SPLITTING", worth_splitting)
        found.append(multiply(product_of([layer], "float16"), x))
    assert torch.equal(*found)


def test_a_family_or_an_attention_without_a_lean_step_decodes_through_its_own() -> None:
    assert has_lean_step(build("llama"))
    assert not has_lean_step(MistralForCausalLM(MistralConfig(**SHAPE)))
    window = Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=8, max_window_layers=1)
    assert not has_lean_step(Qwen2ForCausalLM(window))
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    assert not has_lean_step(LlamaForCausalLM(LlamaConfig(**SHAPE, rope_parameters=dynamic)))


@pytest.mark.skipif(not can_multiply("int8"), reason="no int8 product here")
@torch.inference_mode()
def test_a_row_in_int8_is_the_same_whoever_else_is_in_the_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(products, "_WORTH_PACKING", 0)
    product = product_of([nn.Linear(64, 96)], "int8")
    x = torch.randn(7, 64) * torch.logspace(-3, 3, 7)[:, None]
    together = multiply(product, x)
    for row, wanted in zip(x, together, strict=True):
        alone = multiply(product, row[None])
        assert torch.equal(alone[0], wanted)


def add_noise(model: Any) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))


def take_a_fused_step(model: Any) -> None:
    """torch counts no change of a parameter then."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.5, fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()


@pytest.mark.skipif(not can_multiply("int8"), reason="no int8 product here")
@pytest.mark.parametrize("change", [add_noise, take_a_fused_step])
def test_int8_copies_follow_the_weights(change: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_WORTH_PACKING", 0)
    model = copy.deepcopy(make_engine().model)
    request = Request(prompt_ids=prompt_of(4), params=sampled(12, n=4))

    def sample(engine: Any) -> list[tuple[int, ...]]:
        return [c.token_ids for c in engine.generate([request])[0]]

    engine = make_engine(model, weights="int8")
    before = sample(engine)
    assert sample(engine) == before
    change(model)
    assert sample(engine) != before
    assert sample(engine) == sample(make_engine(model, weights="int8"))


@pytest.mark.skipif(not can_multiply("int8"), reason="no int8 product here")
def test_published_weights_are_packed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the engine's model is the one that learned, of which few numbers changed."""
    monkeypatch.setattr(products, "_WORTH_PACKING", 0)
    engine = make_engine(copy.deepcopy(make_engine().model), weights="int8")
    request = Request(prompt_ids=prompt_of(4), params=sampled(12, n=4))
    before = engine.generate([request])
    head = engine.model.get_output_embeddings().weight
    head.data[1::2] += 1.0  # unseen by torch
    engine.update_weights(engine.model, 1)
    after = engine.generate([request])
    fresh = make_engine(engine.model, weights="int8").generate([request])
    assert [c.token_ids for c in after[0]] == [c.token_ids for c in fresh[0]]
    assert [c.token_ids for c in after[0]] != [c.token_ids for c in before[0]]


def test_a_model_loaded_in_inference_mode_can_be_sampled_from() -> None:
    shared = make_engine().model  # of all tests, and so made outside
    with torch.inference_mode():
        model = copy.deepcopy(shared)
        assert next(model.parameters()).is_inference()
    request = Request(prompt_ids=prompt_of(4), params=sampled(5))
    [[found]] = make_engine(model).generate([request])
    [[wanted]] = make_engine().generate([request])
    assert found.token_ids == wanted.token_ids


def test_a_model_too_large_to_be_copied_is_read_where_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(products, "_WORTH_PACKING", 0)
    heads = []
    for memory in (1 << 40, 1 << 10):
        monkeypatch.setattr(
            "forethought.sampling.decoder.describe_machine",
            lambda memory=memory: SimpleNamespace(memory_bytes=memory),
        )
        decoder = Decoder(build("llama"), "float32", 1 << 30)
        decoder.open(2, 4, 4, 8)
        assert decoder._lean is not None
        heads.append(type(decoder._lean.head))
    assert heads == [Packed if can_multiply("float32") else Plain, Plain]


def test_without_numba_a_model_decodes_through_its_own_forward_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    request = Request(prompt_ids=prompt_of(4), params=sampled(12, n=3))
    wanted = make_engine().generate([request])
    monkeypatch.setattr("forethought.sampling.decoder.find_spec", lambda name: None)
    engine = make_engine()
    found = engine.generate([request])
    assert engine._decoder._lean is None
    assert [c.token_ids for c in found[0]] == [c.token_ids for c in wanted[0]]
