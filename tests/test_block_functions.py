"""Layers by AMX as two operations each: they say and hand back what their parts do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from forethought.models.precision import compute_in
from forethought.sampling.lanes import may_use_amx
from forethought.training import lean_layers as lean_module
from forethought.training.batch import batch_logprobs, pack_batches
from forethought.training.block_functions import AttentionBlock, MlpBlock
from forethought.training.strips import Row

needs_amx = pytest.mark.skipif(not may_use_amx(), reason="the processor has no AMX")
SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
ROWS = st.lists(
    st.tuples(st.integers(1, 3), st.integers(1, 40)), min_size=1, max_size=6
)  # which prompt, how many own tokens


@cache
def build(name: str) -> Any:
    torch.manual_seed(0)
    biased = {"attention_bias": True, "mlp_bias": True, "head_dim": 32}
    model: Any = {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES | {"head_dim": 64})),
        "biased": lambda: LlamaForCausalLM(LlamaConfig(**SIZES | biased)),
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES | {"hidden_size": 128})),
    }[name]()
    with torch.no_grad():  # norms and biases that do nothing would hide a mistake
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def rows_of(numbers: list[tuple[int, int]]) -> list[Row]:
    return [
        Row(
            token_ids=[5, 7, 6 + prompt, *[10 + (3 * t + own) % 40 for t in range(own)]],
            weights=[0.0] * 3 + [1.0] * own,
            num_prompt=3,
        )
        for prompt, own in numbers
    ]


def read(
    model: Any, rows: list[Row], dtype: torch.dtype = torch.bfloat16
) -> dict[str, Tensor | None]:
    """Log-probabilities of the rows, and the gradients of their sum, weighed."""
    model.zero_grad(set_to_none=True)
    found = []
    for batch in pack_batches(rows, max_batch_tokens=64, pad_id=0, pairs_per_token=1e9):
        with compute_in("cpu", dtype):
            logprobs = batch_logprobs(model, batch)
        (logprobs * (batch.columns % 5 - 2.0)).sum().backward()
        found.append(logprobs.detach())
    grads = {name: p.grad for name, p in model.named_parameters()}
    return {"logprobs": torch.cat(found)} | grads


@contextmanager
def in_parts() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lean_module, "_goes_by_blocks", lambda _: False)
        yield


def off(mine: dict[str, Tensor | None], exact: dict[str, Tensor | None]) -> float:
    assert mine.keys() == exact.keys()
    total = 0.0
    for name, wanted in exact.items():
        found = mine[name]
        assert found is not None and wanted is not None, name
        total += float((found - wanted).norm() / (wanted.norm() + 1e-6))
    return total / len(exact)


@needs_amx
@pytest.mark.parametrize("name", ["llama", "biased", "qwen2"])
@given(numbers=ROWS)
@settings(max_examples=12, deadline=None)
def test_they_are_as_near_to_float32_as_their_parts(
    name: str, numbers: list[tuple[int, int]]
) -> None:
    model, rows = build(name), rows_of(numbers)
    exact = read(model, rows, torch.float32)
    with in_parts():
        parts = read(model, rows)
    mine = read(model, rows)
    assert off(mine, exact) <= 1.2 * off(parts, exact) + 0.002


@needs_amx
def test_all_layers_of_a_plain_model_go_by_them(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = count_calls(monkeypatch)
    read(build("biased"), rows_of([(1, 9)]))
    assert asked == ["AttentionBlock", "MlpBlock"] * 2
    asked.clear()
    read(build("biased"), rows_of([(1, 9)]), torch.float32)
    assert not asked


def count_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    asked: list[str] = []
    for block in (AttentionBlock, MlpBlock):

        def apply(*arguments: Any, to: Any = block.apply, name: str = block.__name__) -> Any:
            asked.append(name)
            return to(*arguments)

        monkeypatch.setattr(block, "apply", apply)
    return asked


def _on_attention(layer: Any, hear: Callable[..., None]) -> Any:
    return layer.self_attn.register_forward_hook(hear)


def _on_norm(layer: Any, hear: Callable[..., None]) -> Any:
    return layer.input_layernorm.register_forward_pre_hook(hear)


def _on_linear(layer: Any, hear: Callable[..., None]) -> Any:
    return layer.mlp.down_proj.register_full_backward_hook(hear)


@needs_amx
@pytest.mark.parametrize("listen", [_on_attention, _on_norm, _on_linear])
def test_who_listens_to_a_part_hears_it(listen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, heard, model = count_calls(monkeypatch), [], build("llama")
    handle = listen(model.base_model.layers[1], lambda *_: heard.append(1))
    try:
        read(model, rows_of([(1, 9)]))
    finally:
        handle.remove()
    assert heard and asked == ["AttentionBlock", "MlpBlock"]  # the other layer's


@needs_amx
def test_what_does_not_learn_gets_no_gradient() -> None:
    model, rows = build("biased"), rows_of([(1, 9), (2, 20)])
    full = read(model, rows)
    frozen = [
        name
        for name, _ in model.named_parameters()
        if "embed" in name or "layers.0" in name or "o_proj.weight" in name or "up_proj" in name
    ]
    try:
        for name in frozen:
            model.get_parameter(name).requires_grad_(False)
        found = read(model, rows)
    finally:
        model.requires_grad_(True)
    for name, gradient in found.items():
        if name in frozen:
            assert gradient is None, name
        else:
            wanted = full[name]
            assert gradient is not None and wanted is not None
            assert torch.equal(gradient, wanted), name


@needs_amx
def test_threads_change_no_bit() -> None:
    model, rows = build("qwen2"), rows_of([(i % 3, 30) for i in range(40)])
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append([x.numpy() for x in read(model, rows).values() if x is not None])
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(found[0], others, strict=True))
