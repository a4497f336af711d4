"""The fused decoding step computes what transformers' own forward pass computes.

Without a GPU its kernels are those of `torch_kernels`; where Triton is installed, its own are held
to these, on a CPU with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import copy
import os
import sys
from contextlib import nullcontext
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torch_kernels
from forethought.models.load import load_model
from forethought.models.save import save_model
from forethought.sampling import decoder, fused
from forethought.sampling.cache import SlotCache, prefill
from forethought.sampling.decoder import Decoder
from forethought.sampling.fused import FusedModel
from forethought.sampling.stretch import TOKENS
from forethought.training.checkpoint import load_state, save_state
from forethought.types import Request, SamplingParams
from test_lean import MODELS, build
from test_sampling import make_engine, prompt_of
from test_stretch import assert_same, one_by_one

INTERPRETS = os.environ.get("TRITON_INTERPRET") == "1"
HAS_TRITON = find_spec("triton") is not None and (torch.cuda.is_available() or INTERPRETS)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@torch.inference_mode()
def walk(model: Any, step: FusedModel, steps: int = 6) -> float:
    """The largest difference from full forward passes while rows of three prompts decode and one
    leaves."""
    prompts = [(5, 7, 9), tuple(range(70, 140)), (21,)]
    rows = [list(prompts[p]) for p in (1, 0, 0, 2, 1, 0)]
    cache = SlotCache(model, len(rows), 70 + steps)
    ready = dict(zip(prompts, prefill(model, prompts), strict=True))
    for r, row in enumerate(rows):
        cache.join(r, tuple(row), ready[tuple(row)])
    worst = 0.0
    for number in range(steps):
        for r, row in enumerate(rows):
            row.append((13 * number + 17 * r + 1) % 300)
        last = torch.tensor([row[-1] for row in rows], device=model.device)
        positions = torch.tensor([len(row) - 1 for row in rows], device=model.device)
        logits = step.decode(cache, last, positions)
        for found, row in zip(logits, rows, strict=True):
            wanted = model(torch.tensor([row], device=model.device)).logits[0, -1]
            worst = max(worst, float((found - wanted).abs().max()))
        if number == steps // 2:
            cache.leave(1, len(rows[-1]))
            rows[1] = rows.pop()
    return worst


@pytest.mark.parametrize("name", MODELS)
def test_the_step_is_the_models_own(name: str) -> None:
    model = build(name)
    assert walk(model, FusedModel(model, torch_kernels)) < 1e-4


@pytest.mark.skipif(not HAS_TRITON, reason="needs Triton, and a GPU or TRITON_INTERPRET=1")
@pytest.mark.parametrize("name", MODELS)
def test_so_it_is_with_tritons_kernels(name: str) -> None:
    from forethought.sampling import triton_kernels

    model = build(name).to(DEVICE)
    assert walk(model, FusedModel(model, triton_kernels)) < 1e-3


@pytest.mark.skipif(not HAS_TRITON, reason="needs Triton, and a GPU or TRITON_INTERPRET=1")
@pytest.mark.parametrize("size", [16, 24])
@pytest.mark.parametrize("has_norms", [False, True])
def test_tritons_attention_is_attention(size: int, has_norms: bool) -> None:
    from forethought.sampling import triton_kernels

    torch.manual_seed(0)
    heads, keys, values = torch.randn(3, 10, size), *torch.randn(2, 4, 2, 80, size)
    angles = torch.randn(80, size // 2).repeat(1, 2)
    rest = (
        torch.tensor([0, 5, 70]),
        (angles.cos(), angles.sin()),
        (torch.rand(size), torch.rand(size)) if has_norms else None,
    )
    results = []
    for kernels in (triton_kernels, torch_kernels):
        moved: Any = [*map(_moved, (heads, keys, values)), *map(_moved, rest)]
        attended = kernels.attend(*moved, 1e-6, 0.3)
        results.append([attended, moved[1], moved[2]])
    for found, wanted in zip(*results, strict=True):
        assert (found - wanted).abs().max() < 1e-5


@pytest.mark.skipif(find_spec("triton") is None or INTERPRETS, reason="needs Triton's compiler")
@pytest.mark.parametrize("generation", [80, 90])  # A100, H100
@pytest.mark.parametrize("numbers", ["bf16", "fp32"])
def test_tritons_kernels_compile_for_a_gpu_that_is_not_here(
    generation: int, numbers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")  # Triton 3.9 warns where it is not set
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from forethought.sampling import triton_kernels as kernels

    pointer, wide = f"*{numbers}", "*fp32"
    norm = {"hidden": wide, "delta": pointer, "weight": pointer, "out": pointer, "epsilon": "fp32"}
    heads = dict.fromkeys(("heads", "keys", "values", "query_norm", "key_norm", "out"), pointer)
    heads |= {"cos": wide, "sin": wide, "lengths": "*i64", "epsilon": "fp32", "scale": "fp32"}
    shape = {"NUM_HEADS": 14, "KV_HEADS": 2, "SIZE": 64, "PADDED": 64, "GROUP": 7, "TILE": 16}
    for kernel, types, constants in (
        (kernels._add_norm, norm, {"HAS_DELTA": True, "BLOCK": 1024}),
        (kernels._silu_gate, {"gate_up": pointer, "out": pointer}, {"BLOCK": 1024}),
        (kernels._attend, heads, shape | {"HAS_NORMS": True, "BLOCK": 16}),
    ):
        names: list[str] = kernel.arg_names
        signature = {n: "constexpr" if n in constants else types.get(n, "i32") for n in names}
        places = {(names.index(name),): value for name, value in constants.items()}
        source = ASTSource(fn=kernel, signature=signature, constexprs=places)
        assert triton.compile(source, target=GPUTarget("cuda", generation, 32)).asm["cubin"]


def _moved(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_moved, value))
    return None if value is None else value.clone().to(DEVICE)


@pytest.fixture
def is_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model that the fused step knows takes it, in stretches, as on CUDA."""

    def kernels(model: Any) -> Any:
        return torch_kernels if decoder._is_known(model) else None

    monkeypatch.setattr("forethought.sampling.decoder.find_spec", lambda name: None)
    monkeypatch.setattr("forethought.sampling.decoder.fused_kernels", kernels)
    monkeypatch.setattr(Decoder, "_is_ahead", True)


