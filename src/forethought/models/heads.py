"""From hidden states to log-probabilities, at the positions that are needed and no others."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel


def token_logprobs(
    model: PreTrainedModel,
    input_ids: Tensor,
    positions: Tensor,
    targets: Tensor,
    temperature: float = 1.0,
) -> Tensor:
    """log pi(target) in nats at N flat positions of right-padded rows.

    input_ids: (B, T); positions: (N,) indices into B * T; targets: (N,). Returns (N,) float32.
    """
    logits = logits_at(model, input_ids, positions).float()
    if temperature != 1.0:
        logits = logits / temperature
    return -F.cross_entropy(logits, targets, reduction="none")


def logits_at(model: PreTrainedModel, input_ids: Tensor, positions: Tensor) -> Tensor:
    """Logits (N, V) at N flat positions; the head never sees another position."""
    hidden = model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state  # (B, T, D)
    return project(model, hidden.flatten(0, 1)[positions])


def project(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Logits (N, V) of hidden states (N, D), with what the model's family does to its logits."""
    caller: Any = model  # transformers' own annotations are in the way
    logits: Tensor = caller.get_output_embeddings()(hidden)
    config = model.config.get_text_config()
    if softcap := getattr(config, "final_logit_softcapping", None):  # Gemma
        logits = softcap * (logits / softcap).tanh()
    if divisor := getattr(config, "logits_scaling", None):  # Granite
        logits = logits / divisor
    if factor := getattr(config, "logit_scale", None):  # Cohere
        logits = logits * factor
    return logits
