"""The layers of the lean step one operation after the other, whatever multiplies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from forethought.sampling import kernels
from forethought.sampling.attention import attend, heads_together, turn_and_store
from forethought.sampling.lean_parts import Floats, Norm, Step, head_norms_of
from forethought.sampling.products import Int8, Product
from forethought.sampling.scaled import Scaled, Values
from forethought.sampling.stacks import NUM_STACKS
from forethought.sampling.team import threads_for


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One layer. `heads` gives queries, keys and values side by side; `gate_up` both halves of the
    MLP. `norms` are the weights (2, head_dim) of queries' and keys' norms, (0, head_dim) without.
    """

    attention_norm: Norm
    heads: Product
    norms: Floats
    norms_epsilon: np.float32
    output: Product
    mlp_norm: Norm
    gate_up: Product
    down: Product


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """All layers."""

    blocks: tuple[Block, ...]
    together: tuple[int, ...]  # see `heads_together`
    num_heads: int
    mlp_width: int

    @staticmethod
    def of(model: PreTrainedModel, products: Sequence[Product]) -> Blocks:
        """`products`: those of `stacks_of`, layer by layer."""
        base: Any = model.base_model
        config: Any = model.config
        num_heads = int(config.num_attention_heads)
        return Blocks(
            blocks=tuple(
                _block(layer, *products[NUM_STACKS * i : NUM_STACKS * (i + 1)])
                for i, layer in enumerate(base.layers)
            ),
            together=heads_together(num_heads, int(config.num_key_value_heads)),
            num_heads=num_heads,
            mlp_width=int(config.intermediate_size),
        )

    @property
    def is_coarse(self) -> bool:
        """Whether some product rounds to bfloat16 or further."""
        return any(
            is_coarse(product)
            for block in self.blocks
            for product in (block.heads, block.output, block.gate_up, block.down)
        )

    def through(self, more: Values, step: Step) -> tuple[Floats, Values]:
        """Embeddings (n, D) to the hidden states (n, D), and what the last layer adds to them."""
        hidden = np.zeros_like(more)
        for layer, block in enumerate(self.blocks):
            x = add_and_norm(hidden, more, block.attention_norm, block.heads)
            more = block.output(self._attend(block, layer, block.heads(x), step))
            x = add_and_norm(hidden, more, block.mlp_norm, block.gate_up)
            more = block.down(self._gate(block.gate_up(x), block.down))
        return hidden, more

    def _attend(self, block: Block, layer: int, heads: Values, step: Step) -> Scaled:
        rows, own, size = len(heads), tuple(step.own), step.cos.shape[1]
        queries = np.empty((rows, self.num_heads, size), np.float32)
        turn_and_store(
            threads_for(heads.size),
            heads,
            block.norms,
            block.norms_epsilon,
            step.cos,
            step.sin,
            step.positions,
            own,
            layer,
            step.seats,
            step.own_lengths,
            queries,
        )
        out = Scaled.room(rows, self.num_heads * size, block.output.takes)
        attend(
            threads_for(step.num_seen * self.num_heads * size),
            self.together,
            queries,
            tuple(step.prompts),
            own,
            layer,
            step.groups,
            step.prompt_lengths,
            step.seats,
            step.own_lengths,
            out.values,
            out.scales,
        )
        return out

    def _gate(self, gate_up: Values, following: Product) -> Scaled:
        """silu(gate) * up, as `following` takes it."""
        rows = len(gate_up)
        out = Scaled.room(rows, self.mlp_width, following.takes)
        kernels.silu_gate(
            threads_for(2 * rows * self.mlp_width),
            gate_up,
            out.values,
            out.scales,
        )
        return out


def add_and_norm(hidden: Floats, more: Values, norm: Norm, following: Product) -> Scaled:
    """hidden (n, D) += more (n, D), in place; their norm is returned, as `following` takes it."""
    rows, width = hidden.shape
    out = Scaled.room(rows, width, following.takes)
    kernels.add_and_norm(
        threads_for(hidden.size),
        hidden,
        more,
        norm.weight,
        norm.epsilon,
        out.values,
        out.scales,
    )
    return out


def is_coarse(product: Product) -> bool:
    return product.takes != "float32" or isinstance(product, Int8)


def _block(layer: Any, heads: Product, output: Product, gate_up: Product, down: Product) -> Block:
    norms, epsilon = head_norms_of(layer.self_attn)
    return Block(
        attention_norm=Norm.of(layer.input_layernorm),
        heads=heads,
        norms=norms,
        norms_epsilon=epsilon,
        output=output,
        mlp_norm=Norm.of(layer.post_attention_layernorm),
        gate_up=gate_up,
        down=down,
    )
