"""Our losses beside TRL's own, on the same model and rollouts: value, gradient, advantages.

    python bench/bench_parity.py        a minute; needs .bench/trl (make bench-env)

For each case some random batches of rollouts. TRL's numbers are what the code of its GRPOTrainer
and RLOOTrainer returns (bench/peers/trl_losses.py); ours are what a training step computes:
`assign_advantages`, `filter_rollouts`, `backward` over packed micro-batches whose siblings share
their prompt. Fails where they differ by more than 1e-6: absolutely for the loss and advantages,
relative to its norm for the gradient of all parameters (4e-6 with importance of whole sequences).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from forethought.config import parse_recipe
from forethought.models.load import load_model
from forethought.models.save import save_model
from forethought.models.tiny import build_model, train_tokenizer
from forethought.sampling.local import LocalEngine
from forethought.schema import RlRecipe
from forethought.tasks.base import load_task
from forethought.training.backward import backward
from forethought.training.batch import pairs_per_token
from forethought.training.filters import filter_rollouts
from forethought.training.held import Scores
from forethought.training.learner import Learner
from forethought.training.rollouts import assign_advantages
from forethought.training.scores import charge_rewards, read_rollouts, score_rollouts
from forethought.training.update import build_optimizers
from forethought.types import Example, FinishReason, Rollout, RolloutGroup
from parity_cases import Case, cases
from record import write_result

ROOT = Path(__file__).resolve().parent.parent
PEER = ROOT / ".bench" / "trl" / "bin" / "python"
GROUPS, SIBLINGS, MAX_TOKENS, BATCHES = 4, 4, 12, 6
LIMIT = 1e-6
# a product of ratios adds up the rounding of its tokens' log-probabilities
SEQUENCE_LIMIT = 4e-6


@dataclass(frozen=True)
class Prepared:
    """One batch of a case: rollouts as their sampler left them, and an older policy's log pi."""

    groups: list[RolloutGroup]
    old_logprobs: list[tuple[float, ...]]


@dataclass
class Found:
    """Differences of a case, a value a batch; `repacked` is that of our own gradient, of rows
    that stand alone in micro-batches of one: what rounding does. `bounded` is the share of our
    tokens that were clipped or whose importance was bounded. Losses of fresh rollouts are not
    compared."""

    loss: list[float] = field(default_factory=list)
    gradient: list[float] = field(default_factory=list)
    repacked: list[float] = field(default_factory=list)
    advantages: list[float] = field(default_factory=list)
    bounded: list[float] = field(default_factory=list)

    def largest(self) -> dict[str, str]:
        """As text of two digits; bounded: the mean."""
        found = {
            name: f"{max(values):.1e}"
            for name, values in (
                ("gradient", self.gradient),
                ("repacked", self.repacked),
                ("advantages", self.advantages),
            )
        }
        return found | {
            "loss": f"{max(self.loss):.1e}" if self.loss else "-",
            "bounded": f"{sum(self.bounded) / len(self.bounded):.2f}",
        }


def build_models(folder: Path) -> None:
    """Two models of random weights, far enough from 0 that distributions are not flat."""
    task = load_task("sum+story", split="train", size=40)
    tokenizer = train_tokenizer([task[i].messages[0]["content"] for i in range(40)], 300)
    for seed, name in enumerate(("policy", "reference")):
        model = build_model(
            tokenizer,
            hidden_size=32,
            num_layers=2,
            num_heads=4,
            intermediate_size=64,
            max_context=128,
            seed=0,
        )
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.08 * torch.randn(weight.shape, generator=generator))
        save_model(model, tokenizer, folder / name)


def build_learner(case: Case, folder: Path) -> Learner:
    recipe = parse_recipe(
        {
            "stage": "rl",
            "run_dir": str(folder / "run"),
            "model": str(folder / "policy"),
            "task": "sum",
            "num_steps": 1,
            "prompts_per_step": GROUPS,
            "group_size": SIBLINGS,
            "max_tokens": MAX_TOKENS,
            "max_batch_tokens": 100,
            "num_iterations": 2 if case.spread else 1,
            "dtype": "float32",
            "optimizer": {"learning_rate": 1e-3},
        }
        | case.ours
    )
    assert isinstance(recipe, RlRecipe), "the recipe above is one of RL"
    loaded = load_model(str(folder / "policy"), dtype="float32")
    reference = load_model(str(folder / "reference"), dtype="float32")
    return Learner(
        recipe=recipe,
        task=load_task("sum", size=1),
        eval_task=None,
        parts=(),
        policy=loaded.model.eval(),
        reference=reference.model.eval() if recipe.kl_coefficient else None,
        tokenizer=loaded.tokenizer,
        engine=LocalEngine(loaded.model, loaded.tokenizer),
        optimizers=build_optimizers(loaded.model, recipe.optimizer),
        dtype=torch.float32,
        pairs_per_token=pairs_per_token(loaded.model),
    )


