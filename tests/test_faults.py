"""What is not finite is skipped, written down and ends a run that does not recover; never worse."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from forethought.cli.app import main
from forethought.config import parse_recipe
from forethought.errors import BrokenModel, RewardError, TrainingStopped
from forethought.evaluation.report import build_report
from forethought.run import Run
from forethought.toml import to_toml
from forethought.training import backward as backward_module
from forethought.training.batch import Batch, pack_batches
from forethought.training.faults import Fault, describe_rows, fault_of_loss, report_fault
from forethought.training.stages import run_stage, start_run
from forethought.training.strips import Row
from forethought.training.update import apply_update
from tiny_runs import EVEN_REWARD, rl_tables, sft_tables

NAN, INF = math.nan, math.inf


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def even(tmp_path: Path) -> dict[str, Any]:
    """A reward with differences between siblings."""
    (tmp_path / "even.py").write_text(EVEN_REWARD)
    return {"parts": {f"{tmp_path}/even.py:even": 1.0}}


def train(tables: dict[str, Any], on_step: Any = None) -> list[dict[str, Any]]:
    recipe = parse_recipe(tables)
    with start_run(recipe, ["test"]) as run:
        run_stage(recipe, run, on_step)
        return run.metrics()


def bad_batches(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(p.read_text()) for p in sorted((run_dir / "bad_batches").glob("*.json"))]


# --- whose fault it is --------------------------------------------------------------------------


def batch_of(count: int = 3) -> Batch:
    rows = [
        Row(token_ids=[5, 7, 6 + i], weights=[0.0, 0.5, 0.5], advantage=1.0 - i)
        for i in range(count)
    ]
    [batch] = pack_batches(rows, max_batch_tokens=99, pad_id=0)
    return batch


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_a_token_that_is_not_finite_is_traced_to_its_row(bad: float) -> None:
    batch = batch_of()
    logprobs = torch.full((6,), -1.0)
    assert fault_of_loss(logprobs.sum(), logprobs, batch, 4) is None
    logprobs[int((batch.rows == 1).nonzero()[0])] = bad
    fault = fault_of_loss(logprobs.sum(), logprobs, batch, 4)
    assert fault == Fault(cause="loss", micro_batch=4, rows=(0, 1, 2), bad_rows=(1,))


def test_so_is_an_advantage_and_a_ratio_that_overflows() -> None:
    batch, logprobs = batch_of(), torch.full((6,), -1.0)
    advantages = batch.advantages.masked_fill(batch.rows == 2, NAN)
    fault = fault_of_loss(torch.tensor(NAN), logprobs, replace(batch, advantages=advantages), 0)
    assert fault is not None and fault.bad_rows == (2,)
    old = batch.old_logprobs.masked_fill(batch.rows == 0, -100.0)
    fault = fault_of_loss(torch.tensor(INF), logprobs, replace(batch, old_logprobs=old), 0)
    assert fault is not None and fault.bad_rows == (0,)


def test_of_a_sum_that_overflows_no_row_is_blamed() -> None:
    fault = fault_of_loss(torch.tensor(INF), torch.full((6,), -1.0), batch_of(), 0)
    assert fault is not None and fault.rows == (0, 1, 2) and fault.bad_rows == ()


@pytest.mark.parametrize("bad", [NAN, INF])
def test_a_gradient_that_is_not_finite_is_traced_to_its_parameters(bad: float) -> None:
    module = nn.Linear(2, 1)
    module.weight.grad, module.bias.grad = torch.tensor([[1.0, bad]]), torch.tensor([1.0])
    recipe = parse_recipe(rl_tables(Path("m"), Path("r")))
    adamw = torch.optim.AdamW(module.parameters())
    result = apply_update(module, (adamw,), recipe.optimizer, 0, 9)  # type: ignore[union-attr]
    assert result.skipped and result.bad_parameters == ("weight",)
    assert module.bias.grad is None and not adamw.state


def test_a_gradient_of_a_bad_loss_is_thrown_away() -> None:
    module = nn.Linear(1, 1)
    module.weight.grad, before = torch.tensor([[1.0]]), module.weight.item()
    recipe = parse_recipe(rl_tables(Path("m"), Path("r")))
    adamw = torch.optim.AdamW(module.parameters())
    config = recipe.optimizer  # type: ignore[union-attr]
    result = apply_update(module, (adamw,), config, 0, 9, is_sound=False)
    assert result.skipped and math.isnan(result.grad_norm) and result.bad_parameters == ()
    assert module.weight.item() == before and module.weight.grad is None


def test_a_run_keeps_five_files_of_64_rows_with_the_bad_ones_first(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    described = describe_rows([Row(token_ids=[i], weights=[1.0]) for i in range(100)])
    fault = Fault(cause="loss", micro_batch=0, rows=tuple(range(100)), bad_rows=(99,))
    run_dir = tmp_path / "run"
    with (
        Run.create(run_dir, stage="sft", recipe_text="", seed=0, command=["test"]) as run,
        caplog.at_level(logging.WARNING, "forethought"),
    ):
        for step in [*range(1, 9), 2]:  # step 2 comes again after a resume
            report_fault(run, step, fault, described)
    found = bad_batches(run_dir)
    assert [content["step"] for content in found] == [1, 2, 3, 4, 5]
    assert found[0]["num_rows"] == 100 and len(found[0]["rows"]) == 64
    assert found[0]["rows"][0] == {"is_bad": True, "token_ids": [99]}
    assert len(caplog.records) == 6 and "step_000001.json" in caplog.records[0].getMessage()


# --- in a run -----------------------------------------------------------------------------------


class Poison:
    """Makes the log-probabilities of one row not finite, in the micro-batches of some steps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
        self.steps, self.step = steps, 1
        self.read = backward_module.read
        monkeypatch.setattr(backward_module, "read", self)

    def __call__(self, learner: Any, model: Any, batch: Batch, **options: Any) -> Any:
        reading = self.read(learner, model, batch, **options)
        if self.step not in self.steps:
            return reading
        factor = torch.ones_like(reading.logprobs).masked_fill(batch.rows == batch.rows[0], NAN)
        return reading._replace(logprobs=reading.logprobs * factor)

    def next_step(self, step: int, metrics: object) -> None:
        self.step = step + 1