REQUESTS = [
    Request(prompt_ids=prompt_of(3 + i), params=SamplingParams(max_tokens=3 * TOKENS + i, n=3))
    for i in range(2)
]


def plain(model: Any = None) -> Any:
    """What is sampled without the fused step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("forethought.sampling.decoder.fused_kernels", lambda model: None)
        return one_by_one(REQUESTS, model)


@pytest.mark.parametrize("extra", [{}, {"max_seconds": 60.0}])
def test_what_is_sampled_stays_the_same(is_fused: None, extra: dict[str, Any]) -> None:
    model = copy.deepcopy(make_engine().model)
    engine = make_engine(model)
    requests = [replace(r, params=replace(r.params, **extra)) for r in REQUESTS]
    assert_same(engine.generate(requests), plain())
    assert engine._decoder._fused is not None


def test_weights_that_change_are_sampled_from(is_fused: None) -> None:
    model = copy.deepcopy(make_engine().model)
    engine = make_engine(model)
    engine.generate(REQUESTS)
    stretches = engine._decoder._stretches
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9)
    assert_same(engine.generate(REQUESTS), plain(copy.deepcopy(model)))
    assert engine._decoder._stretches is stretches  # a captured step goes on


def test_weights_that_moved_are_found_again(is_fused: None) -> None:
    model = copy.deepcopy(make_engine().model)
    engine = make_engine(model)
    engine.generate(REQUESTS)
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.data = layer.weight.data * 0.9
    assert_same(engine.generate(REQUESTS), plain(copy.deepcopy(model)))


def test_a_model_that_was_sampled_from_trains_and_is_saved_as_before(
    is_fused: None, tmp_path: Path
) -> None:
    engine = make_engine(copy.deepcopy(make_engine().model))
    model = engine.model
    parameters = dict(model.named_parameters())
    before = {name: p.detach().clone() for name, p in parameters.items()}
    engine.generate(REQUESTS)
    assert all(p is parameters[name] for name, p in model.named_parameters())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model(torch.tensor([[5, 7, 9]], device=model.device)).logits.sum().backward()
    optimizer.step()
    assert all(p.grad is not None for p in model.parameters())
    assert not any(torch.equal(p, before[name]) for name, p in model.named_parameters())
    save_state(tmp_path, model, (optimizer,), {"step": 1.0})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert load_state(tmp_path, model, (optimizer,)) == {"step": 1.0}
    assert not any(torch.equal(p, before[name]) for name, p in model.named_parameters())
    save_model(model, engine.tokenizer, tmp_path / "model")
    loaded = load_model(str(tmp_path / "model")).model
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter.cpu(), parameters[name].cpu())


def test_a_gpu_with_room_keeps_what_was_captured(
    is_fused: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(copy.deepcopy(make_engine().model))
    monkeypatch.setattr(decoder, "_has_room", lambda device: True)

    def release_and_look() -> tuple[Any, Any]:
        engine.generate(REQUESTS)
        before = engine._decoder._stretches
        engine.release()
        return before, engine._decoder._stretches

    assert release_and_look()[1] is None  # nobody knows yet what an update takes
    engine.update_weights(engine.model, 1)
    before, after = release_and_look()
    assert before is not None and after is before
    monkeypatch.setattr(decoder, "_has_room", lambda device: False)
    assert release_and_look()[1] is None


def test_a_second_engine_leaves_the_first_ones_weights_where_they_are(is_fused: None) -> None:
    model = copy.deepcopy(make_engine().model)
    first, second = make_engine(model), make_engine(model)
    first.generate(REQUESTS)
    mine = first._decoder._fused
    second.generate(REQUESTS)
    first.generate(REQUESTS)
    assert mine is not None and first._decoder._fused is mine


def test_a_call_within_a_call_has_a_cache_of_its_own(is_fused: None) -> None:
    engine = make_engine(copy.deepcopy(make_engine().model))
    long = Request(prompt_ids=prompt_of(9) * 4, params=SamplingParams(max_tokens=90, n=7))
    found = engine.generate(REQUESTS, on_finish=lambda *_: engine.generate([long]) and None)
    assert_same(found, plain())


def is_fusable(model: Any) -> bool:
    return decoder._is_known(model) and fused.can_fuse(model)


def test_only_plain_layers_are_fused() -> None:
    assert is_fusable(build("llama"))
    for spoil in (adapt_one, quantize_one, drop_a_bias, widen):
        model = build("llama")
        spoil(model)
        assert not is_fusable(model), spoil


def adapt_one(model: Any) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    inject_adapter_in_model(LoraConfig(target_modules=["up_proj"]), model)


def quantize_one(model: Any) -> None:
    class Quantized(nn.Module):
        weight = None

    model.base_model.layers[1].self_attn.k_proj = Quantized()


def drop_a_bias(model: Any) -> None:
    model.base_model.layers[2].self_attn.q_proj.bias = None


def widen(model: Any) -> None:
    model.double()


def test_a_triton_that_does_not_work_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise FileNotFoundError("no C compiler")

    monkeypatch.setattr(decoder, "try_kernels", fail)
    monkeypatch.setitem(sys.modules, "forethought.sampling.triton_kernels", torch_kernels)
    # where it was imported before, the package has it already
    monkeypatch.setattr("forethought.sampling.triton_kernels", torch_kernels, raising=False)
    monkeypatch.setattr("torch.cuda.device", lambda device: nullcontext())
    working = decoder._working_kernels.__wrapped__
    assert working(torch.device("cpu"), torch.float32) is None
    assert "decoding without Triton" in caplog.text
    monkeypatch.setattr(decoder, "try_kernels", fused.try_kernels)
    assert working(torch.device("cpu"), torch.float32) is not None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_it_is_captured_and_samples_the_same() -> None:
    engine = make_engine(copy.deepcopy(make_engine().model).to("cuda"))
    found = engine.generate(REQUESTS)
    assert engine._decoder._fused is not None
    assert engine._decoder._stretches is not None and engine._decoder._stretches._graphs
    assert_same(found, plain(engine.model))
