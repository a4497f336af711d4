"""What bench_parity.py compares: keys of a recipe here, the same of a TRL configuration there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

from forethought.training.losses import ImportanceMode


@dataclass(frozen=True, kw_only=True)
class Case:
    """Recipe keys here, the same in GRPOConfig (or RLOOConfig) there.

    `spread` is how far the older policy, that sampled, is off ours, in nats a token; 0 for fresh
    rollouts. There the value of the loss is not compared: ours is -w A log pi, TRL's -w A ratio.
    """

    name: str
    ours: dict[str, Any]
    trl: dict[str, Any]
    spread: float = 0.3
    sampler_spread: float = 0.0
    is_rloo: bool = False

    @property
    def needs_all_rollouts(self) -> bool:
        """Where a rollout with advantage 0 has a share in the loss."""
        keys = ("kl_coefficient", "entropy_coefficient", "top_entropy_quantile")
        return bool(self.ours.keys() & set(keys))


_GRPO, _DAPO = {"loss_type": "grpo"}, {"loss_type": "dapo"}
_KL = {"kl_coefficient": 0.5}


def cases() -> list[Case]:
    return [*used_rollouts(), *fresh_rollouts(), *terms(), *scales(), *coarse_samplers()]


def used_rollouts() -> list[Case]:
    """Every objective, on rollouts of an older policy."""
    return [
        Case(name="grpo", ours={"estimator": "grpo"}, trl=_GRPO),
        Case(
            name="dr_grpo",
            ours={"estimator": "dr_grpo"},
            trl={"loss_type": "dr_grpo", "scale_rewards": "none"},
        ),
        Case(name="bnpo", ours={"estimator": "bnpo"}, trl={"loss_type": "bnpo"}),
        Case(name="dapo", ours={"estimator": "dapo"}, trl=_DAPO | {"epsilon_high": 0.28}),
        Case(
            name="gspo",
            ours={"estimator": "gspo"},
            trl=_GRPO
            | {"importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4},
            spread=2e-3,
        ),
        Case(
            name="cispo",
            ours={"estimator": "cispo"},
            trl={"loss_type": "cispo", "epsilon_high": 5.0},
            spread=1.5,
        ),
        Case(
            name="delta",
            ours={"estimator": "bnpo", "delta": 1.5},
            trl=_DAPO | {"delta": 1.5},
            spread=0.6,
        ),
        Case(
            name="temperature",
            ours={"estimator": "bnpo", "temperature": 0.7},
            trl=_DAPO | {"temperature": 0.7},
        ),
    ]


def fresh_rollouts() -> list[Case]:
    """The same policy on both sides."""
    return [
        Case(name="grpo_fresh", ours={"estimator": "grpo"}, trl=_GRPO, spread=0.0),
        Case(
            name="rloo_fresh",
            ours={"estimator": "rloo"},
            trl={"beta": 0.0},
            spread=0.0,
            is_rloo=True,
        ),
        Case(
            name="rloo_kl_in_reward",
            ours={"estimator": "rloo", "kl_in": "reward", "kl_coefficient": 0.05},
            trl={"beta": 0.05},
            spread=0.0,
            is_rloo=True,
        ),
    ]


def terms() -> list[Case]:
    """What may be added to the loss, or masked in it."""
    return [
        Case(
            name="kl_k3",
            ours={"estimator": "grpo"} | _KL,
            trl=_GRPO | {"beta": 0.5, "use_bias_correction_kl": False},
        ),
        Case(
            name="kl_k3_corrected",
            ours={"estimator": "grpo", "kl_correction": True} | _KL,
            trl=_GRPO | {"beta": 0.5},
        ),
        Case(
            name="entropy",
            ours={"estimator": "bnpo", "entropy_coefficient": 0.3},
            trl=_DAPO | {"entropy_coef": 0.3},
        ),
        Case(
            name="top_entropy_quantile",
            ours={"estimator": "bnpo", "top_entropy_quantile": 0.2},
            trl=_DAPO | {"top_entropy_quantile": 0.2},
        ),
    ]


def scales() -> list[Case]:
    """Rewards divided otherwise."""
    return [
        Case(
            name=f"scale_{scale}",
            ours={"estimator": "bnpo", "scale_rewards": scale},
            trl=_DAPO | {"scale_rewards": scale},
        )
        for scale in ("batch", "none")
    ]


def coarse_samplers() -> list[Case]:
    """Every way to weigh what a sampler of coarser arithmetic drew."""
    return [
        Case(
            name=mode,
            ours={
                "estimator": "bnpo",
                "importance_mode": mode,
                "importance_cap": 1.4,
                "importance_floor": 0.6,
            },
            trl=_DAPO
            | {
                "vllm_importance_sampling_mode": mode,
                "vllm_importance_sampling_clip_max": 1.4,
                "vllm_importance_sampling_clip_min": 0.6,
            },
            spread=0.0,
            sampler_spread=0.3 if mode.startswith("token") else 0.15,
        )
        for mode in get_args(ImportanceMode)
    ]