def test_a_bad_loss_skips_its_update_and_leaves_the_batch_to_look_at(
    model: Path,
    tmp_path: Path,
    even: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    poison = Poison(monkeypatch, {3})
    tables = rl_tables(model, tmp_path / "run", reward=even, checkpoint_every=1, num_steps=4)
    with caplog.at_level(logging.WARNING, "forethought"):
        metrics = train(tables, poison.next_step)
    assert [row["optim/skipped"] for row in metrics] == [0, 0, 1, 0]
    assert metrics[2]["loss/policy"] is None and metrics[2]["optim/grad_norm"] is None
    assert metrics[3]["optim/grad_norm"] > 0
    [found] = bad_batches(tmp_path / "run")
    assert (found["step"], found["cause"], found["micro_batch"]) == (3, "loss", 0)
    [bad] = [row for row in found["rows"] if row["is_bad"]]
    assert bad == found["rows"][0] and found["num_rows"] == len(found["rows"]) > 1
    assert {"example_id", "reward", "advantage", "completion", "token_ids"} <= bad.keys()
    assert 0 <= bad["reward"] <= 1 and bad["advantage"] != 0
    [line] = [m for r in caplog.records if "NonFinite" in (m := r.getMessage())]
    assert line.startswith("NonFinite: the loss of step 3 is not finite in micro-batch 0 (1 of ")
    assert line.endswith("bad_batches/step_000003.json")
    page = build_report(tmp_path / "run").read_text()
    assert "NonFinite: 1 of the updates were skipped" in page


def test_bad_losses_without_end_stop_the_run(
    model: Path,
    tmp_path: Path,
    even: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    Poison(monkeypatch, {1})  # of which there is no end
    path = tmp_path / "recipe.toml"
    path.write_text(to_toml(rl_tables(model, tmp_path / "run", reward=even, num_steps=9)))
    assert main(["train", str(path)]) == 1
    error = capfd.readouterr().err
    assert "error: the loss or gradient was not finite in 5 updates in a row up to step 5" in error
    assert "Traceback" not in error and error.count("warning: NonFinite: the loss of") == 5
    assert len(bad_batches(tmp_path / "run")) == 5
    with Run.open(tmp_path / "run") as run:  # a resumed run does not begin to count anew
        recipe = parse_recipe(rl_tables(model, tmp_path / "run", reward=even, num_steps=9))
        with pytest.raises(TrainingStopped, match="in 5 updates in a row up to step 5"):
            run_stage(recipe, run)


def poison_weights(patch: pytest.MonkeyPatch, module: str, step: int) -> Any:
    """An `on_step` that breaks the model of the stage in `module` after `step`."""
    models: list[Any] = []
    load = getattr(__import__(module, fromlist=["load_model"]), "load_model")  # noqa: B009

    def load_and_keep(*arguments: Any, **options: Any) -> Any:
        loaded = load(*arguments, **options)
        models.append(loaded.model)
        return loaded

    patch.setattr(f"{module}.load_model", load_and_keep)

    def on_step(number: int, metrics: object) -> None:
        if number == step:
            with torch.no_grad():
                models[0].get_input_embeddings().weight[7] = NAN

    return on_step


@pytest.mark.parametrize("eval_problems", [0, 2])
def test_a_policy_that_broke_stops_the_run_and_the_checkpoint_is_good(
    eval_problems: int,
    model: Path,
    tmp_path: Path,
    even: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tables = rl_tables(model, tmp_path / "run", reward=even, checkpoint_every=2, num_steps=6)
    tables |= {"eval_problems": eval_problems, "eval_every": 3}
    on_step = poison_weights(monkeypatch, "forethought.training.learner", 3)
    with pytest.raises(TrainingStopped, match=r"after update 3 the policy's logits .*_rate"):
        train(tables, on_step)
    with Run.open(tmp_path / "run") as run:
        found = run.latest_checkpoint()
        assert found is not None and found[0] == 2
        run_stage(parse_recipe(tables), run)  # without the poison
        assert [row["step"] for row in run.metrics() if row["step"]] == [1, 2, 3, 4, 5, 6]


def test_a_model_that_comes_broken_is_no_fault_of_the_training(
    model: Path, tmp_path: Path, even: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = rl_tables(model, tmp_path / "run", reward=even)
    poison_weights(monkeypatch, "forethought.training.learner", 9)
    import forethought.training.learner as learner_module

    load = learner_module.load_model

    def load_broken(*arguments: Any, **options: Any) -> Any:
        loaded = load(*arguments, **options)
        with torch.no_grad():
            loaded.model.get_input_embeddings().weight[:] = NAN
        return loaded

    monkeypatch.setattr(learner_module, "load_model", load_broken)
    with pytest.raises(BrokenModel, match="its weights are broken"):
        train(tables)


def test_broken_weights_never_take_the_place_of_a_checkpoint(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = sft_tables(model, tmp_path / "run", checkpoint_every=2, num_steps=6)
    on_step = poison_weights(monkeypatch, "forethought.training.sft", 4)
    with pytest.raises(TrainingStopped, match="weights are no longer finite and were not saved"):
        train(tables, on_step)
    with Run.open(tmp_path / "run") as run:
        found = run.latest_checkpoint()
        assert found is not None and found[0] == 2
    assert not list((tmp_path / "run" / "checkpoints").glob(".tmp*"))


def test_a_bad_loss_of_supervised_text_is_written_down_too(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = sft_tables(model, tmp_path / "run", checkpoint_every=9, num_steps=9)
    on_step = poison_weights(monkeypatch, "forethought.training.sft", 1)
    with pytest.raises(TrainingStopped, match="5 updates in a row up to step 6"):
        train(tables, on_step)
    found = bad_batches(tmp_path / "run")
    assert [content["step"] for content in found] == [2, 3, 4, 5, 6]
    assert all(row["token_ids"] for content in found for row in content["rows"])


# --- rewards ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("float('nan')", "returned nan"),
        ("float('inf')", "returned inf"),
        ("1e31", "a reward of 1e+31 is too large (odd=1e+31); scale its parts down"),
        ("10**400", "returned 1000"),
    ],
)
def test_a_reward_that_is_no_finite_number_ends_the_run_in_one_sentence(
    value: str, words: str, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """In the middle of it: a run that has begun can be resumed once the function is put right."""
    (tmp_path / "odd.py").write_text(
        "calls = []\n"
        "def odd(completions, **k):\n"
        "    calls.append(1)\n"
        f"    bad = {value} if len(calls) == 4 else 1.0\n"
        "    return [0.5] * (len(completions) - 1) + [bad]\n"
    )
    reward = {"parts": {f"{tmp_path}/odd.py:odd": 1.0}}
    path = tmp_path / "recipe.toml"
    path.write_text(to_toml(rl_tables(model, tmp_path / "run", reward=reward)))
    assert main(["train", str(path)]) == 2
    error = capfd.readouterr().err
    assert words in error and error.count("error: ") == 1 and "Traceback" not in error
    assert main(["train", "--resume", str(tmp_path / "run"), "--json"]) == 0


def test_weights_that_make_a_reward_too_large_are_found_before_any_model_loads(
    tmp_path: Path,
) -> None:
    reward = {"parts": {"accuracy": 1e300, "format": 0.1}}
    with pytest.raises(RewardError, match=r"1e\+300 is too large \(accuracy=1\)"):
        train(rl_tables(tmp_path, tmp_path / "run", reward=reward))


# --- learning rates -----------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [1e6, 1e30])
@pytest.mark.parametrize("stage", ["rl", "sft"])
def test_a_learning_rate_far_too_high_ends_in_one_sentence_or_a_finite_model(
    stage: str,
    rate: float,
    model: Path,
    tmp_path: Path,
    even: dict[str, Any],
    capfd: pytest.CaptureFixture[str],
) -> None:
    changes: dict[str, Any] = {"num_steps": 12, "optimizer": {"learning_rate": rate}}
    tables = (
        rl_tables(model, tmp_path / "run", reward=even, **changes)
        if stage == "rl"
        else sft_tables(model, tmp_path / "run", **changes)
    )
    path = tmp_path / "recipe.toml"
    path.write_text(to_toml(tables))
    code = main(["train", str(path)])
    error = capfd.readouterr().err
    print(code, error)
    assert "Traceback" not in error
    assert code == 0 or (code == 1 and "lower optimizer.learning_rate" in error)
    with Run.open(tmp_path / "run") as run:
        found = run.latest_checkpoint()
    if found is not None:
        from safetensors.torch import load_file

        saved = load_file(found[1] / "weights.safetensors")
        assert all(bool(tensor.isfinite().all()) for tensor in saved.values())
