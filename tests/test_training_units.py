"""The parts of a training step against formulas written out naively, and their invariants."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from forethought.errors import TrainingStopped
from forethought.models.heads import token_logprobs
from forethought.run import Run
from forethought.sampling.local import LocalEngine
from forethought.schema import PretrainRecipe, RlRecipe
from forethought.schema_tables import Optimizer
from forethought.tasks.base import load_task
from forethought.tasks.traces import Document
from forethought.training import checkpoint
from forethought.training.algorithms import ALGORITHMS
from forethought.training.backward import backward
from forethought.training.batch import Batch, pack_batches
from forethought.training.filters import filter_rollouts, has_signal
from forethought.training.learner import Learner
from forethought.training.loop import Metrics, run_steps
from forethought.training.muon import Muon, orthogonalise
from forethought.training.rollouts import assign_advantages, sample_rollouts
from forethought.training.strips import Row
from forethought.training.supervised import encode_documents, supervised_step
from forethought.training.text import shuffled_index
from forethought.training.update import apply_update, build_optimizers, schedule_at
from forethought.types import Example, FinishReason, Rollout, RolloutGroup
from tiny_runs import pretrain_tables, rl_tables, tiny_policy, tiny_tokenizer

PAD = 0
CRITIC_FREE = [name for name, algorithm in ALGORITHMS.items() if not algorithm.needs_critic]
TOKENIZER = tiny_tokenizer()


pytestmark = pytest.mark.usefixtures("one_thread")


def close(a: Any, b: Any, tolerance: float = 1e-6) -> bool:
    return bool(torch.allclose(torch.as_tensor(a), torch.as_tensor(b), rtol=0, atol=tolerance))


# --- batches ---


def test_a_batch_pads_on_the_right_and_shifts_by_one() -> None:
    rows = [
        Row(token_ids=[5, 6], weights=[9.0, 0.5], advantage=2.0, sampler_logprobs=[0.0, -1.0]),
        Row(token_ids=[1, 2, 3, 4], weights=[0.0, 0.0, 0.25, 1.0], advantage=-1.0),
    ]
    [batch] = pack_batches(rows, max_batch_tokens=100, pad_id=PAD)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4], [5, 6, PAD, PAD]]  # the widest row first
    # token 3 is predicted at position 1, token 4 at 2; token 6 at position 0 of the second row
    assert batch.positions.tolist() == [1, 2, 4]
    assert batch.targets.tolist() == [3, 4, 6]
    assert batch.weights.tolist() == [0.25, 1.0, 0.5]  # the weight of a first token is never used
    assert batch.advantages.tolist() == [-1.0, -1.0, 2.0]
    assert batch.sampler_logprobs.tolist() == [0.0, 0.0, -1.0]
    assert batch.num_tokens == 6


def test_no_rows_make_no_batch() -> None:
    assert list(pack_batches([], max_batch_tokens=10, pad_id=PAD)) == []


ROWS = st.lists(
    st.integers(2, 40).flatmap(
        lambda length: st.builds(
            Row,
            token_ids=st.lists(st.integers(1, 99), min_size=length, max_size=length),
            weights=st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=length, max_size=length),
            advantage=st.floats(-2, 2),
        )
    ),
    min_size=1,
    max_size=12,
)


@given(rows=ROWS, max_batch_tokens=st.integers(1, 2000))
def test_packing_loses_and_repeats_nothing(rows: list[Row], max_batch_tokens: int) -> None:
    batches = list(pack_batches(rows, max_batch_tokens=max_batch_tokens, pad_id=PAD))
    assert sum(b.num_tokens for b in batches) == sum(len(r.token_ids) for r in rows)
    assert sum(len(b.input_ids) for b in batches) == len(rows)
    learned = [triple for b in batches for triple in learned_tokens(b)]
    expected = [
        (target, weight, pytest.approx(row.advantage))
        for row in rows
        for target, weight in zip(row.token_ids[1:], row.weights[1:], strict=True)
        if weight
    ]
    assert sorted(t[:2] for t in learned) == sorted(t[:2] for t in expected)
    assert sum(w * a for _, w, a in learned) == pytest.approx(
        sum(w * r.advantage for r in rows for w in r.weights[1:]), abs=1e-4
    )
    for batch in batches:
        assert batch.input_ids.numel() <= max_batch_tokens or len(batch.input_ids) == 1
    widths = [b.input_ids.shape[1] for b in batches]
    assert widths == sorted(widths, reverse=True)


def learned_tokens(batch: Batch) -> list[tuple[int, float, float]]:
    flat = batch.input_ids.flatten()
    assert torch.equal(flat[batch.positions + 1], batch.targets)  # each position predicts the next
    columns = (batch.targets.tolist(), batch.weights.tolist(), batch.advantages.tolist())
    return list(zip(*columns, strict=True))


def test_short_rows_leave_a_large_batch_but_not_a_small_one() -> None:
    def rows(*lengths: int) -> list[Row]:
        return [Row(token_ids=[1] * n, weights=[1.0] * n) for n in lengths]

    def shapes(lengths: Sequence[int]) -> list[tuple[int, ...]]:
        batches = pack_batches(rows(*lengths), max_batch_tokens=10**6, pad_id=PAD)
        return [tuple(b.input_ids.shape) for b in batches]

    assert shapes([10, 10, 2, 2]) == [(4, 10)]  # few cells: padding is cheaper than a batch
    assert shapes([900, 500]) == [(1, 900), (1, 500)]  # few cells, but 400 of padding
    assert shapes([100] * 20 + [70] * 20) == [(20, 100), (20, 70)]  # 70 < 0.8 * 100
    assert shapes([100] * 20 + [90] * 20) == [(40, 100)]


# --- filters ---


def rollout(
    tokens: Sequence[int] = (1, 2, 3),
    *,
    num_prompt: int = 1,
    reward: float | None = None,
    advantage: float | None = None,
    finish_reason: FinishReason = FinishReason.EOS,
) -> Rollout:
    count = len(tokens)
    return Rollout(
        example_id="e",
        token_ids=tuple(tokens),
        sampled_mask=tuple(i >= num_prompt for i in range(count)),
        logprobs=(0.0,) * count,
        text="",
        finish_reason=finish_reason,
        reward=reward,
        advantage=advantage,
    )


EXAMPLE = Example(id="e", messages=({"role": "user", "content": "?"},), answer="1")


def test_what_carries_no_signal_leaves() -> None:
    rollouts = [
        rollout(advantage=0.0),
        rollout(advantage=0.5),
        rollout(advantage=-0.5),
        rollout(advantage=1e-7),
        rollout(advantage=None),
        rollout(advantage=2.0, finish_reason=FinishReason.LENGTH),
        rollout(advantage=2.0, finish_reason=FinishReason.LOOP),
        rollout(advantage=2.0, finish_reason=FinishReason.BOXED),
    ]
    assert filter_rollouts(rollouts, min_advantage=1e-6, mask_truncated=False) == [1, 2, 5, 6, 7]
    assert filter_rollouts(rollouts, min_advantage=1e-6, mask_truncated=True) == [1, 2, 7]
    assert filter_rollouts(rollouts, min_advantage=0.6, mask_truncated=True) == [7]
    assert filter_rollouts(rollouts, min_advantage=0, mask_truncated=True) == [0, 1, 2, 3, 7]


def test_a_group_teaches_when_two_graded_siblings_differ() -> None:
    def group(*rewards: float | None) -> RolloutGroup:
        return RolloutGroup(example=EXAMPLE, rollouts=tuple(rollout(reward=r) for r in rewards))

    assert has_signal(group(0.0, 1.0))
    assert not has_signal(group(1.0, 1.0))
    assert not has_signal(group(None, 1.0, None))
    assert not has_signal(group(None, None))


# --- losses ---


def naive_logprob(model: Any, ids: Sequence[int], t: int, temperature: float) -> Tensor:
    """log pi(ids[t]) by a forward pass over nothing but what stands before it."""
    logits = model(input_ids=torch.tensor([ids[:t]])).logits[0, -1] / temperature
    logprob: Tensor = F.log_softmax(logits, dim=-1)[ids[t]]
    return logprob


def naive_loss(
    model: Any, rollouts: Sequence[Rollout], estimator: str, max_tokens: int, temperature: float
) -> Tensor:
    """The losses of fresh rollouts as in their papers: a loop over rollouts and tokens."""
    aggregation = ALGORITHMS[estimator].aggregation
    sampled = [[t for t, m in enumerate(r.sampled_mask) if m] for r in rollouts]
    total = torch.zeros(())
    for r, steps in zip(rollouts, sampled, strict=True):
        assert r.advantage is not None
        terms = [r.advantage * naive_logprob(model, r.token_ids, t, temperature) for t in steps]
        summed = torch.stack(terms).sum()
        if aggregation == "sequence_mean":  # over tokens, then over rollouts
            total = total - summed / len(steps) / len(rollouts)
        elif aggregation == "constant":
            total = total - summed / max_tokens / len(rollouts)
        else:  # every token of the step alike
            total = total - summed / sum(map(len, sampled))
    return total


def learner_for(recipe: RlRecipe, policy: Any, reference: Any = None) -> Learner:
    task = load_task(recipe.task, split="train", size=20)
    return Learner(
        recipe=recipe,
        task=task,
        eval_task=None,
        parts=(),
        policy=policy,
        reference=reference,
        tokenizer=TOKENIZER,
        engine=LocalEngine(tiny_policy(TOKENIZER), TOKENIZER, max_rows=8),
        optimizers=build_optimizers(policy, recipe.optimizer),
        dtype=torch.float32,
    )


def rl_recipe(**changes: Any) -> RlRecipe:
    return RlRecipe.model_validate(rl_tables(Path("m"), Path("r"), **changes))


def some_rollouts() -> list[Rollout]:
    """Three groups of four with rewards that differ, one of them dead, of uneven lengths."""
    generator = torch.Generator().manual_seed(0)
    groups = []
    for rewards in ([1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.1, 0.0, 1.1]):
        siblings = []
        for reward in rewards:
            length = int(torch.randint(4, 9, (), generator=generator))
            tokens = torch.randint(3, 299, (length,), generator=generator).tolist()
            siblings.append(rollout(tokens, num_prompt=3, reward=reward))
        groups.append(RolloutGroup(example=EXAMPLE, rollouts=tuple(siblings)))
    assigned = assign_advantages(groups, "rloo")
    return [r for g in assigned for r in g.rollouts]


def gradient(model: Any) -> Tensor:
    parts = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    found: Tensor = torch.cat(parts)
    model.zero_grad(set_to_none=True)
    return found


def backward_gradient(rollouts: Sequence[Rollout], kept: Sequence[int], **changes: Any) -> Tensor:
    policy = tiny_policy(TOKENIZER)
    backward(learner_for(rl_recipe(**changes), policy), rollouts, kept)
    return gradient(policy)


@pytest.mark.parametrize("estimator", CRITIC_FREE)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_loss_and_gradient_equal_the_formula(estimator: str, temperature: float) -> None:
    rollouts = some_rollouts()
    recipe = rl_recipe(estimator=estimator, temperature=temperature, max_tokens=8)
    policy = tiny_policy(TOKENIZER)
    metrics = backward(learner_for(recipe, policy), rollouts, range(len(rollouts)))
    found = gradient(policy)
    loss = naive_loss(policy, rollouts, estimator, 8, temperature)
    loss.backward()  # type: ignore[no-untyped-call]
    assert metrics["loss/policy"] == pytest.approx(float(loss.detach()), abs=1e-6)
    assert found.norm() > 1e-3
    assert close(found, gradient(policy))


@pytest.mark.parametrize("estimator", CRITIC_FREE)
def test_micro_batches_do_not_change_the_gradient(estimator: str) -> None:
    rollouts = some_rollouts()
    everyone = range(len(rollouts))
    whole = backward_gradient(rollouts, everyone, estimator=estimator)
    for max_batch_tokens in (1, 12, 30):
        found = backward_gradient(
            rollouts, everyone, estimator=estimator, max_batch_tokens=max_batch_tokens
        )
        assert close(found, whole)


@pytest.mark.parametrize("estimator", CRITIC_FREE)
def test_filtering_does_not_change_the_gradient(estimator: str) -> None:
    rollouts = some_rollouts()
    kept = filter_rollouts(rollouts, min_advantage=1e-6, mask_truncated=False)
    assert 0 < len(kept) <= len(rollouts) - 4  # the dead group left whole
    assert close(
        backward_gradient(rollouts, kept, estimator=estimator),
        backward_gradient(rollouts, range(len(rollouts)), estimator=estimator),
    )


def test_the_penalty_pulls_the_policy_back_to_the_reference() -> None:
    rollouts = some_rollouts()
    policy, reference = tiny_policy(TOKENIZER, seed=1), tiny_policy(TOKENIZER)
    everyone = range(len(rollouts))
    recipe = rl_recipe(kl_coefficient=0.5, estimator="rloo")
    metrics = backward(learner_for(recipe, policy, reference), rollouts, everyone)
    found = gradient(policy)
    # by the formula: the policy gradient's loss and the mean of k3 over the step's tokens
    sampled = [(r, t) for r in rollouts for t, m in enumerate(r.sampled_mask) if m]
    kl = torch.zeros(())
    for r, t in sampled:
        with torch.no_grad():
            theirs = naive_logprob(reference, r.token_ids, t, 1.0)
        difference = theirs - naive_logprob(policy, r.token_ids, t, 1.0)
        kl = kl + (difference.exp() - difference - 1) / len(sampled)
    loss = naive_loss(policy, rollouts, "rloo", 8, 1.0) + 0.5 * kl
    loss.backward()  # type: ignore[no-untyped-call]
    assert metrics["policy/kl"] == pytest.approx(float(kl.detach()), abs=1e-6)
    assert metrics["policy/kl"] > 0
    assert metrics["loss/policy"] == pytest.approx(float(loss.detach()), abs=1e-6)
    assert close(found, gradient(policy))


def test_a_policy_that_is_its_reference_pays_no_penalty() -> None:
    policy, reference = tiny_policy(TOKENIZER), tiny_policy(TOKENIZER)
    rollouts = some_rollouts()
    metrics = backward(
        learner_for(rl_recipe(kl_coefficient=0.5), policy, reference), rollouts, range(12)
    )
    assert metrics["policy/kl"] == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize("temperature", [1.0, 1.3])
def test_sampler_and_trainer_agree_on_what_was_sampled(temperature: float) -> None:
    policy = tiny_policy(TOKENIZER)
    recipe = rl_recipe(temperature=temperature, max_tokens=12, prompts_per_step=3)
    learner = learner_for(recipe, policy)
    learner.engine.update_weights(policy, 1)
    examples = [learner.task[i] for i in range(3)]
    rollouts = [r for g in sample_rollouts(learner.engine, examples, recipe, 1) for r in g.rollouts]
    assert all(r.policy_version == 1 for r in rollouts)
    for r in rollouts:
        for t, (sampled, logprob) in enumerate(zip(r.sampled_mask, r.logprobs, strict=True)):
            if sampled:
                with torch.no_grad():
                    naive = naive_logprob(policy, r.token_ids, t, temperature)
                assert logprob == pytest.approx(float(naive), abs=1e-4)


def test_logprobs_are_taken_where_asked_and_nowhere_else() -> None:
    model = tiny_policy(TOKENIZER)
    rows = [
        Row(token_ids=[4, 9, 30, 7], weights=[0.0, 0.0, 1.0, 1.0]),
        Row(token_ids=[8, 8, 5], weights=[0.0, 1.0, 0.0]),
    ]
    [batch] = pack_batches(rows, max_batch_tokens=99, pad_id=PAD)
    found = token_logprobs(model, batch.input_ids, batch.positions, batch.targets)
    expected = [([4, 9, 30, 7], 2), ([4, 9, 30, 7], 3), ([8, 8, 5], 1)]
    naive = torch.stack([naive_logprob(model, ids, t, 1.0) for ids, t in expected])
    assert close(found, naive, 1e-5)


# --- supervised ---


@pytest.fixture
def new_run(tmp_path: Path) -> Iterator[Run]:
    with Run.create(tmp_path / "run", stage="sft", recipe_text="", seed=0, command=["test"]) as run:
        yield run


def test_completions_end_and_prompts_weigh_what_they_should() -> None:
    [row] = encode_documents(TOKENIZER, [Document(prompt="What is 1 + 2?", completion="3")], 0.25)
    text = TOKENIZER.decode(list(row.token_ids))
    assert text == "<|user|>What is 1 + 2?<|assistant|>3<|end|>"
    assert list(row.weights[-2:]) == [1.0, 1.0]  # the answer and the end token
    assert set(row.weights[:-2]) == {0.25}


def test_the_supervised_gradient_does_not_depend_on_micro_batches(new_run: Run) -> None:
    documents = [Document(prompt=f"What is {i} + 2?", completion="x" * i) for i in range(1, 9)]
    rows = encode_documents(TOKENIZER, documents, 0.5)
    losses, weights = [], []
    for max_batch_tokens in (1, 60, 10**6):
        model = tiny_policy(TOKENIZER)
        config = Optimizer(learning_rate=1e-2)
        sgd = (torch.optim.SGD(model.parameters(), lr=1.0),)
        metrics = supervised_step(
            model,
            sgd,
            rows,
            config,
            run=new_run,
            step=1,
            num_steps=10,
            max_batch_tokens=max_batch_tokens,
            pad_id=PAD,
            dtype=torch.float32,
        )
        losses.append(metrics["loss/mean"])
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-6)
    assert close(weights[0], weights[1]) and close(weights[0], weights[2])
    assert math.log(200) < losses[0] < math.log(400)  # a model of nothing: about log(vocabulary)


@given(st.integers(1, 50), st.integers(0, 5), st.integers(0, 200))
def test_an_epoch_deals_every_item_once(size: int, seed: int, start_epoch: int) -> None:
    first = start_epoch * size
    dealt = [shuffled_index(size, seed, first + i) for i in range(size)]
    assert sorted(dealt) == list(range(size))


# --- updates ---


def optimizer(**changes: Any) -> Optimizer:
    return Optimizer.model_validate({"learning_rate": 0.1} | changes)


def test_schedules_by_hand() -> None:
    constant = optimizer(warmup_steps=4)
    assert [schedule_at(constant, s, 10) for s in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    linear = optimizer(warmup_steps=2, schedule="linear", final_fraction=0.2)
    assert [schedule_at(linear, s, 6) for s in range(6)] == pytest.approx(
        [0.5, 1.0, 1.0, 0.8, 0.6, 0.4]
    )
    cosine = optimizer(schedule="cosine", final_fraction=0.0)
    assert [schedule_at(cosine, s, 4) for s in range(4)] == pytest.approx(
        [1.0, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125)]
    )
    assert schedule_at(cosine, 4, 4) == pytest.approx(0.0)


@given(
    st.sampled_from(["constant", "linear", "cosine"]),
    st.integers(0, 20),
    st.integers(1, 100),
    st.floats(0, 1),
)
def test_schedules_rise_then_never_rise_again(
    schedule: str, warmup: int, after: int, final: float
) -> None:
    config = optimizer(schedule=schedule, warmup_steps=warmup, final_fraction=final)
    rates = [schedule_at(config, s, warmup + after) for s in range(warmup + after)]
    assert all(0 < r <= 1 or (r == 0 and final == 0) for r in rates)
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert min(rates[warmup:]) >= final - 1e-12


def one_parameter(gradient_value: float) -> nn.Module:
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, 1.0)
    module.weight.grad = torch.tensor([[gradient_value]])
    return module


def test_the_gradient_is_clipped_and_its_norm_reported_unclipped() -> None:
    module = one_parameter(40.0)
    config = optimizer(max_grad_norm=2.0)
    sgd = torch.optim.SGD(module.parameters(), lr=1.0)
    result = apply_update(module, (sgd,), config, 0, 10)
    assert result.grad_norm == pytest.approx(40.0)
    assert module.weight.item() == pytest.approx(1.0 - 0.1 * 2.0)  # the recipe's rate
    assert module.weight.grad is None and not result.skipped


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_gradient_that_is_not_finite_changes_nothing(bad: float) -> None:
    module = one_parameter(bad)
    adamw = torch.optim.AdamW(module.parameters(), lr=1.0, weight_decay=0.5)
    result = apply_update(module, (adamw,), optimizer(), 0, 10)
    assert result.skipped and module.weight.item() == 1.0
    assert module.weight.grad is None
    assert not adamw.state


def test_a_step_without_any_gradient_changes_nothing() -> None:
    module = one_parameter(0.0)
    module.weight.grad = None
    adamw = torch.optim.AdamW(module.parameters(), lr=1.0, weight_decay=0.5)
    result = apply_update(module, (adamw,), optimizer(), 0, 10)
    assert result.grad_norm == 0.0 and not result.skipped
    assert module.weight.item() == 1.0


def run_with_gradients(folder: Path, gradients: Sequence[float]) -> tuple[nn.Module, Metrics]:
    """A run whose step s has the gradient gradients[s - 1]."""
    model: Any = tiny_policy(TOKENIZER)
    config = optimizer()
    optimizers = build_optimizers(model, config)

    def step(number: int) -> Metrics:
        for p in model.parameters():
            p.grad = torch.full_like(p, gradients[number - 1])
        result = apply_update(model, optimizers, config, number - 1, len(gradients))
        return {"optim/skipped": float(result.skipped), "total/updates": 1.0 - result.skipped}

    recipe = "stage = 'rl'"
    with Run.create(folder, stage="rl", recipe_text=recipe, seed=0, command=["test"]) as run:
        totals = run_steps(
            run,
            model,
            optimizers,
            step,
            num_steps=len(gradients),
            checkpoint_every=1,
        )
    return model, totals


def test_five_skipped_updates_in_a_row_stop_the_run(tmp_path: Path) -> None:
    nan = float("nan")
    _, totals = run_with_gradients(tmp_path / "four", [nan] * 4 + [1.0] + [nan] * 4)
    assert totals == {"total/updates": 1.0}
    with pytest.raises(TrainingStopped, match=r"not finite in 5 updates .* step 6.*learning_rate"):
        run_with_gradients(tmp_path / "five", [1.0] + [nan] * 7)
    with Run.open(tmp_path / "five") as run:
        found = run.latest_checkpoint()
        assert found is not None and found[0] == 6
        assert len(run.metrics()) == 6


def test_only_matrices_decay_and_only_block_matrices_go_to_muon() -> None:
    model = tiny_policy(TOKENIZER)
    config = optimizer(muon_learning_rate=0.02, weight_decay=0.1)
    adamw, muon = build_optimizers(model, config)
    names = {id(p): name for name, p in model.named_parameters()}

    def members(group: dict[str, Any]) -> set[str]:
        return {names[id(p)] for p in group["params"]}

    [matrices] = muon.param_groups
    assert all("layers" in n and "norm" not in n for n in members(matrices))
    assert len(members(matrices)) == 2 * 7
    decayed, plain = adamw.param_groups
    assert members(decayed) == {"model.embed_tokens.weight"} and decayed["weight_decay"] == 0.1
    assert all("norm" in n for n in members(plain)) and plain["weight_decay"] == 0.0
    everything = members(matrices) | members(decayed) | members(plain)
    assert everything == set(names.values())


@pytest.mark.parametrize("shape", [(16, 16), (8, 32), (32, 8)])
def test_muon_orthogonalises(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(4, *shape, generator=generator), full_matrices=False)
    spectrum = torch.logspace(0, -1.5, min(shape))  # from 1 down to 0.03
    scales = torch.tensor([1e-3, 1.0, 50.0, 1e4])
    found = orthogonalise(u * spectrum @ v * scales.view(4, 1, 1))
    assert found.shape == (4, *shape)
    singular = torch.linalg.svdvals(found)
    assert singular.min() > 0.6 and singular.max() < 1.3
    # with the directions of the nearest orthogonal matrix
    cosine = F.cosine_similarity(found.flatten(1), (u @ v).flatten(1))
    assert cosine.min() > 0.97


def test_muon_handles_a_zero_gradient() -> None:
    parameter = nn.Parameter(torch.ones(4, 4))
    muon = Muon([parameter], lr=0.1)
    parameter.grad = torch.zeros(4, 4)
    muon.step()
    assert torch.equal(parameter.detach(), torch.ones(4, 4))


def test_muon_descends() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(8, 12, generator=generator)
    parameters = [nn.Parameter(torch.zeros(8, 12)) for _ in range(2)]
    muon = Muon(parameters, lr=0.05)
    losses = []
    for _ in range(150):
        loss = sum(((p - target) ** 2).mean() for p in parameters)
        assert isinstance(loss, Tensor)
        losses.append(loss.item())
        muon.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        muon.step()
    assert losses[-1] < 0.05 * losses[0]
    assert torch.equal(parameters[0].detach(), parameters[1].detach())


# --- what is measured once ---


def test_a_run_keeps_the_formats_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "pick_dtype", lambda name, purpose, device: "bfloat16")
    with Run.create(tmp_path / "r", stage="rl", recipe_text="", seed=0, command=[]) as run:
        first = checkpoint.settled_dtypes(run, "auto", "cpu")
    monkeypatch.setattr(checkpoint, "pick_dtype", lambda name, purpose, device: "float32")
    with Run.open(tmp_path / "r") as run:
        assert checkpoint.settled_dtypes(run, "auto", "cpu") == first
    assert first == {"sampling": torch.bfloat16, "training": torch.bfloat16}


def test_a_pretraining_recipe_is_as_tiny_as_these_tests_need() -> None:
    recipe = PretrainRecipe.model_validate(pretrain_tables(Path("r")))
    assert recipe.architecture.hidden_size == 32
