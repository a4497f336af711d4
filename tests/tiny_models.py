"""Models and tokenizers small enough to make anew in every test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from forethought.models.gguf import transformers_name
from forethought.models.save import save_model

TEMPLATE = "{% for m in messages %}{{ m['content'] }}|{% endfor %}"
SPACE = "\u0120"  # how byte-level tokenizers write a space
WORDS = [*sorted(pre_tokenizers.ByteLevel.alphabet()), SPACE + SPACE]


def tiny_tokenizer(**options: Any) -> PreTrainedTokenizerFast:
    vocabulary = {"<pad>": 0, "<end>": 1, "<begin>": 2}
    vocabulary |= {letter: index + 3 for index, letter in enumerate(WORDS)}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[(SPACE, SPACE)]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    build: Any = PreTrainedTokenizerFast
    made: PreTrainedTokenizerFast = build(tokenizer_object=tokenizer, **options)
    return made


def tiny_config(**options: Any) -> LlamaConfig:
    sizes: dict[str, Any] = {
        "vocab_size": len(WORDS) + 3,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "tie_word_embeddings": True,
    }
    return LlamaConfig(**(sizes | options))


def tiny_model(**options: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(tiny_config(**options))
    model.eval()
    made: LlamaForCausalLM = model
    return made


def make_folder(folder: Path) -> Path:
    """Save a complete tiny model at `folder`, which a test may damage."""
    tokenizer = tiny_tokenizer(eos_token="<end>", pad_token="<pad>", chat_template=TEMPLATE)
    save_model(tiny_model(), tokenizer, folder, card="# Tiny\n\nA model of nothing.\n")
    return folder


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        result: torch.Tensor = model(torch.arange(3, 13)[None]).logits
    return result


def write_gguf(path: Path, model: Any, splitter: str = "smollm") -> None:
    """Write `model` as llama.cpp does: its names, its order of query and key rows."""
    import gguf

    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splitter)
    tokens = ["<pad>", "<end>", "<begin>", *WORDS]
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * len(WORDS))
    writer.add_token_merges([f"{SPACE} {SPACE}"])
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(0)
    writer.add_chat_template(TEMPLATE)
    names = {transformers_name(f"blk.{i}.{n}.weight"): f"blk.{i}.{n}.weight"
             for i in range(config.num_hidden_layers)
             for n in ("attn_norm", "ffn_norm", "attn_q", "attn_k", "attn_v", "attn_output",
                       "ffn_gate", "ffn_up", "ffn_down")}  # fmt: skip
    names |= {
        transformers_name(f"{n}.weight"): f"{n}.weight" for n in ("token_embd", "output_norm")
    }
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        values = tensor.numpy()
        if "q_proj" in name or "k_proj" in name:
            heads = config.num_attention_heads if "q_" in name else config.num_key_value_heads
            halves = values.reshape(heads, 2, -1, values.shape[1])
            values = halves.swapaxes(1, 2).reshape(values.shape)
        writer.add_tensor(names[name], values.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
