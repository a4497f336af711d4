"""Linear layers by AMX: what they make of numbers in bfloat16, and the gradients they hand back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from forethought.sampling.lanes import may_use_amx
from forethought.training.lean_head import LeanHead
from forethought.training.lean_products import Products, project

needs_amx = pytest.mark.skipif(not may_use_amx(), reason="the processor has no AMX")
WORDS = st.integers(1, 5).map(lambda count: 32 * count)
_OFF = 0.004  # of what is found: half of the last of bfloat16's 8 bits


def off(found: Tensor | None, wanted: Tensor | None) -> float:
    assert found is not None and wanted is not None and found.shape == wanted.shape
    return float((found.float() - wanted).norm() / wanted.norm())


def drawn(count: int, width: int, outputs: list[int]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Inputs, weights and gradients of what they give; all are numbers of bfloat16."""
    torch.manual_seed(count + width)
    weights = [torch.randn(n, width).bfloat16().float().requires_grad_() for n in outputs]
    given_back = [torch.randn(count, n).bfloat16() for n in outputs]
    return torch.randn(count, width).bfloat16().requires_grad_(), weights, given_back


@needs_amx
@given(
    count=st.integers(1, 150),
    width=WORDS,
    outputs=st.lists(WORDS, min_size=1, max_size=3),
    is_wide=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_they_are_products_and_add_up_their_gradients(
    count: int, width: int, outputs: list[int], is_wide: bool
) -> None:
    x, weights, given_back = drawn(count, width, outputs)
    exact = x.detach().float().requires_grad_()
    copies = [weight.detach().clone().requires_grad_() for weight in weights]
    for passes in (1, 2):
        found = Products.apply(x, is_wide, *weights)  # type: ignore[no-untyped-call]
        wanted = [exact @ weight.T for weight in copies]
        torch.autograd.backward(found, [g.to(found[0].dtype) for g in given_back])
        torch.autograd.backward(wanted, [g.float() for g in given_back])
        for mine, theirs in zip(found, wanted, strict=True):
            assert mine.dtype == (torch.float32 if is_wide else torch.bfloat16)
            assert off(mine.detach(), theirs.detach()) < (1e-5 if is_wide else _OFF)
        for weight, copy in zip(weights, copies, strict=True):
            assert off(weight.grad, copy.grad) < 1e-5
        assert off(x.grad, exact.grad) < passes * _OFF


@needs_amx
def test_long_sums_and_many_rows_are_right_too() -> None:
    x, [weight], given_back = drawn(1700, 1632, [640])
    found = Products.apply(x, True, weight)  # type: ignore[no-untyped-call]
    torch.autograd.backward(found, [given_back[0].float()])
    exact = x.detach().float()
    assert off(found[0].detach(), exact @ weight.detach().T) < 1e-5
    assert off(weight.grad, given_back[0].float().T @ exact) < 1e-5
    assert off(x.grad, given_back[0].float() @ weight.detach()) < _OFF


@needs_amx
def test_a_weight_that_does_not_learn_gets_no_gradient() -> None:
    x, weights, given_back = drawn(40, 64, [32, 64])
    weights[0].requires_grad_(False)
    torch.autograd.backward(Products.apply(x, False, *weights), given_back)  # type: ignore[no-untyped-call]
    assert weights[0].grad is None and weights[1].grad is not None and x.grad is not None


@needs_amx
def test_threads_change_no_bit() -> None:
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            x, weights, given_back = drawn(700, 96, [64, 1600])
            for _ in range(2):
                outs = Products.apply(x, False, *weights)  # type: ignore[no-untyped-call]
                torch.autograd.backward(outs, given_back)
            kept = [*outs, x.grad, *(weight.grad for weight in weights)]
            found.append([t.detach().float().numpy() for t in kept if t is not None])
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(found[0], others, strict=True))


CHANGES = ["hook", "weight's hook", "forward", "kind", "odd", "format", "empty"]


@pytest.mark.parametrize("change", CHANGES)
def test_whoever_is_not_a_plain_layer_is_asked_itself(
    change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_here(*_: Any) -> None:
        raise AssertionError("not a product of words")

    monkeypatch.setattr(Products, "apply", not_here)
    layer: Any = type("Other", (nn.Linear,), {})(64, 64) if change == "kind" else nn.Linear(64, 64)
    x = torch.randn(3, 64).bfloat16()
    asked: list[int] = []
    if change == "hook":
        layer.register_forward_hook(lambda *_: asked.append(1))
    elif change == "weight's hook":
        layer.weight.register_hook(lambda gradient: None)
    elif change == "empty":
        x = x[:0]
    elif change == "forward":
        layer.forward = layer.forward  # someone's own
    elif change == "odd":
        layer, x = nn.Linear(24, 64), x[:, :24]
    elif change == "format":
        x = x.float()
    with torch.autocast("cpu", torch.bfloat16):
        [found] = project([layer], x)
        assert torch.equal(found, layer(x))
    assert len(asked) == 2 * (change == "hook")


def test_a_bias_is_added() -> None:
    layer, x = nn.Linear(64, 96), torch.randn(5, 64).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        for is_wide in (False, True):
            [found] = project([layer], x, is_wide=is_wide)
            assert torch.allclose(found.float(), layer(x).float(), atol=0.03)
    found.float().sum().backward()
    assert layer.bias.grad is not None and torch.allclose(layer.bias.grad, torch.full((96,), 5.0))


@needs_amx
@given(count=st.integers(1, 4), vocabulary=WORDS, width=WORDS)
@settings(max_examples=20, deadline=None)
def test_a_head_adds_up_its_gradient_too(count: int, vocabulary: int, width: int) -> None:
    torch.manual_seed(vocabulary)
    weight = torch.randn(vocabulary, width).bfloat16().float().requires_grad_()
    hidden = (torch.randn(32 * count, width) / 8).bfloat16().float().requires_grad_()
    targets, upstream = torch.arange(32 * count) % vocabulary, torch.rand(32 * count)
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):
            LeanHead.apply(hidden, weight, targets, 0.7).backward(upstream)  # type: ignore[no-untyped-call]
    mine = [hidden.grad, weight.grad]
    hidden.grad = weight.grad = None
    for _ in range(2):
        logprobs = torch.log_softmax(hidden @ weight.T / 0.7, dim=-1)
        logprobs.gather(1, targets[:, None])[:, 0].backward(upstream)
    for found, wanted in zip(mine, (hidden.grad, weight.grad), strict=True):
        assert off(found, wanted) < 0.03
