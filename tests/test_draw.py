"""From logits to tokens: every draw is the one that its distribution and its uniform ask for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from forethought.sampling import draw as draw_module
from forethought.sampling.draw import Drawn, Kinds, draw_tokens, row_uniforms, stable_seed
from forethought.types import SamplingParams

LOGITS = st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=40)
UNIFORM = st.floats(0, 1, exclude_max=True, width=32)
TEMPERATURE = st.floats(0, 4, width=32)
TOP_P = st.floats(0, 1, exclude_min=True, width=32)


@pytest.fixture(params=["compiled", "torch"], autouse=True, scope="module")
def way(request: pytest.FixtureRequest) -> Iterator[None]:
    """Both ways of drawing: in one compiled pass, and by torch's operations."""
    if request.param == "compiled" and draw_module._kernel() is None:
        pytest.skip("numba is an extra")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "torch":
            patch.setattr(draw_module, "_kernel", lambda: None)
        yield


def draw(rows: list[list[float]], temperature: float, top_p: float, uniforms: list[float]) -> Drawn:
    number = len(uniforms)
    return draw_tokens(
        torch.tensor(rows).expand(number, -1),
        torch.full((number,), temperature),
        torch.full((number,), top_p),
        torch.tensor(uniforms),
        kinds=kinds_of([temperature], [top_p]),
    )


def kinds_of(temperatures: list[float], top_ps: list[float]) -> Kinds:
    pairs = zip(temperatures, top_ps, strict=True)
    return Kinds.of([SamplingParams(temperature=t, top_p=p) for t, p in pairs])


def stratified(number: int) -> list[float]:
    """Uniforms as even as can be: a sample of them follows its distribution without luck."""
    return [(i + 0.5) / number for i in range(number)]


def shares(token_ids: Tensor, num_tokens: int) -> Tensor:
    return torch.bincount(token_ids, minlength=num_tokens) / len(token_ids)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax(temperature: float) -> None:
    logits = torch.randn(12, generator=torch.Generator().manual_seed(1)) * 2
    drawn = draw([logits.tolist()], temperature, 1.0, stratified(4096))
    distance = (shares(drawn.token_ids, 12) - (logits / temperature).softmax(-1)).abs().sum() / 2
    assert distance < 12 / 4096


def test_top_p_draws_follow_the_softmax_of_the_nucleus() -> None:
    probabilities = torch.tensor([0.05, 0.4, 0.1, 0.3, 0.15])
    drawn = draw([probabilities.log().tolist()], 1.0, 0.75, stratified(4096))
    kept = torch.tensor([0.0, 0.4, 0.0, 0.3, 0.15])  # 0.4 + 0.3 fall short of 0.75
    distance = (shares(drawn.token_ids, 5) - kept / kept.sum()).abs().sum() / 2
    assert distance < 5 / 4096
    chosen = probabilities[drawn.token_ids]
    assert torch.allclose(drawn.logprobs, chosen.log(), atol=1e-5)  # before the cut


def test_random_uniforms_give_the_softmax_too() -> None:
    logits = torch.tensor([0.0, 1.0, -1.0, 0.5])
    uniforms = [float(row_uniforms(7, sibling, 1)[0]) for sibling in range(2000)]
    drawn = draw([logits.tolist()], 1.0, 1.0, uniforms)
    expected = logits.softmax(-1) * 2000
    chi_square = ((torch.bincount(drawn.token_ids, minlength=4) - expected) ** 2 / expected).sum()
    assert chi_square < 16.3  # one in a thousand at 3 degrees of freedom; the seeds are fixed


@given(LOGITS, TEMPERATURE, TOP_P, UNIFORM)
def test_a_draw_is_a_likely_token_with_its_logprob(
    logits: list[float], temperature: float, top_p: float, uniform: float
) -> None:
    drawn = draw([logits], temperature, top_p, [uniform])
    token = int(drawn.token_ids[0])
    divisor = max(temperature, 1e-6) if temperature else 1.0
    probabilities = (torch.tensor(logits, dtype=torch.float64) / divisor).softmax(-1)
    assert 0 <= token < len(logits)
    assert float(drawn.logprobs[0]) == pytest.approx(
        float(probabilities[token].log()), abs=1e-3, rel=1e-4
    )
    if temperature == 0:
        assert logits[token] == max(logits)
    else:
        more_likely = probabilities[probabilities > probabilities[token] * (1 + 1e-5)].sum()
        assert more_likely < top_p + 1e-5


