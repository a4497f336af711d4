"""Random models of every family whose decoding and training the tests hold to transformers' own."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from forethought.models.tiny import train_tokenizer

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "tie_word_embeddings": False,
}
WINDOWED = {"sliding_window": 64}
FAMILIES: dict[str, dict[str, Any]] = {
    "gemma2": WINDOWED | {"final_logit_softcapping": 5.0, "attn_logit_softcapping": 5.0},
    "gemma3_text": WINDOWED | {"layer_types": ["sliding_attention", "full_attention"]},
    "gpt2": {},
    "llama": {},
    "mistral": WINDOWED,
    "qwen2": {},
    "qwen3": {},
}
OTHERS: dict[str, dict[str, Any]] = {
    "gpt_neox": {},
    "granite": {"logits_scaling": 4.0},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, **WINDOWED},
}


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer([" so two ten eleven, it never ends: yes"] * 9, 300)


def make_model(family: str = "llama", attention: str | None = None, **options: Any) -> Any:
    """A random model whose greedy text is lively: larger weights than usual, biases too."""
    tokens = tokenizer()
    config = AutoConfig.for_model(
        family,
        vocab_size=len(tokens),
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
        **(SIZES | (FAMILIES | OTHERS).get(family, {}) | options),
    )
    auto: Any = AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        model = auto.from_config(config, attn_implementation=attention, dtype=torch.float32)
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 or "bias" in name:
                parameter.normal_(0, 0.3)
    return model
