"""A critic: the reward that is still to come, seen from each token the policy is about to draw.

V is one linear layer on the policy's own last hidden state, brought to unit mean square first so
that a learning rate means the same in every family. It costs no second model and no second pass.
The layer learns from the whole gradient of its loss; of that gradient the share `coefficient`
reaches the weights that it has in common with the policy. At 0 it reads and never pulls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from statistics import pvariance

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from forethought import schema_tables as tables
from forethought.training.advantages import gae, whiten
from forethought.training.batch import Batch
from forethought.training.checkpoint import save_objects
from forethought.training.held import Scores
from forethought.training.losses import value_loss
from forethought.types import Rollout

_WEIGHTS, _OPTIMIZER = "critic.safetensors", "critic_optimizer.pt"
_EPSILON = 1e-8


class ValueHead(nn.Module):
    """V of hidden states (N, D), as (N,) float32. It starts at 0."""

    def __init__(self, width: int, coefficient: float) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.coefficient = coefficient

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden.float()
        fixed = hidden.detach()
        scale = fixed.square().mean(dim=-1, keepdim=True).add(_EPSILON).rsqrt()
        if self.coefficient:
            fixed = fixed + self.coefficient * (hidden - fixed)  # as many, with less gradient
        values: Tensor = self.linear(fixed * scale)[:, 0]
        return values


@dataclass(frozen=True, slots=True)
class Critic:
    """The head, and an optimizer of its own."""

    head: ValueHead
    optimizer: torch.optim.Optimizer
    config: tables.Critic


def build_critic(config: tables.Critic, width: int, device: str) -> Critic:
    """A critic for hidden states of that width."""
    head = ValueHead(width, config.coefficient).to(device)
    return Critic(head, torch.optim.AdamW(head.parameters(), lr=config.learning_rate), config)


Rows = Sequence[Sequence[float]]  # of each rollout a value a token, 0 where none was sampled


def advantages_and_returns(
    rollouts: Sequence[Rollout], rewards: Rows, values: Rows, config: tables.Critic
) -> tuple[list[tuple[float, ...]], list[tuple[float, ...]]]:
    """Advantages, whitened over the sampled tokens of all rollouts, and the critic's targets.

    values[i][t] is V before token t was drawn, rewards[i][t] what came with it.
    """
    found = _estimates(rollouts, rewards, values, config.gamma, config.lam)
    advantages = whiten([advantages for advantages, _ in found])
    returns = [returns for _, returns in found]
    return (
        [_spread_out(*pair) for pair in zip(rollouts, advantages, strict=True)],
        [_spread_out(*pair) for pair in zip(rollouts, returns, strict=True)],
    )


def _estimates(
    rollouts: Sequence[Rollout], rewards: Rows, values: Rows, gamma: float, lam: float
) -> list[tuple[list[float], list[float]]]:
    """Advantages and returns of the sampled tokens of each rollout."""
    return [
        gae(_sampled(rollout, reward), _sampled(rollout, value), gamma, lam)
        for rollout, reward, value in zip(rollouts, rewards, values, strict=True)
    ]


def _sampled(rollout: Rollout, row: Sequence[float]) -> list[float]:
    return list(compress(row, rollout.sampled_mask))


def _spread_out(rollout: Rollout, sampled: Sequence[float]) -> tuple[float, ...]:
    """A value for every token: those of the sampled ones, 0 elsewhere."""
    rest = iter(sampled)
    return tuple(next(rest) if is_sampled else 0.0 for is_sampled in rollout.sampled_mask)


def explained_variance(
    rollouts: Sequence[Rollout], rewards: Rows, values: Rows, gamma: float
) -> float:
    """1 - Var(G - V) / Var(G) over all sampled tokens, G the (discounted) reward still to come.

    1: the critic knows the outcome beforehand. 0: it is worth a constant. Not a number where all G
    are alike. G is what came, not the critic's target, of which V is a part.
    """
    outcomes, misses = [], []
    for advantages, returns in _estimates(rollouts, rewards, values, gamma, 1.0):
        outcomes += returns
        misses += advantages  # with lam = 1 these are G and G - V
    variance = pvariance(outcomes) if outcomes else 0.0
    return 1 - pvariance(misses) / variance if variance else float("nan")


def critic_loss(critic: Critic, hidden: Tensor, batch: Batch, scores: Sequence[Scores]) -> Tensor:
    """The clipped value loss of a micro-batch; `scores` are of the rows that it was made of."""
    places = list(zip(batch.rows.tolist(), batch.columns.tolist(), strict=True))

    def looked_up(name: str) -> Tensor:
        found = [getattr(scores[row], name)[column] for row, column in places]
        return torch.tensor(found, dtype=torch.float32, device=batch.weights.device)

    return value_loss(
        critic.head(hidden),
        looked_up("values"),
        looked_up("returns"),
        batch.weights,
        critic.config.clip,
    )


def update_critic(critic: Critic, *, skips: bool) -> None:
    """Step on the gradient that was added up, and forget it; leave the weights alone if `skips`."""
    if not skips:
        critic.optimizer.step()
    critic.optimizer.zero_grad(set_to_none=True)


def save_critic(folder: Path, critic: Critic) -> None:
    """Write the head and its optimizer's state into a checkpoint's folder."""
    save_file(critic.head.state_dict(), folder / _WEIGHTS)
    save_objects(critic.optimizer.state_dict(), folder / _OPTIMIZER)


def load_critic(folder: Path, critic: Critic) -> None:
    """Restore what `save_critic` wrote, in place."""
    device = str(critic.head.linear.weight.device)
    critic.head.load_state_dict(load_file(folder / _WEIGHTS, device=device))
    # its step count stays on the CPU, wherever the head is; the moments are moved to the head
    state = torch.load(folder / _OPTIMIZER, weights_only=True, map_location="cpu")
    critic.optimizer.load_state_dict(state)
