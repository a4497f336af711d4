"""One decoding step of the Llama and Qwen families on a GPU, over transformers' weights.

A step of few rows waits for its kernels to be launched and to end, whatever they compute. So the
matrices that read one input stand side by side and are one product, and all that lies between two
products is one kernel (`sampling/triton_kernels.py`). The host looks at no value, so the step can
be captured (`sampling/stretch.py`). Which models it serves, `sampling/decoder.py` knows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from forethought.sampling.cache import SlotCache, SlotLayer

Rotation = tuple[Tensor, Tensor]


class Kernels(Protocol):
    """`sampling/triton_kernels.py`, or what computes the same."""

    @property
    def add_norm(self) -> Callable[..., Tensor]: ...
    @property
    def attend(self) -> Callable[..., Tensor]: ...
    @property
    def silu_gate(self) -> Callable[..., Tensor]: ...


@dataclass(frozen=True, slots=True)
class Stack:
    """Linear layers with one input, whose weights are parts of one matrix (N, K)."""

    layers: tuple[nn.Linear, ...]
    weight: Tensor
    bias: Tensor | None

    @staticmethod
    @torch.no_grad()
    def of(layers: Sequence[nn.Linear]) -> Stack:
        """The layers keep their parameters, which become views of the matrix."""
        biases = [layer.bias for layer in layers if layer.bias is not None]
        has_bias = len(biases) == len(layers)
        return Stack(
            tuple(layers),
            _side_by_side([layer.weight for layer in layers]),
            _side_by_side(biases) if has_bias else None,
        )

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    @property
    def is_whole(self) -> bool:
        """Whether the layers' weights are still where they were put."""
        if not _is_made_of(self.weight, [layer.weight for layer in self.layers]):
            return False
        return self.bias is None or _is_made_of(self.bias, [layer.bias for layer in self.layers])


def _side_by_side(parameters: Sequence[Tensor]) -> Tensor:
    """One tensor of all, of which they become views."""
    if len(parameters) == 1:
        return parameters[0].data
    whole = torch.cat([p.data for p in parameters])
    for parameter, part in zip(parameters, _parts(whole, parameters), strict=True):
        parameter.data = part
    return whole


def _is_made_of(whole: Tensor, parameters: Sequence[Tensor]) -> bool:
    pairs = zip(parameters, _parts(whole, parameters), strict=True)
    return all(p.data_ptr() == part.data_ptr() and p.dtype == part.dtype for p, part in pairs)


def _parts(whole: Tensor, parameters: Sequence[Tensor]) -> Sequence[Tensor]:
    return torch.split(whole, [len(p) for p in parameters])


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One layer. `heads` gives queries, keys and values side by side; `gate_up` both halves of the
    MLP. `norms` are those of single queries and keys."""

    attention_norm: nn.Parameter
    heads: Stack
    norms: tuple[nn.Parameter, nn.Parameter] | None
    output: Stack
    mlp_norm: nn.Parameter
    gate_up: Stack
    down: Stack

    @staticmethod
    def of(layer: Any) -> Block:
        attention, mlp = layer.self_attn, layer.mlp
        has_norms = getattr(attention, "q_norm", None) is not None
        return Block(
            attention_norm=layer.input_layernorm.weight,
            heads=Stack.of([attention.q_proj, attention.k_proj, attention.v_proj]),
            norms=(attention.q_norm.weight, attention.k_norm.weight) if has_norms else None,
            output=Stack.of([attention.o_proj]),
            mlp_norm=layer.post_attention_layernorm.weight,
            gate_up=Stack.of([mlp.gate_proj, mlp.up_proj]),
            down=Stack.of([mlp.down_proj]),
        )

    @property
    def stacks(self) -> tuple[Stack, ...]:
        return self.heads, self.output, self.gate_up, self.down


class FusedModel:
    """Views of a model's weights, and tables of its rotary position embedding."""

    def __init__(self, model: PreTrainedModel, kernels: Kernels) -> None:
        base: Any = model.base_model
        caller: Any = model
        self._base, self._head = base, caller.get_output_embeddings()
        self._kernels = kernels
        # outside of inference mode, in which new tensors can take part in no training
        with torch.inference_mode(False):
            self._blocks = tuple(Block.of(layer) for layer in base.layers)
        self._norm = base.norm
        self._head_dim = int(base.layers[0].self_attn.head_dim)
        self._scale = float(base.layers[0].self_attn.scaling)
        self._rotations: dict[int, Rotation] = {}

    @property
    def is_whole(self) -> bool:
        """Whether the model's weights are still those that are looked at."""
        return all(stack.is_whole for block in self._blocks for stack in block.stacks)

    def decode(self, cache: SlotCache, token_ids: Tensor, positions: Tensor) -> Tensor:
        """Feed one token a live row, which stands at positions[r]; both (n,). Logits (n, V)."""
        rotation = self._rotation(cache.max_columns)
        hidden = self._base.embed_tokens(token_ids).float()  # (n, D)
        delta = None
        for block, layer in zip(self._blocks, cache.slot_layers, strict=True):
            delta = self._block(block, layer, hidden, delta, positions, rotation)
        logits: Tensor = self._head(self._add_norm(hidden, delta, self._norm.weight))
        return logits

    def _block(
        self,
        block: Block,
        layer: SlotLayer,
        hidden: Tensor,
        delta: Tensor | None,
        positions: Tensor,
        rotation: Rotation,
    ) -> Tensor:
        """Adds `delta` and attention to hidden (n, D) float32; returns what the MLP adds."""
        heads = block.heads(self._add_norm(hidden, delta, block.attention_norm))
        attended = self._kernels.attend(
            heads.view(len(heads), -1, self._head_dim),
            layer.keys,
            layer.values,
            positions,
            rotation,
            block.norms,
            self._norm.variance_epsilon,
            self._scale,
        )
        normed = self._add_norm(hidden, block.output(attended), block.mlp_norm)
        return block.down(self._kernels.silu_gate(block.gate_up(normed)))

    def _add_norm(self, hidden: Tensor, delta: Tensor | None, weight: Tensor) -> Tensor:
        return self._kernels.add_norm(hidden, delta, weight, self._norm.variance_epsilon)

    def _rotation(self, count: int) -> Rotation:
        """Cosines and sines (count, head_dim) of the rotary position embedding."""
        if count not in self._rotations:
            device = self._base.embed_tokens.weight.device
            like = torch.empty(0, dtype=torch.float32, device=device)
            cos, sin = self._base.rotary_emb(like, torch.arange(count, device=device)[None])
            self._rotations[count] = cos[0].contiguous(), sin[0].contiguous()
        return self._rotations[count]