def prepare(case: Case, learner: Learner, seed: int) -> Prepared:
    """Random prompts, completions and rewards; one rollout ungraded, one group's rewards equal."""
    generator = torch.Generator().manual_seed(seed)
    groups = []
    for g in range(GROUPS):
        prompt = random_tokens(generator, 3, 12)
        rewards = torch.rand(SIBLINGS, generator=generator).round(decimals=1).tolist()
        if g == 1:
            rewards = [0.5] * SIBLINGS
        if g == 2:
            rewards[0] = None
        siblings = [
            rollout_of(prompt, random_tokens(generator, 1, MAX_TOKENS), reward)
            for reward in rewards
        ]
        groups.append(RolloutGroup(example=EXAMPLE, rollouts=tuple(siblings)))
    everyone = [r for group in groups for r in group.rollouts]
    logprobs, _ = read_rollouts(learner, learner.policy, everyone)
    old = [away(row, r, case.spread, generator) for row, r in zip(logprobs, everyone, strict=True)]
    sampled = iter(
        replace(r, logprobs=away(row, r, case.sampler_spread, generator))
        for row, r in zip(logprobs, everyone, strict=True)
    )
    return Prepared(
        [replace(g, rollouts=tuple(next(sampled) for _ in g.rollouts)) for g in groups], old
    )


EXAMPLE = Example(id="e", messages=({"role": "user", "content": "?"},), answer="1")


def random_tokens(generator: torch.Generator, least: int, most: int) -> tuple[int, ...]:
    """Ordinary ids: TRL takes neither padding nor the end token for text."""
    count = int(torch.randint(least, most + 1, (), generator=generator))
    return tuple(torch.randint(5, 290, (count,), generator=generator).tolist())


def rollout_of(prompt: tuple[int, ...], tokens: tuple[int, ...], reward: float | None) -> Rollout:
    return Rollout(
        example_id="e",
        token_ids=prompt + tokens,
        sampled_mask=(False,) * len(prompt) + (True,) * len(tokens),
        logprobs=(0.0,) * (len(prompt) + len(tokens)),
        text="",
        finish_reason=FinishReason.EOS,
        reward=reward,
    )


def away(
    logprobs: Sequence[float], rollout: Rollout, spread: float, generator: torch.Generator
) -> tuple[float, ...]:
    noise = (spread * torch.randn(len(logprobs), generator=generator)).tolist()
    columns = zip(logprobs, noise, rollout.sampled_mask, strict=True)
    return tuple(p + n if sampled else 0.0 for p, n, sampled in columns)


def as_rows(batch: Prepared) -> list[dict[str, Any]]:
    """What the peer is told of a batch."""
    everyone = [r for group in batch.groups for r in group.rollouts]
    rows = []
    for rollout, old in zip(everyone, batch.old_logprobs, strict=True):
        start = rollout.sampled_mask.index(True)
        rows.append(
            {
                "prompt_ids": rollout.token_ids[:start],
                "completion_ids": rollout.token_ids[start:],
                "reward": rollout.reward,
                "old_logprobs": old[start:],
                "sampler_logprobs": rollout.logprobs[start:],
            }
        )
    return rows


