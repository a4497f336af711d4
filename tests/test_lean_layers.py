"""Compiled passes of training say and hand back what transformers' own layers do."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import rms_norm, scaled_dot_product_attention, silu

from forethought.models.precision import compute_in
from forethought.training import batch as batch_module
from forethought.training import lean_layers as lean_module
from forethought.training.batch import batch_logprobs, mask_of, pack_batches
from forethought.training.lean_functions import Attention, Gate, Norm, layout_of
from forethought.training.lean_head import LeanHead
from forethought.training.lean_layers import has_lean_attention, lean_head, lean_layers
from forethought.training.strips import Row
from test_lean import build
from test_pieces import branches_of

STRIPS = st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=4), min_size=1, max_size=3)


def rows() -> list[Row]:
    """Siblings, a row alone and one without a prompt, all of other lengths."""
    lengths = [(1, 4), (1, 21), (1, 7), (2, 12)]
    found = [
        Row(
            token_ids=[5, 7, 6 + prompt, *[10 + (3 * t) % 40 for t in range(own)]],
            weights=[0.0] * 3 + [1.0] * own,
            num_prompt=3,
        )
        for prompt, own in lengths
    ]
    return [*found, Row(token_ids=list(range(9, 30)), weights=[1.0] * 21)]


def read(model: Any, *, is_lean: bool, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Log-probabilities of the rows, and the gradients of their sum, weighed."""
    model.zero_grad(set_to_none=True)
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lean_module, "_LARGE_VOCABULARY", 0)
        if not is_lean:
            patch.setattr(batch_module, "lean_layers", lambda *_: nullcontext())
            patch.setattr(batch_module, "lean_head", lambda _: None)
        for batch in pack_batches(rows(), max_batch_tokens=64, pad_id=0, pairs_per_token=1e9):
            with compute_in("cpu", dtype):
                logprobs = batch_logprobs(model, batch)
            (logprobs * (batch.columns % 5 - 2.0)).sum().backward()
            found.append(logprobs.detach())
    return [torch.cat(found), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_a_model_learns_the_same_by_lean_layers(name: str) -> None:
    model = build(name)
    for mine, theirs in zip(read(model, is_lean=True), read(model, is_lean=False), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()))


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_in_bfloat16_they_are_as_near_to_float32_as_transformers_own(name: str) -> None:
    model = build(name)
    exact = read(model, is_lean=False)
    mine = read(model, is_lean=True, dtype=torch.bfloat16)
    theirs = read(model, is_lean=False, dtype=torch.bfloat16)

    def off(found: Sequence[Tensor]) -> float:
        return sum(float((a - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True))

    assert off(mine) <= 1.3 * off(theirs)


def test_layers_are_their_own_again_whatever_happens() -> None:
    model = build("llama")
    with pytest.raises(RuntimeError, match="stop"), lean_layers(model, [[3, 4]], [0, 7]):
        assert any("forward" in vars(module) for module in model.modules())
        raise RuntimeError("stop")
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("padding_idx", [None, 5])
def test_a_table_that_is_the_head_too_learns_as_one(padding_idx: int | None) -> None:
    model = build("qwen2")
    table = model.get_input_embeddings()
    table.padding_idx = padding_idx  # a token of all rows
    for is_tied in (True, False):
        if is_tied:
            model.get_output_embeddings().weight = table.weight
        else:
            model.get_output_embeddings().weight = torch.nn.Parameter(table.weight.detach().clone())
        mine, theirs = ([read(model, is_lean=lean), table.weight.grad] for lean in (True, False))
        assert mine[1] is not None and theirs[1] is not None and not mine[1].is_sparse
        assert torch.allclose(mine[1], theirs[1], rtol=1e-3, atol=1e-5)
        assert torch.equal(read(model, is_lean=True)[1], mine[0][1])


def test_a_model_that_reads_another_way_keeps_its_layers() -> None:
    model = build("llama")
    assert has_lean_attention(model)
    assert not has_lean_attention(build("qwen3"))  # norms queries and keys
    with torch.autocast("cpu", torch.float16):
        assert not has_lean_attention(model)
    for change in ("gradient_checkpointing", "bfloat16", "forward"):
        other = build("llama")
        if change == "gradient_checkpointing":
            other.base_model.layers[0].gradient_checkpointing = True
        elif change == "bfloat16":
            other.bfloat16()
        else:
            attention = other.base_model.layers[0].self_attn
            attention.forward = attention.forward  # someone's hook
        assert not has_lean_attention(other), change


def test_a_large_vocabulary_has_a_lean_head() -> None:
    model = build("llama")
    assert lean_head(model) is None
    model.config.vocab_size = 32_000
    assert lean_head(model) is LeanHead
    assert lean_head(model.bfloat16()) is None


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    low, high = x.chunk(2, dim=-1)
    return x * cos[:, None] + torch.cat([-high, low], dim=-1) * sin[:, None]


@given(
    pieces=STRIPS,
    padding=st.integers(0, 3),
    kv_heads=st.integers(1, 3),
    repeats=st.integers(1, 5),
    head_dim=st.sampled_from([4, 10, 16, 32, 64, 80]),
)
@settings(max_examples=60, deadline=None)
def test_attention_is_that_of_the_mask_and_has_its_gradient(
    pieces: list[list[int]], padding: int, kv_heads: int, repeats: int, head_dim: int
) -> None:
    width = max(map(sum, pieces)) + padding
    strips, cells = len(pieces), len(pieces) * width
    starts = list(range(0, cells + 1, width))
    torch.manual_seed(cells)
    counts = (kv_heads * repeats, kv_heads, kv_heads)
    heads = [torch.randn(cells, count, head_dim, requires_grad=True) for count in counts]
    angles = torch.randn(cells, head_dim // 2).repeat(1, 2)
    cos, sin = angles.cos(), angles.sin()
    branches = branches_of(pieces, width)
    is_cell = (branches >= 0).view(cells, 1, 1)
    weights = torch.randn(cells, counts[0], head_dim) * is_cell
    queries, keys = (turned(x, cos, sin) for x in heads[:2])
    wanted = scaled_dot_product_attention(
        *(x.view(strips, width, -1, head_dim).transpose(1, 2) for x in (queries, keys, heads[2])),
        attn_mask=mask_of(branches),
        enable_gqa=True,
        scale=0.3,
    )
    wanted = wanted.transpose(1, 2).reshape(cells, -1, head_dim) * is_cell
    found = Attention.apply(*heads, cos, sin, layout_of(pieces, starts), 0.3)  # type: ignore[no-untyped-call]
    assert torch.allclose(found, wanted, atol=1e-4)
    pairs = zip(
        *(torch.autograd.grad((out * weights).sum(), heads) for out in (found, wanted)),
        strict=True,
    )
    for mine, theirs in pairs:
        assert torch.allclose(mine, theirs, atol=1e-3)


@given(count=st.integers(1, 130), width=st.integers(1, 70))
@settings(max_examples=40, deadline=None)
def test_norm_and_gate_are_torchs_and_have_their_gradients(count: int, width: int) -> None:
    torch.manual_seed(count * 100 + width)
    x, y, slopes = (torch.randn(count, width, requires_grad=True) for _ in range(3))
    weight = torch.randn(width, requires_grad=True)
    both = [
        (Norm.apply(x, weight, 1e-5, torch.float32), rms_norm(x, (width,), weight, 1e-5), weight),  # type: ignore[no-untyped-call]
        (Gate.apply(x * 3, y), silu(x * 3) * y, y),  # type: ignore[no-untyped-call]
    ]
    for mine, theirs, other in both:
        assert torch.allclose(mine, theirs, atol=1e-5)
        gradients = [
            torch.autograd.grad((out * slopes.detach()).sum(), [x, other]) for out in (mine, theirs)
        ]
        for a, b in zip(*gradients, strict=True):
            assert torch.allclose(a, b, atol=1e-3)


def test_threads_change_no_bit() -> None:
    model, before, found = build("qwen2"), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            torch.manual_seed(0)
            heads = [torch.randn(300, n, 16, requires_grad=True) for n in (4, 2, 2)]
            table = torch.randn(300, 16)
            layout = layout_of([[20, 60, 50, 20], [150]], [0, 150, 300])
            out = Attention.apply(*heads, table, table, layout, 0.25)  # type: ignore[no-untyped-call]
            x, weight = (
                torch.randn(900, 64, requires_grad=True),
                torch.randn(64, requires_grad=True),
            )
            normed = Norm.apply(x, weight, 1e-6, torch.float32)  # type: ignore[no-untyped-call]
            tokens = torch.arange(900) % 200
            logprobs = LeanHead.apply(x, torch.randn(200, 64), tokens, 0.7)  # type: ignore[no-untyped-call]
            loss = (out**2).sum() + (normed**3).sum() + (logprobs**2).sum()
            kept = [x, *heads]
            gradients = torch.autograd.grad(loss, kept)
            found.append([g.numpy() for g in (out.detach(), logprobs.detach(), *gradients)])
    finally:
        torch.set_num_threads(before)
    assert all(
        np.array_equal(a, b) for others in found[1:] for a, b in zip(found[0], others, strict=True)
    )
    assert has_lean_attention(model)


BITS = """
import hashlib, torch
from forethought.training.lean_functions import Attention, Gate, Norm, layout_of
from forethought.training.lean_head import LeanHead
torch.manual_seed(0)
heads = [torch.randn(300, n, 16, requires_grad=True) for n in (4, 2, 2)]
table, layout = torch.randn(300, 16), layout_of([[20, 60, 50, 20], [150]], [0, 150, 300])
x, y, weight = (torch.randn(300, 64, requires_grad=True) for _ in range(3))
found = [
    Attention.apply(*heads, table, table, layout, 0.25),
    Norm.apply(x, weight[0], 1e-6, torch.float32),
    Gate.apply(x, y),
    LeanHead.apply(x, y, torch.arange(300) % 300, 0.7),
]
sum((f**3).sum() for f in found).backward()
numbers = [*found, *(t.grad for t in (*heads, x, y, weight))]
print(hashlib.sha256(b"".join(t.detach().numpy().tobytes() for t in numbers)).hexdigest())
"""


def test_compiled_now_or_kept_on_disk_they_give_the_same_bits(tmp_path: Path) -> None:
    """Or a run would not end in the bits of one that was resumed when kernels were there."""
    found = [
        subprocess.run(
            [sys.executable, "-c", BITS],
            env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for _ in range(2)
    ]
    assert any(tmp_path.rglob("*.nbc"))
    assert found[0] == found[1]
