"""The head's own gradient is that of cross-entropy, and it is used only where it is right."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from forethought.models import heads
from forethought.models.kept import give_back, keeping, take_table
from forethought.models.precision import compute_in, keep_casts
from forethought.models.recurring import largest_step, recurring
from forethought.training.lean_head import LeanHead
from test_lean import build

FUNCTIONS: list[Any] = [heads._HeadLogprobs, LeanHead]
each_function = pytest.mark.parametrize("function", FUNCTIONS)


@each_function
@given(
    seed=st.integers(0, 1000),
    scale=st.sampled_from([0.01, 1.0, 30.0]),
    temperature=st.sampled_from([0.5, 1.0, 1.7]),
    rows=st.sampled_from([0, 1, 5, 70]),
    vocabulary=st.sampled_from([13, 200]),  # a part of one chunk, and several
)
def test_values_and_gradients_are_those_of_cross_entropy(
    function: Any, seed: int, scale: float, temperature: float, rows: int, vocabulary: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden = (torch.randn(rows, 8, generator=generator) * scale).requires_grad_()
    weight = torch.randn(vocabulary, 8, generator=generator).requires_grad_()
    targets = torch.randint(0, vocabulary, (rows,), generator=generator)
    upstream = torch.randn(rows, generator=generator)
    plain = -F.cross_entropy(hidden @ weight.T / temperature, targets, reduction="none")
    wanted = torch.autograd.grad(plain, (hidden, weight), upstream)
    own = function.apply(hidden, weight, targets, temperature)
    found = torch.autograd.grad(own, (hidden, weight), upstream)
    assert torch.allclose(own, plain, rtol=1e-4, atol=1e-4)
    for mine, theirs in zip(found, wanted, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-3, atol=1e-4)


@given(
    seed=st.integers(0, 1000),
    scale=st.sampled_from([0.01, 1.0, 30.0]),
    temperature=st.sampled_from([0.5, 1.0, 1.7]),
    rows=st.sampled_from([0, 1, 5, 150]),  # more than one block
)
def test_entropies_and_their_gradient_are_those_of_the_softmax(
    seed: int, scale: float, temperature: float, rows: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden = (torch.randn(rows, 8, generator=generator) * scale).requires_grad_()
    weight = torch.randn(13, 8, generator=generator).requires_grad_()
    targets = torch.randint(0, 13, (rows,), generator=generator)
    upstream = torch.randn(2, rows, generator=generator).unbind()
    table = F.log_softmax(hidden @ weight.T / temperature, dim=-1)
    plain = (table.gather(1, targets[:, None])[:, 0], -(table.exp() * table).sum(-1))
    wanted = torch.autograd.grad(plain, (hidden, weight), upstream)
    own: Any = heads._HeadEntropies.apply(hidden, weight, targets, temperature)
    found = torch.autograd.grad(own, (hidden, weight), upstream)
    for mine, theirs in zip((*own, *found), (*plain, *wanted), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-3, atol=2e-3 if scale > 1 else 1e-4)


@each_function
def test_a_target_of_no_probability_has_a_finite_logarithm(function: Any) -> None:
    weight = torch.tensor([[200.0], [-200.0]])
    found = function.apply(torch.ones(1, 1), weight, torch.tensor([1]), 1.0)
    assert found.item() == -400.0


@each_function
def test_where_one_logit_is_no_number_no_log_probability_is(function: Any) -> None:
    weight = torch.zeros(100, 1)
    weight[50] = torch.nan
    assert function.apply(torch.ones(1, 1), weight, torch.tensor([3]), 1.0).isnan().all()


@each_function
def test_walking_back_twice_is_an_error(function: Any) -> None:
    hidden = torch.randn(2, 4, requires_grad=True)
    found = function.apply(hidden, torch.randn(3, 4), torch.tensor([0, 1]), 1.0)
    found.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="only once"):
        found.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_several_batches_use_again_changes_no_bit(dtype: torch.dtype) -> None:
    weight = torch.randn(200, 8, requires_grad=True)
    batches = [torch.randn(rows, 8, requires_grad=True) for rows in (30, 50, 20)]
    targets = torch.arange(50)

    def passes() -> list[Any]:
        found: list[Any] = []
        for hidden in batches:
            with compute_in("cpu", dtype):
                own: Any = LeanHead.apply(hidden, weight, targets[: len(hidden)], 0.7)  # type: ignore[no-untyped-call]
            found += [own, *torch.autograd.grad(own.sum(), (hidden, weight))]
        return found

    wanted = passes()
    with keep_casts("cpu", dtype):
        assert all(map(torch.equal, passes(), wanted))


def test_a_table_that_was_given_back_is_taken_again_where_it_is_large_enough() -> None:
    places = []
    with keeping():
        for rows in (30, 20, 31):
            table = take_table(rows, 7, torch.float32)
            assert table.shape == (rows, 7)
            places.append(table.untyped_storage().data_ptr())
            before = table  # so that no other can come to lie there
            give_back(table)
        assert places[0] == places[1] != places[2]
        give_back(before)
    alone = take_table(3, 7, torch.float32)
    give_back(alone)  # to nobody
    assert take_table(3, 7, torch.float32).data_ptr() != alone.data_ptr()


def test_a_head_that_does_more_is_left_to_its_family() -> None:
    model = build("qwen2")
    assert heads._plain_head(model) is model.lm_head.weight
    assert heads._plain_head(copy.deepcopy(model).bfloat16()) is None
    model.config.final_logit_softcapping = 30.0
    assert heads._plain_head(model) is None


@pytest.mark.parametrize(
    ("wants_entropy", "function"), [(True, None), *((False, function) for function in FUNCTIONS)]
)
def test_under_autocast_it_is_the_linear_layers_own_arithmetic(
    wants_entropy: bool, function: Any
) -> None:
    model = build("qwen2")
    ids, positions = torch.randint(300, (3, 9)), torch.tensor([0, 3, 7, 20, 20])
    targets = torch.tensor([5, 6, 7, 8, 9])
    found = []
    for is_plain in (True, False):
        with pytest.MonkeyPatch.context() as patch, torch.autocast("cpu", torch.bfloat16):
            if not is_plain:
                patch.setattr(heads, "_plain_head", lambda model: None)
            reading = heads.read_tokens(
                model,
                ids,
                positions,
                targets,
                0.7,
                wants_entropy=wants_entropy,
                head_function=function,
            )
        total = reading.logprobs.sum()
        if reading.entropies is not None:
            total = total + reading.entropies.sum()
        model.zero_grad()
        total.backward()
        found.append([reading.logprobs, *[p.grad.clone() for p in model.parameters()]])
        assert reading.logprobs.dtype == torch.float32
    for mine, theirs in zip(*found, strict=True):
        assert (mine - theirs).norm() <= 0.02 * theirs.norm() + 1e-6


@given(count=st.integers(0, 10**6), step=st.integers(1, 3000))
def test_recurring_numbers_are_few_and_near(count: int, step: int) -> None:
    found = recurring(count, step)
    assert count <= found <= min(count * 17 / 16, count + step - 1)
    assert recurring(found, step) == found


def test_a_small_model_has_sixteen_between_two_powers_of_two_and_a_large_one_all() -> None:
    for num_weights, numbers in ((10**6, 16), (10**10, 512)):
        step = largest_step(num_weights, 9)
        assert len({recurring(count, step) for count in range(513, 1025)}) == numbers


def test_in_bfloat16_a_head_of_recurring_size_says_the_same() -> None:
    model = build("llama")
    ids = torch.arange(3, 60)[None]
    positions, targets = torch.arange(39), torch.arange(5, 44)
    assert recurring(len(positions), 64) > len(positions)
    exact = heads.read_tokens(model, ids, positions, targets, wants_entropy=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = heads.read_tokens(model, ids, positions, targets, wants_entropy=True)
    for mine, theirs in zip(found, exact, strict=True):
        assert mine is not None and theirs is not None
        assert mine.shape == theirs.shape
        assert torch.allclose(mine.float(), theirs, atol=0.1)
