"""One decoding step of the Llama and Qwen families, over the same weights as transformers' model.

What is leaner: siblings attend to one copy of their prompt, what stands between two matrix products
is one compiled pass (`sampling/kernels.py`), nothing is built per layer that all layers share, and
large matrices are packed for the processor. Which models it serves, `sampling/decoder.py` knows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from forethought.machine import usable_cores
from forethought.sampling import kernels
from forethought.sampling.products import Product, Weights, products_of
from forethought.sampling.shared_cache import Floats, Indices, SharedCache
from forethought.sampling.stacks import NUM_STACKS, stacks_of

_WORTH_SHARING = 2_000_000  # products: some 0.7 ms of one core, ten times what a thread costs


@dataclass(frozen=True, slots=True)
class Norm:
    """RMSNorm of the last dimension."""

    weight: Floats
    epsilon: np.float32

    @staticmethod
    def of(module: Any) -> Norm:
        return Norm(module.weight.detach().float().numpy(), np.float32(module.variance_epsilon))

    def __call__(self, x: Floats) -> Tensor:
        """x: (n, D). Returns (n, D)."""
        out = np.empty_like(x)
        kernels.rms_norm(x, self.weight, self.epsilon, out)
        return torch.from_numpy(out)

    def in_place(self, heads: Floats, start: int, stop: int) -> None:
        """heads: (n, heads, head_dim); those from `start` to `stop` are normalized, each alone."""
        kernels.norm_heads(heads, start, stop, self.weight, self.epsilon)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One layer. `heads` gives queries, keys and values side by side; `gate_up` both halves of the
    MLP."""

    attention_norm: Norm
    heads: Product
    query_norm: Norm | None
    key_norm: Norm | None
    output: Product
    mlp_norm: Norm
    gate_up: Product
    down: Product


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What all layers of one decoding step share. N = n * kv_heads."""

    cache: SharedCache
    cos: Floats  # (positions, head_dim)
    sin: Floats
    positions: Indices  # (n,)
    groups: Indices  # (n,)
    prompt_lengths: Indices  # (n,)
    own_lengths: Indices  # (n,), the new token counted
    columns: Indices  # (n,), where the new token's keys and values go
    scores: Floats  # (N, query heads of a key-value head, tokens), scratch
    powers: Floats  # (N, tokens), scratch
    mlp_powers: Floats  # (MLP width,), scratch
    num_threads: int  # among which the rows are shared out to attend


@dataclass(frozen=True, slots=True, kw_only=True)
class LeanModel:
    """Views of a model's weights, and packed copies of its large matrices."""

    model: PreTrainedModel
    blocks: tuple[Block, ...]
    norm: Norm
    head: Product
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_width: int
    rotations: dict[int, tuple[Floats, Floats]]  # tables by number of positions

    @staticmethod
    def of(model: PreTrainedModel, weights: Weights | None = "float32") -> LeanModel:
        """The lean view of `model`. Large matrices are packed in the format `weights`; with None
        they stay as they are."""
        base: Any = model.base_model
        caller: Any = model
        stacks = [stack for layer in base.layers for stack in stacks_of(layer)]
        *products, head = products_of([*stacks, [caller.get_output_embeddings()]], weights)
        return LeanModel(
            model=model,
            blocks=tuple(
                _block(layer, *products[NUM_STACKS * i : NUM_STACKS * (i + 1)])
                for i, layer in enumerate(base.layers)
            ),
            norm=Norm.of(base.norm),
            head=head,
            num_heads=int(caller.config.num_attention_heads),
            num_kv_heads=int(caller.config.num_key_value_heads),
            head_dim=int(base.layers[0].self_attn.head_dim),
            mlp_width=int(caller.config.intermediate_size),
            rotations={},
        )

    @torch.inference_mode()
    def decode(
        self, cache: SharedCache, token_ids: Sequence[int], lengths: Sequence[int]
    ) -> Tensor:
        """Feed one token a live row, which stands at position lengths[r]: logits (n, V)."""
        base: Any = self.model.base_model
        step = self._step(cache, lengths)
        hidden = base.embed_tokens(torch.tensor(token_ids)).float().numpy()  # (n, D)
        for layer, block in enumerate(self.blocks):
            self._block(block, layer, hidden, step)
        return self.head(self.norm(hidden))

    def _step(self, cache: SharedCache, lengths: Sequence[int]) -> Step:
        groups, prompt_lengths, own_lengths = cache.seats(lengths)
        cos, sin = self._rotation(cache.max_columns)
        n, tokens = len(lengths), int((prompt_lengths + own_lengths).max())
        items = n * self.num_kv_heads
        is_worth_sharing = n * self.num_heads * tokens * self.head_dim > _WORTH_SHARING
        return Step(
            cache=cache,
            cos=cos,
            sin=sin,
            positions=np.array(lengths, dtype=np.int64),
            groups=groups,
            prompt_lengths=prompt_lengths,
            own_lengths=own_lengths,
            columns=own_lengths - 1,
            scores=np.empty((items, self.num_heads // self.num_kv_heads, tokens), np.float32),
            powers=np.empty((items, tokens), np.float32),
            mlp_powers=np.empty(self.mlp_width, np.float32),
            num_threads=min(n, torch.get_num_threads()) if is_worth_sharing else 1,
        )

    def _rotation(self, count: int) -> tuple[Floats, Floats]:
        """Cosines and sines (count, head_dim) of the rotary position embedding."""
        if count not in self.rotations:
            base: Any = self.model.base_model
            like = torch.empty(0, dtype=torch.float32)
            cos, sin = base.rotary_emb(like, torch.arange(count)[None])
            self.rotations[count] = cos[0].contiguous().numpy(), sin[0].contiguous().numpy()
        return self.rotations[count]

    def _block(self, block: Block, layer: int, hidden: Floats, step: Step) -> None:
        """hidden (n, D), changed in place."""
        n, cache = len(hidden), step.cache
        heads = block.heads(block.attention_norm(hidden)).numpy().reshape(n, -1, self.head_dim)
        if block.query_norm is not None and block.key_norm is not None:
            num_turned = self.num_heads + self.num_kv_heads
            block.query_norm.in_place(heads, 0, self.num_heads)
            block.key_norm.in_place(heads, self.num_heads, num_turned)
        kernels.turn_and_store(
            heads, step.cos, step.sin, step.positions, cache.own, layer, step.columns
        )
        attended = np.empty((n, self.num_heads, self.head_dim), np.float32)

        def attend(start: int, stop: int) -> None:
            kernels.attend(
                heads,
                cache.prompts,
                cache.own,
                layer,
                step.groups,
                step.prompt_lengths,
                step.own_lengths,
                step.scores,
                step.powers,
                step.powers.view(np.int32),
                attended,
                start,
                stop,
            )

        _shared_out(attend, n, step.num_threads)
        kernels.add(hidden, block.output(torch.from_numpy(attended.reshape(n, -1))).numpy())
        gate_up = block.gate_up(block.mlp_norm(hidden)).numpy()
        gated = np.empty((n, self.mlp_width), np.float32)
        kernels.silu_gate(gate_up, gated, step.mlp_powers, step.mlp_powers.view(np.int32))
        kernels.add(hidden, block.down(torch.from_numpy(gated)).numpy())


def _block(layer: Any, heads: Product, output: Product, gate_up: Product, down: Product) -> Block:
    def norm(module: Any) -> Norm | None:
        return None if module is None else Norm.of(module)

    return Block(
        attention_norm=Norm.of(layer.input_layernorm),
        heads=heads,
        query_norm=norm(getattr(layer.self_attn, "q_norm", None)),
        key_norm=norm(getattr(layer.self_attn, "k_norm", None)),
        output=output,
        mlp_norm=Norm.of(layer.post_attention_layernorm),
        gate_up=gate_up,
        down=down,
    )


def _shared_out(work: Callable[[int, int], None], count: int, num_threads: int) -> None:
    """work(start, stop) over range(count) in so many threads, one of them this."""
    bounds = [count * part // num_threads for part in range(num_threads + 1)]
    others = [_threads().submit(work, *pair) for pair in pairwise(bounds[1:])]
    work(0, bounds[1])
    for other in others:
        other.result()


@cache
def _threads() -> ThreadPoolExecutor:
    """Kernels hold no lock of Python's, so that threads run side by side."""
    return ThreadPoolExecutor(usable_cores(), "attend")
