"""What the two ways through the layers of the lean step share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forethought.sampling.shared_cache import Indices, Table

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Norm:
    """RMSNorm of the last dimension."""

    weight: Floats
    epsilon: np.float32

    @staticmethod
    def of(module: Any) -> Norm:
        return Norm(module.weight.detach().float().numpy(), np.float32(module.variance_epsilon))


def head_norms_of(attention: Any) -> tuple[Floats, np.float32]:
    """Weights (2, head_dim) of the norms of queries and keys, (0, head_dim) without, and their
    epsilon."""
    if not hasattr(attention, "q_norm"):
        return np.empty((0, attention.head_dim), np.float32), np.float32(0.0)
    norms = [Norm.of(attention.q_norm), Norm.of(attention.k_norm)]
    return np.array([norm.weight for norm in norms]), norms[0].epsilon


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What all layers of one pass share. Row r is one token; it sees the prompt of its group and,
    in its seat, as many tokens as `own_lengths` says, itself the last. All indices (n,)."""

    prompts: Table
    own: Table
    cos: Floats  # (positions, head_dim)
    sin: Floats
    positions: Indices
    groups: Indices
    prompt_lengths: Indices
    seats: Indices
    own_lengths: Indices
    num_seen: int  # tokens that all rows see together