@given(LOGITS, st.lists(UNIFORM, min_size=2, max_size=8))
def test_a_larger_uniform_never_draws_an_earlier_token(
    logits: list[float], uniforms: list[float]
) -> None:
    token_ids = draw([logits], 1.0, 1.0, sorted(uniforms)).token_ids.tolist()
    assert token_ids == sorted(token_ids)


@given(
    st.integers(1, 20).flatmap(
        lambda n: st.lists(
            st.tuples(
                st.lists(st.floats(-9, 9, width=32), min_size=n, max_size=n),
                st.sampled_from([0.0, 0.5, 1.0]),
                st.sampled_from([0.3, 0.9, 1.0]),
                UNIFORM,
            ),
            min_size=2,
            max_size=5,
        )
    )
)
def test_a_row_does_not_see_its_neighbours(
    rows: list[tuple[list[float], float, float, float]],
) -> None:
    logits, temperatures, top_ps, uniforms = (
        torch.tensor(column) for column in zip(*rows, strict=True)
    )
    kinds = kinds_of(temperatures.tolist(), top_ps.tolist())
    together = draw_tokens(logits, temperatures, top_ps, uniforms, kinds=kinds)
    for i, (row, temperature, top_p, uniform) in enumerate(rows):
        alone = draw([row], temperature, top_p, [uniform])
        assert together.token_ids[i] == alone.token_ids[0]
        assert together.logprobs[i] == pytest.approx(float(alone.logprobs[0]), abs=1e-6)


@pytest.mark.parametrize("temperature", [1e-45, 1e-30, 1e-6])
@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-24])
def test_temperatures_near_zero_are_greedy_and_finite(temperature: float, uniform: float) -> None:
    drawn = draw([[400.0, -400.0, 401.0, 0.0]], temperature, 1.0, [uniform])
    assert drawn.token_ids.tolist() == [2]
    assert drawn.logprobs.isfinite().all()


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
@pytest.mark.parametrize("top_p", [0.5, 1.0])
def test_a_token_without_probability_is_never_drawn(uniform: float, top_p: float) -> None:
    never = -float("inf")
    drawn = draw([[never, never, 0.0, 1.0, never, never]], 1.0, top_p, [uniform])
    assert int(drawn.token_ids[0]) in (2, 3)


def test_the_uniforms_of_a_row_are_its_own() -> None:
    rows = {tuple(row_uniforms(seed, sibling, 8).tolist()) for seed in (0, 1) for sibling in (0, 1)}
    assert len(rows) == 4
    assert torch.equal(row_uniforms(3, 1, 8), row_uniforms(3, 1, 8))


@given(st.integers(0, 2**40), st.integers(0, 99), st.integers(1, 50), st.integers(0, 50))
def test_more_uniforms_leave_the_first_ones_as_they_are(
    seed: int, sibling: int, number: int, more: int
) -> None:
    few = row_uniforms(seed, sibling, number)
    assert torch.equal(row_uniforms(seed, sibling, number + more)[:number], few)
    assert bool(((few >= 0) & (few < 1)).all())


def test_seeds_are_the_same_on_every_machine() -> None:
    assert stable_seed("row", 0, 1) == 450456236702902165
    assert stable_seed("a", 1) != stable_seed("a", 2)


def test_logits_that_are_no_numbers_have_no_logprob() -> None:
    for broken in (float("nan"), -float("nan")):
        assert draw([[0.0, broken, 1.0]], 1.0, 1.0, [0.9]).logprobs.isnan().all()


def test_a_row_that_cuts_its_distribution_leaves_the_others_as_they_were() -> None:
    logits = torch.randn(64, 700, generator=torch.Generator().manual_seed(3))
    uniforms, ones = torch.rand(64, generator=torch.Generator().manual_seed(4)), torch.ones(64)
    top_p, num_top = torch.where(torch.arange(64) % 3 == 0, 0.8, 1.0), [0, 0, 5, 0] * 16
    alone = draw_tokens(logits, ones, ones, uniforms, kinds=kinds_of([1.0], [1.0]))
    mixed = draw_tokens(logits, ones, top_p, uniforms, num_top, kinds=kinds_of([1.0], [0.8]))
    same = [i for i in range(64) if i % 3 and not num_top[i]]
    assert torch.equal(mixed.token_ids[same], alone.token_ids[same])
    assert torch.equal(mixed.logprobs[same], alone.logprobs[same])
    assert len(mixed.confidences) == 64 and all(mixed.confidences[i] > 0 for i in range(2, 64, 4))