def compute(case: Case, learner: Learner, batch: Prepared) -> tuple[dict[str, Tensor], float]:
    """Loss, gradient and advantages of one training step, and the share of clipped tokens."""
    recipe = learner.recipe
    groups = charge_rewards(learner, batch.groups)
    groups = assign_advantages(groups, recipe.estimator, recipe.scale_rewards)
    rollouts = [r for group in groups for r in group.rollouts]
    kept = filter_rollouts(rollouts, min_advantage=1e-6, mask_truncated=False)
    if case.needs_all_rollouts:
        kept = list(range(len(rollouts)))
    scores = score_rollouts(learner, rollouts, kept)
    if case.spread:
        pairs = zip(scores, batch.old_logprobs, strict=True)
        scores = [Scores(logprobs=old, advantages=s.advantages) for s, old in pairs]
    metrics = backward(learner, rollouts, kept, scores)
    caller: Any = learner.policy
    named = sorted(caller.named_parameters())
    found = {
        "loss": torch.tensor(metrics["loss/policy"]),
        "gradient": torch.cat([p.grad.flatten() for _, p in named]),
        "advantages": torch.tensor([r.advantage for r in rollouts]),
    }
    caller.zero_grad(set_to_none=True)
    if case.is_rloo:  # TRL's RLOO sums a rollout's tokens where ours is a mean over all
        found["gradient"] *= sum(r.num_sampled for r in rollouts) / len(rollouts)
    touched = [v for k, v in metrics.items() if k.endswith("_frac")]
    return found, sum(touched)


def run_peer(folder: Path, prepared: dict[str, tuple[Case, list[Prepared]]]) -> dict[str, Tensor]:
    described = [
        {
            "name": name,
            "trl": {"num_generations": SIBLINGS, "max_completion_length": MAX_TOKENS} | case.trl,
            "is_rloo": case.is_rloo,
            "is_fresh": not case.spread,
            "has_importance": bool(case.sampler_spread),
            "batches": [as_rows(batch) for batch in batches],
        }
        for name, (case, batches) in prepared.items()
    ]
    (folder / "cases.json").write_text(json.dumps(described), encoding="utf-8")
    script = ROOT / "bench" / "peers" / "trl_losses.py"
    subprocess.run([str(PEER), str(script), str(folder)], check=True, timeout=600)
    return load_file(folder / "trl.safetensors")


def compare(case: Case, learner: Learner, batches: list[Prepared], trl: dict[str, Tensor]) -> Found:
    found = Found()
    alone = learner.recipe.model_copy(update={"max_batch_tokens": 1})
    unpacked = replace(learner, recipe=alone, pairs_per_token=0.0)
    for number, batch in enumerate(batches):
        ours, touched = compute(case, learner, batch)
        theirs = {name: trl[f"{case.name}.{number}.{name}"] for name in ours}
        gaps = {name: ours[name] - theirs[name] for name in ours}
        if case.spread:
            found.loss.append(gaps["loss"].abs().item())
        size = theirs["gradient"].norm()
        found.gradient.append((gaps["gradient"].norm() / size).item())
        again, _ = compute(case, unpacked, batch)
        found.repacked.append(((ours["gradient"] - again["gradient"]).norm() / size).item())
        found.advantages.append(gaps["advantages"].abs().max().item())
        found.bounded.append(touched)
    return found


def main() -> None:
    began = time.perf_counter()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build_models(folder)
        learners = {case.name: build_learner(case, folder) for case in cases()}
        prepared = {
            case.name: (case, [prepare(case, learners[case.name], s) for s in range(BATCHES)])
            for case in cases()
        }
        trl = run_peer(folder, prepared)
        found = {
            name: compare(case, learners[name], batches, trl)
            for name, (case, batches) in prepared.items()
        }
    report(found, time.perf_counter() - began)


def report(found: dict[str, Found], seconds: float) -> None:
    """Print and store the differences; raises AssertionError for one above the limit."""
    every = [v for f in found.values() for v in (*f.loss, *f.gradient, *f.advantages)]
    largest = {name: f.largest() for name, f in found.items()}
    for name, row in largest.items():
        print(name.ljust(22), *(f"{key} {value}".ljust(20) for key, value in row.items()))
    for name, f in found.items():
        limit = SEQUENCE_LIMIT if name.startswith("sequence") else LIMIT
        assert max(*f.loss, *f.gradient, *f.advantages) < limit, f"{name}: {largest[name]}"
    write_result(
        "parity",
        command="python bench/bench_parity.py",
        seeds=list(range(BATCHES)),
        raw={name: asdict(f) for name, f in found.items()},
        summary={
            "cases": largest,
            "largest": f"{max(every):.1e}",
            "batches": BATCHES,
            "trl": "1.16.0",
            "seconds": round(seconds),
        },
    )


if __name__ == "__main__":
    sys.exit(main())
