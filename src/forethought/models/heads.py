"""From hidden states to log-probabilities, at the positions that are needed and no others."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel


def token_logprobs(
    model: PreTrainedModel,
    input_ids: Tensor,
    positions: Tensor,
    targets: Tensor,
    temperature: float = 1.0,
    *,
    position_ids: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """log pi(target) in nats at N flat positions of right-padded rows.

    input_ids: (B, T); positions: (N,) indices into B * T; targets: (N,). position_ids (B, T) and
    mask (B, 1, T, T), True where a query sees a key, are those of plain causal rows when left out.
    Returns (N,) float32.
    """
    layout: dict[str, Tensor] = {}
    if position_ids is not None:
        layout["position_ids"] = position_ids
    if mask is not None:
        layout["attention_mask"] = attention_mask(model, mask)
    hidden = model.base_model(input_ids=input_ids, use_cache=False, **layout).last_hidden_state
    # not hidden[positions]: siblings share a position, and the gradient of an index adds such terms
    # up in whatever order the threads come, so that a resumed run would not end in the same bits
    needed = hidden.flatten(0, 1).index_select(0, positions)
    logits = project(model, needed).float()  # (N, V)
    if temperature != 1.0:
        logits = logits / temperature
    return -F.cross_entropy(logits, targets, reduction="none")


def attention_mask(model: PreTrainedModel, mask: Tensor) -> Tensor:
    """`mask` (B, 1, Q, K), True where a query sees a key, as the model's attention wants it."""
    if model.config._attn_implementation != "eager":
        return mask
    lowest = torch.finfo(model.dtype).min  # eager attention adds its mask to the scores
    return torch.zeros_like(mask, dtype=model.dtype).masked_fill(~mask, lowest)


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
