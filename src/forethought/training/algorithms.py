"""What the names of a recipe's `estimator` stand for: advantage, objective, token weight, clipping.

Names say how advantages are made, how far an update may move a token's probability when rollouts
are used more than once, and how tokens are averaged. On fresh rollouts the ratio pi / pi_old is 1:
nothing is clipped, and the gradient of every objective is that of `policy_gradient`, so only
`advantages` and `aggregation` tell the algorithms apart. The formulas are in `losses.py` and
`advantages.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Aggregation = Literal["token_mean", "sequence_mean", "constant"]
Objective = Literal["policy_gradient", "clip", "sequence_clip", "cispo"]
Scale = Literal["group", "batch", "none"]


@dataclass(frozen=True, slots=True)
class Algorithm:
    """One named algorithm; a recipe may replace `scale` and both epsilons.

    `advantages` is a key of ESTIMATORS. `epsilon` and `epsilon_high` bound the ratio, to
    [1 - epsilon, 1 + epsilon_high] with the objectives that clip and to epsilon_high itself with
    cispo, which has no lower bound. With `needs_critic`, `gae` turns rewards into advantages.
    """

    advantages: str
    aggregation: Aggregation
    objective: Objective = "clip"
    scale: Scale = "none"
    epsilon: float = 0.2
    epsilon_high: float = 0.2
    needs_critic: bool = False


ALGORITHMS: Mapping[str, Algorithm] = {
    # Williams 1992 and Ahmadian et al. 2024 know no ratio: they take fresh rollouts, where the
    # clipped objective has their gradient. On used ones the plain policy gradient would be biased
    # and unbounded, so both clip then.
    "reinforce": Algorithm("reinforce", "token_mean"),
    "rloo": Algorithm("rloo", "token_mean"),
    # Hu et al. 2025, arXiv 2501.03262, the variant with baseline
    "reinforce_plus_plus": Algorithm("reinforce_plus_plus", "token_mean", scale="batch"),
    # Shao et al. 2024, arXiv 2402.03300
    "grpo": Algorithm("grpo", "sequence_mean", scale="group"),
    # Liu et al. 2025, arXiv 2503.20783
    "dr_grpo": Algorithm("dr_grpo", "constant"),
    # TRL's name for GRPO averaged over tokens. TRL divides by the tokens of a micro-batch; here a
    # gradient never depends on micro-batches, so it is the mean over the tokens of one update.
    # (Not the beta normalisation of arXiv 2506.02864, which has the same name.)
    "bnpo": Algorithm("grpo", "token_mean", scale="group"),
    # Yu et al. 2025, arXiv 2503.14476: bnpo with more room upwards
    "dapo": Algorithm("grpo", "token_mean", scale="group", epsilon_high=0.28),
    # Zheng et al. 2025, arXiv 2507.18071: the ratio of a whole sequence
    "gspo": Algorithm(
        "grpo", "sequence_mean", "sequence_clip", "group", epsilon=3e-4, epsilon_high=4e-4
    ),
    # MiniMax 2025, arXiv 2506.13585; the bound as in TRL and ScaleRL, arXiv 2510.13786
    "cispo": Algorithm("grpo", "token_mean", "cispo", "group", epsilon_high=5.0),
    # Schulman et al. 2017, arXiv 1707.06347
    "ppo": Algorithm("reward", "token_mean", needs_critic=True),
}
