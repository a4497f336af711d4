"""The estimate of an update's memory, against what autograd keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from forethought.machine import describe_machine, free_memory_bytes
from forethought.models.trained_layers import train_last
from forethought.schema import Optimizer
from forethought.training.batch import batch_logprobs, pack_batches
from forethought.training.footprint import Footprint, footprint
from forethought.training.pieces import is_cheaper
from forethought.training.strips import Row
from forethought.training.update import build_optimizers

PROMPT, LENGTH = 20, 100
FAMILIES = {"llama": (LlamaForCausalLM, LlamaConfig), "qwen2": (Qwen2ForCausalLM, Qwen2Config)}


def model_of(family: str, **shape: int) -> Any:
    model_class, config_class = FAMILIES[family]
    config = config_class(max_position_embeddings=8192, tie_word_embeddings=True, **shape)
    return model_class(config).eval()


def kept_bytes(model: Any, batch: Any) -> int:
    """Of what the forward pass keeps, but for the weights: tensors, and the head's own table."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}  # holding them, so that no address is used twice

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        batch_logprobs(model, batch)
    tensors = sum(t.untyped_storage().nbytes() for place, t in kept.items() if place not in weights)
    return tensors + 4 * len(batch.targets) * model.config.vocab_size


SHAPES: list[dict[str, int]] = [
    {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    | {"num_key_value_heads": 4, "intermediate_size": 128, "vocab_size": 300},
    {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
    | {"num_key_value_heads": 4, "intermediate_size": 384, "vocab_size": 512},
    {"hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 8}
    | {"num_key_value_heads": 2, "intermediate_size": 700, "vocab_size": 9000},
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s['hidden_size']}x{s['vocab_size']}")
@pytest.mark.parametrize("siblings", [1, 8, 30])
@pytest.mark.parametrize("trained_layers", [None, 1])
def test_activations_are_what_autograd_keeps(
    trained_layers: int | None, siblings: int, shape: dict[str, int], family: str
) -> None:
    model = model_of(family, **shape)
    train_last(model, trained_layers)
    rows = [
        Row(
            token_ids=[3 + (7 * i * (j >= PROMPT) + j) % 200 for j in range(LENGTH)],
            weights=[0.0] * PROMPT + [1.0] * (LENGTH - PROMPT),
            num_prompt=PROMPT,
        )
        for i in range(siblings)
    ]
    [batch] = pack_batches(
        rows, max_batch_tokens=10**6, pad_id=0, pairs_per_token=1e9 if siblings > 1 else 0.0
    )
    cells = batch.input_ids.numel()
    adamw = build_optimizers(model, Optimizer(learning_rate=1e-3))
    in_pieces = siblings > 1 and is_cheaper(batch.pieces, cells, shape["hidden_size"])
    seen = siblings * LENGTH / cells if in_pieces else 0.0
    strip = cells if siblings > 1 and not in_pieces else 0
    found = footprint(model, adamw, torch.float32, num_cells=cells, strip=strip, seen=seen)
    assert kept_bytes(model, batch) == pytest.approx(found.activation_bytes, rel=0.2)


def test_parameters_cost_a_gradient_and_two_moments_or_one_of_muon() -> None:
    model = model_of("llama", **SHAPES[0])
    trained = sum(p.numel() for p in model.parameters())
    adamw = build_optimizers(model, Optimizer(learning_rate=1e-3))
    found = footprint(model, adamw, torch.float32, num_cells=1)
    assert (found.gradient_bytes, found.optimizer_bytes) == (4 * trained, 8 * trained)
    with_muon = build_optimizers(model, Optimizer(learning_rate=1e-3, muon_learning_rate=1e-2))
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    for optimizer in with_muon:
        optimizer.step()
    held = sum(
        value.numel() * value.element_size()
        for optimizer in with_muon
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor) and value.ndim  # not the count of steps
    )
    assert footprint(model, with_muon, torch.float32, num_cells=1).optimizer_bytes == held


def test_frozen_parameters_cost_nothing() -> None:
    model = model_of("llama", **SHAPES[0])
    adamw = build_optimizers(model, Optimizer(learning_rate=1e-3))
    for p in model.parameters():
        p.requires_grad_(False)
    found = footprint(model, adamw, torch.float32, num_cells=1)
    assert found.gradient_bytes == found.optimizer_bytes == 0


def test_a_head_in_bfloat16_keeps_half_a_table_more() -> None:
    model = model_of("llama", **SHAPES[0])
    adamw = build_optimizers(model, Optimizer(learning_rate=1e-3))
    one, more = (
        footprint(model, adamw, dtype, num_cells=10).activation_bytes
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert more - one == 300 * 10 * 4 // 2


@pytest.mark.parametrize(("free", "fits"), [(29, False), (30, True), (None, True)])
def test_what_is_unknown_is_taken_to_fit(free: int | None, fits: bool) -> None:
    found = Footprint(gradient_bytes=5, optimizer_bytes=10, activation_bytes=15, free_bytes=free)
    assert found.update_bytes == 30 and found.fits is fits


def test_free_memory_is_part_of_the_machines() -> None:
    free, whole = free_memory_bytes(), describe_machine().memory_bytes
    assert free is None or whole is None or 0 < free <= whole
