"""One decoding step of the Llama and Qwen families, over the same weights as transformers' model.

What is leaner: siblings attend to one copy of their prompt, what stands between two matrix products
is one compiled pass (`sampling/kernels.py`, `sampling/attention.py`) in the threads of the products
(`sampling/team.py`), nothing is built per layer that all layers share, and large matrices are
packed for the processor. Which models it serves, `sampling/decoder.py` knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from forethought.sampling import kernels
from forethought.sampling.attention import attend, heads_together, turn_and_store
from forethought.sampling.cache import round_up
from forethought.sampling.products import Int8, Product, Tiled, Weights, products_of
from forethought.sampling.scaled import Scaled, Values, tensor_of
from forethought.sampling.shared_cache import Form, Indices, Prompt, Read, SharedCache, Table
from forethought.sampling.stacks import NUM_STACKS, stacks_of
from forethought.sampling.team import threads_for

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Norm:
    """RMSNorm of the last dimension."""

    weight: Floats
    epsilon: np.float32

    @staticmethod
    def of(module: Any) -> Norm:
        return Norm(module.weight.detach().float().numpy(), np.float32(module.variance_epsilon))


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


@dataclass(frozen=True, slots=True, kw_only=True)
class LeanModel:
    """Views of a model's weights, and packed copies of its large matrices. `cache_form` is the
    format of keys and values: bfloat16 where products round to that or further."""

    model: PreTrainedModel
    blocks: tuple[Block, ...]
    norm: Norm
    head: Product
    together: tuple[int, ...]  # see `heads_together`
    num_heads: int
    mlp_width: int
    cache_form: Form
    rotations: dict[int, tuple[Floats, Floats]]  # one table, by its number of positions

    @staticmethod
    def of(model: PreTrainedModel, weights: Weights | None = "float32") -> LeanModel:
        """The lean view of `model`. Large matrices are packed in the format `weights`; with None
        they stay as they are."""
        base: Any = model.base_model
        caller: Any = model
        stacks = [stack for layer in base.layers for stack in stacks_of(layer)]
        *products, head = products_of([*stacks, [caller.get_output_embeddings()]], weights)
        num_heads = int(caller.config.num_attention_heads)
        return LeanModel(
            model=model,
            blocks=tuple(
                _block(layer, *products[NUM_STACKS * i : NUM_STACKS * (i + 1)])
                for i, layer in enumerate(base.layers)
            ),
            norm=Norm.of(base.norm),
            head=head,
            together=heads_together(num_heads, int(caller.config.num_key_value_heads)),
            num_heads=num_heads,
            mlp_width=int(caller.config.intermediate_size),
            cache_form="bfloat16" if any(map(_is_coarse, [*products, head])) else "float32",
            rotations={},
        )

    @torch.inference_mode()
    def decode(
        self, cache: SharedCache, token_ids: Sequence[int], lengths: Sequence[int]
    ) -> Tensor:
        """Feed one token a live row, which stands at position lengths[r]: logits (n, V)."""
        groups, prompt_lengths, own_lengths = cache.seats(lengths)
        cos, sin = self._rotation(cache.max_columns)
        step = Step(
            prompts=cache.prompts,
            own=cache.own,
            cos=cos,
            sin=sin,
            positions=np.array(lengths, dtype=np.int64),
            groups=groups,
            prompt_lengths=prompt_lengths,
            seats=np.arange(len(lengths)),
            own_lengths=own_lengths,
            num_seen=sum(lengths) + len(lengths),
        )
        return self._logits(*self._through(token_ids, step))

    @property
    def reads(self) -> bool:
        """Whether prompts are read faster here than by the model's own forward pass: where most of
        the time is our own products'."""
        return isinstance(self.head, Tiled)

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Prompt]) -> list[Read]:
        """Read the prompts, all of their tokens at once: a token is a row that sees those before it
        in the prompt's seat."""
        counts = np.array([len(prompt) for prompt in prompts])
        table = Table.room(self.model, len(prompts), int(counts.max()), self.cache_form)
        positions = np.concatenate([np.arange(count) for count in counts])
        none = np.zeros_like(positions)
        cos, sin = self._rotation(int(counts.max()))
        step = Step(
            prompts=table,
            own=table,
            cos=cos,
            sin=sin,
            positions=positions,
            groups=none,
            prompt_lengths=none,
            seats=np.repeat(np.arange(len(prompts)), counts),
            own_lengths=positions + 1,
            num_seen=int(positions.sum()) + len(positions),
        )
        hidden, more = self._through([token for prompt in prompts for token in prompt], step)
        ends = counts.cumsum() - 1
        logits = self._logits(hidden[ends], more[ends])
        alone = [table.alone(place, int(count)) for place, count in enumerate(counts)]
        return [Read(row.clone(), mine) for row, mine in zip(logits, alone, strict=True)]

    def _through(self, token_ids: Sequence[int], step: Step) -> tuple[Floats, Values]:
        """All layers: the hidden states (n, D), and what the last layer adds to them."""
        base: Any = self.model.base_model
        more: Values = base.embed_tokens(torch.tensor(token_ids)).float().numpy()  # (n, D)
        hidden = np.zeros_like(more)
        for layer, block in enumerate(self.blocks):
            x = _add_and_norm(hidden, more, block.attention_norm, block.heads)
            more = block.output(self._attend(block, layer, block.heads(x), step))
            x = _add_and_norm(hidden, more, block.mlp_norm, block.gate_up)
            more = block.down(self._gate(block.gate_up(x), block.down))
        return hidden, more

    def _logits(self, hidden: Floats, more: Values) -> Tensor:
        return tensor_of(self.head(_add_and_norm(hidden, more, self.norm, self.head))).float()

    def _rotation(self, count: int) -> tuple[Floats, Floats]:
        """Cosines and sines (count or more, head_dim) of the rotary position embedding: one table,
        the longest that was asked for."""
        if max(self.rotations, default=0) < count:
            base: Any = self.model.base_model
            like, count = torch.empty(0, dtype=torch.float32), round_up(count)
            cos, sin = base.rotary_emb(like, torch.arange(count)[None])
            self.rotations.clear()
            self.rotations[count] = cos[0].contiguous().numpy(), sin[0].contiguous().numpy()
        [table] = self.rotations.values()
        return table

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


def _add_and_norm(hidden: Floats, more: Values, norm: Norm, following: Product) -> Scaled:
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


def _is_coarse(product: Product) -> bool:
    return product.takes != "float32" or isinstance(product, Int8)


def _block(layer: Any, heads: Product, output: Product, gate_up: Product, down: Product) -> Block:
    attention = layer.self_attn
    norms = (
        [Norm.of(attention.q_norm), Norm.of(attention.k_norm)]
        if hasattr(attention, "q_norm")
        else []
    )
    return Block(
        attention_norm=Norm.of(layer.input_layernorm),
        heads=heads,
        norms=np.array([norm.weight for norm in norms], np.float32).reshape(-1, attention.head_dim),
        norms_epsilon=norms[0].epsilon if norms else np.float32(0.0),
        output=output,
        mlp_norm=Norm.of(layer.post_attention_layernorm),
        gate_up=gate_up,
        down=down,
    )
