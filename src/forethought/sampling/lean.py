"""One decoding step of the Llama and Qwen families, over the same weights as transformers' model.

What is leaner: siblings attend to one copy of their prompt, the query heads of one key-value head
go into one product, nothing is built per layer that all layers share, and large matrices are packed
for the processor. `LeanModel.of` answers None for every other architecture, which decodes through
its own forward pass (`sampling/cache.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from forethought.sampling.products import Product, Weights, product_of
from forethought.sampling.shared_cache import SharedCache, Step

FAMILIES = frozenset({"llama", "qwen2", "qwen3"})
_STATIC_ROPE = frozenset({"default", "linear", "llama3", "yarn"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One layer. `heads` gives queries, keys and values side by side; `gate_up` both halves of the
    MLP."""

    attention_norm: nn.Module
    heads: Product
    query_norm: nn.Module | None
    key_norm: nn.Module | None
    output: Product
    mlp_norm: nn.Module
    gate_up: Product
    activation: nn.Module
    down: Product


@dataclass(frozen=True, slots=True, kw_only=True)
class LeanModel:
    """Views of a model's weights, and packed copies of its large matrices."""

    model: PreTrainedModel
    blocks: tuple[Block, ...]
    head: Product
    head_dim: int
    num_heads: int
    num_kv_heads: int

    @staticmethod
    def of(model: PreTrainedModel, weights: Weights | None = "float32") -> LeanModel | None:
        """The lean view of `model`; None where its family has none. Large matrices are packed in
        the format `weights`; with None they stay as they are."""
        if not is_lean(model):
            return None
        base: Any = model.base_model
        caller: Any = model
        head = caller.get_output_embeddings()
        return LeanModel(
            model=model,
            blocks=tuple(_block(layer, weights) for layer in base.layers),
            head=product_of([head], weights),
            head_dim=int(base.layers[0].self_attn.head_dim),
            num_heads=int(caller.config.num_attention_heads),
            num_kv_heads=int(caller.config.num_key_value_heads),
        )

    def decode(
        self, cache: SharedCache, token_ids: Sequence[int], lengths: Sequence[int]
    ) -> Tensor:
        """Feed one token a live row, which stands at position lengths[r]: logits (n, V)."""
        base: Any = self.model.base_model
        device = self.model.device
        hidden = base.embed_tokens(torch.tensor(token_ids, device=device))  # (n, D)
        turn = self._rotation(hidden, torch.tensor(lengths, device=device))
        step = cache.begin_step(lengths, self.num_heads)
        for layer, block in enumerate(self.blocks):
            hidden = self._block(block, layer, hidden, turn, step)
        return self.head(_normalized(base.norm, hidden))

    def _rotation(self, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Rotary position embedding (arXiv 2104.09864) of all heads at once, as cosines and signed
        sines (n, heads, 2, head_dim / 2): values are turned by nothing."""
        base: Any = self.model.base_model
        cos, sin = (table[0, :, None] for table in base.rotary_emb(hidden, positions[None]))
        num_turned = self.num_heads + self.num_kv_heads
        cos = cos.repeat(1, num_turned, 1)
        sin = sin.repeat(1, num_turned, 1)
        half = sin.shape[-1] // 2
        sin[..., :half].neg_()
        still = (0, 0, 0, self.num_kv_heads)
        cos, sin = F.pad(cos, still, value=1.0), F.pad(sin, still)
        shape = (*cos.shape[:2], 2, half)
        return cos.view(shape), sin.view(shape)

    def _block(
        self, block: Block, layer: int, hidden: Tensor, turn: tuple[Tensor, Tensor], step: Step
    ) -> Tensor:
        """hidden (n, D)."""
        heads = block.heads(_normalized(block.attention_norm, hidden))
        heads = heads.view(len(hidden), -1, self.head_dim)
        if block.query_norm is not None and block.key_norm is not None:
            queries, keys, values = heads.split_with_sizes(self._kinds, dim=1)
            heads = torch.cat((block.query_norm(queries), block.key_norm(keys), values), dim=1)
        halves = heads.view(turn[0].shape)
        turned = torch.addcmul(halves * turn[0], halves.flip(-2), turn[1]).view(heads.shape)
        hidden = hidden + block.output(step.attend(layer, turned))
        gate, up = block.gate_up(_normalized(block.mlp_norm, hidden)).chunk(2, dim=-1)
        return hidden + block.down(block.activation(gate).mul_(up))

    @property
    def _kinds(self) -> list[int]:
        """How many heads ask, and how many have keys and values."""
        return [self.num_heads, self.num_kv_heads, self.num_kv_heads]


def is_lean(model: PreTrainedModel) -> bool:
    """Whether `LeanModel` computes what this model does: its family, full attention, fixed RoPE."""
    config: Any = model.config
    base: Any = model.base_model
    rope = getattr(getattr(base, "rotary_emb", None), "rope_type", None)
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return (
        config.model_type in FAMILIES
        and rope in _STATIC_ROPE
        and kinds == {"full_attention"}
        and not getattr(base, "has_sliding_layers", False)
    )


def _block(layer: Any, weights: Weights | None) -> Block:
    attention, mlp = layer.self_attn, layer.mlp

    def product(*layers: nn.Module) -> Product:
        return product_of(layers, weights)

    return Block(
        attention_norm=layer.input_layernorm,
        heads=product(attention.q_proj, attention.k_proj, attention.v_proj),
        query_norm=getattr(attention, "q_norm", None),
        key_norm=getattr(attention, "k_norm", None),
        output=product(attention.o_proj),
        mlp_norm=layer.post_attention_layernorm,
        gate_up=product(mlp.gate_proj, mlp.up_proj),
        activation=mlp.act_fn,
        down=product(mlp.down_proj),
    )


def _normalized(norm: Any, hidden: Tensor) -> Tensor:
    """RMSNorm (arXiv 1910.07467) in one operation instead of the module's seven."""
    return F.rms_norm(hidden, hidden.shape[-1:], norm.weight, norm.variance_epsilon)
