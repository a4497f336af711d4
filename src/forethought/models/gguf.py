"""From a GGUF file with the `llama` architecture to a Hugging Face folder.

transformers can open GGUF too, but needs one more package for it, takes tens of seconds, and does
not know the `smollm` way of cutting text into words. Format: the GGUF specification of ggml and
the tensor names of llama.cpp. Needs the package `gguf` (the extra of the same name).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forethought.errors import ModelError
from forethought.models.quiet import quiet_transformers

if TYPE_CHECKING:
    import numpy as np
    import torch
    from gguf import GGUFReader
    from tokenizers import Tokenizer
    from tokenizers.pre_tokenizers import PreTokenizer
    from transformers import LlamaConfig, PreTrainedTokenizerFast

CONTROL_TOKEN = 3  # the GGUF token type of tokens that stand for structure, not text
TENSOR_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def convert_gguf(path: Path, folder: Path) -> None:
    """Write config, float16 safetensors, tokenizer and chat template of `path` into `folder`.

    float16 keeps eight times more of the dequantised values than bfloat16 in the same space.
    Raises ModelError for another architecture or tokenizer.
    """
    from gguf import GGUFReader
    from safetensors.torch import save_file

    reader = GGUFReader(path)
    config = read_llama_config(reader)
    weights = read_weights(reader, config)
    with quiet_transformers():
        config.save_pretrained(folder)
        read_tokenizer(reader).save_pretrained(folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def field(reader: GGUFReader, key: str, default: Any = None) -> Any:
    """One metadata value of the file, as plain Python."""
    found = reader.fields.get(key)
    return default if found is None else found.contents()


def read_llama_config(reader: GGUFReader) -> LlamaConfig:
    """Sizes and special ids; raises ModelError when the architecture is not llama."""
    from transformers import LlamaConfig

    architecture = field(reader, "general.architecture")
    if architecture != "llama":
        raise ModelError(f"GGUF architecture {architecture!r} is not supported: use a llama one.")
    heads = field(reader, "llama.attention.head_count")
    epsilon = field(reader, "llama.attention.layer_norm_rms_epsilon")
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=len(reader.fields["tokenizer.ggml.tokens"].data),
        hidden_size=field(reader, "llama.embedding_length"),
        intermediate_size=field(reader, "llama.feed_forward_length"),
        num_hidden_layers=field(reader, "llama.block_count"),
        num_attention_heads=heads,
        num_key_value_heads=field(reader, "llama.attention.head_count_kv", heads),
        max_position_embeddings=field(reader, "llama.context_length"),
        rms_norm_eps=float(f"{epsilon:.6g}"),  # a float32 in the file: 1e-05, not 9.9999997e-06
        rope_parameters={
            "rope_type": "default",
            "rope_theta": field(reader, "llama.rope.freq_base", 10_000.0),
        },
        tie_word_embeddings=all(tensor.name != "output.weight" for tensor in reader.tensors),
        bos_token_id=field(reader, "tokenizer.ggml.bos_token_id"),
        eos_token_id=field(reader, "tokenizer.ggml.eos_token_id"),
        pad_token_id=field(reader, "tokenizer.ggml.padding_token_id"),
        dtype="float16",
    )


def read_weights(reader: GGUFReader, config: LlamaConfig) -> dict[str, torch.Tensor]:
    """Every tensor, dequantised, in float16, under the name transformers gives it."""
    import torch
    from gguf import dequantize

    weights: dict[str, torch.Tensor] = {}
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        if ".attn_q." in tensor.name:
            values = undo_interleave(values, config.num_attention_heads)
        elif ".attn_k." in tensor.name:
            values = undo_interleave(
                values, config.num_key_value_heads or config.num_attention_heads
            )
        weights[transformers_name(tensor.name)] = torch.tensor(values, dtype=torch.float16)
    return weights


def undo_interleave(values: np.ndarray[Any, Any], num_heads: int) -> np.ndarray[Any, Any]:
    """Reorder the rows (num_heads * head_dim, hidden) of a query or key projection.

    llama.cpp rotates neighbouring pairs of rows, transformers the two halves of a head: row 2i + j
    of a head there is row j * head_dim / 2 + i here.
    """
    pairs = values.reshape(num_heads, values.shape[0] // num_heads // 2, 2, *values.shape[1:])
    return pairs.swapaxes(1, 2).reshape(values.shape)


def transformers_name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`; raises ModelError."""
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    if match is None or match[2] not in TENSOR_NAMES:
        raise ModelError(f"GGUF tensor {name!r} is not supported: use a plain llama model.")
    layer = f"model.layers.{match[1]}." if match[1] else ""
    return f"{layer}{TENSOR_NAMES[match[2]]}.{match[3]}"


def read_tokenizer(reader: GGUFReader) -> PreTrainedTokenizerFast:
    """The byte-level BPE tokenizer with its special tokens and chat template."""
    from transformers import PreTrainedTokenizerFast

    tokens: list[str] = field(reader, "tokenizer.ggml.tokens")

    def named(key: str) -> str | None:
        index = field(reader, f"tokenizer.ggml.{key}_token_id")
        return None if index is None else tokens[index]

    build: Any = PreTrainedTokenizerFast  # its constructor carries no annotations
    tokenizer: PreTrainedTokenizerFast = build(
        tokenizer_object=byte_level_bpe(reader, tokens),
        bos_token=named("bos"),
        eos_token=named("eos"),
        unk_token=named("unknown"),
        pad_token=named("padding"),
        model_max_length=field(reader, "llama.context_length"),
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = field(reader, "tokenizer.chat_template")
    return tokenizer


def byte_level_bpe(reader: GGUFReader, tokens: list[str]) -> Tokenizer:
    """Vocabulary, merges and control tokens as a `tokenizers` pipeline."""
    from tokenizers import AddedToken, Tokenizer, decoders
    from tokenizers.models import BPE

    merges = [tuple(merge.split(" ", 1)) for merge in field(reader, "tokenizer.ggml.merges")]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = word_splitter(reader)
    tokenizer.decoder = decoders.ByteLevel()
    types = field(reader, "tokenizer.ggml.token_type")
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, types, strict=True)
            if kind == CONTROL_TOKEN
        ]
    )
    return tokenizer


def word_splitter(reader: GGUFReader) -> PreTokenizer:
    """How text is cut before merging: GPT-2's pattern, after single digits for `smollm`."""
    from tokenizers import pre_tokenizers

    kind = (field(reader, "tokenizer.ggml.model"), field(reader, "tokenizer.ggml.pre"))
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if kind == ("gpt2", "smollm"):
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, words])
    if kind == ("gpt2", "gpt-2"):
        return words
    raise ModelError(f"GGUF tokenizer {kind} is not supported: use gpt2 with smollm or gpt-2.")
