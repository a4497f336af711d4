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
from forethought.sampling.stacks import stacks_of

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
        wholes = [(self.weight, [layer.weight for layer in self.layers])]
        if self.bias is not None:
            wholes.append((self.bias, [layer.bias for layer in self.layers]))
        return all(
            (whole.data_ptr(), whole.dtype) == (parts[0].data_ptr(), parts[0].dtype)
            and _are_one(parts)
            for whole, parts in wholes
        )


def _side_by_side(parameters: Sequence[Tensor]) -> Tensor:
    """One tensor of all, of which they become views; the one of which they are already."""
    if _are_one(parameters):
        first = parameters[0].data
        return first.as_strided((sum(map(len, parameters)), *first.shape[1:]), first.stride())
    whole = torch.cat([p.data for p in parameters])
    parts = torch.split(whole, [len(p) for p in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.data = part
    return whole


def _are_one(parameters: Sequence[Tensor]) -> bool:
    """Whether each begins where the last one ends."""
    storages = {p.untyped_storage().data_ptr() for p in parameters}
    ends = [p.data_ptr() + p.nbytes for p in parameters]
    pairs = zip(ends, parameters[1:], strict=False)
    return len(storages) == 1 and all(end == p.data_ptr() for end, p in pairs)


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
        attention = layer.self_attn
        heads, output, gate_up, down = map(Stack.of, stacks_of(layer))
        has_norms = getattr(attention, "q_norm", None) is not None
        return Block(
            attention_norm=layer.input_layernorm.weight,
            heads=heads,
            norms=(attention.q_norm.weight, attention.k_norm.weight) if has_norms else None,
            output=output,
            mlp_norm=layer.post_attention_layernorm.weight,
            gate_up=gate_up,
            down=down,
        )

    @property
    def stacks(self) -> tuple[Stack, ...]:
        return self.heads, self.output, self.gate_up, self.down


class FusedModel:
    """Views of a model's weights, and tables of its rotary position embedding."""

    def __init__(self, model: PreTrainedModel, kernels: Kernels) -> None:
        base: Any = model.base_model
        self._model, self._base, self._kernels = model, base, kernels
        # outside of inference mode, in which new tensors can take part in no training
        with torch.inference_mode(False):
            self._blocks = tuple(Block.of(layer) for layer in base.layers)
        self._head_dim = int(base.layers[0].self_attn.head_dim)
        self._scale = float(base.layers[0].self_attn.scaling)
        self._rotation_of: tuple[int, Rotation] | None = None  # by number of positions

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
        caller: Any = self._model
        normed = self._add_norm(hidden, delta, self._base.norm.weight)
        logits: Tensor = caller.get_output_embeddings()(normed)
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
            self._base.norm.variance_epsilon,
            self._scale,
        )
        normed = self._add_norm(hidden, block.output(attended), block.mlp_norm)
        return block.down(self._kernels.silu_gate(block.gate_up(normed)))

    def _add_norm(self, hidden: Tensor, delta: Tensor | None, weight: Tensor) -> Tensor:
        return self._kernels.add_norm(hidden, delta, weight, self._base.norm.variance_epsilon)

    def _rotation(self, count: int) -> Rotation:
        """Cosines and sines (count, head_dim) of the rotary position embedding."""
        if self._rotation_of is None or self._rotation_of[0] != count:
            device = self._base.embed_tokens.weight.device
            like = torch.empty(0, dtype=torch.float32, device=device)
            cos, sin = self._base.rotary_emb(like, torch.arange(count, device=device)[None])
            self._rotation_of = count, (cos[0].contiguous(), sin[0].contiguous())
        return self._rotation_of[1]


_NUMBERS = (torch.float32, torch.bfloat16, torch.float16)


def can_fuse(model: PreTrainedModel) -> bool:
    """Whether the layers of a Llama or Qwen model are plain: no adapters, no quantized weights,
    all in one place."""
    base: Any = model.base_model
    stacks = [stack for layer in base.layers for stack in stacks_of(layer)]
    layers = [layer for stack in stacks for layer in stack]
    return all(
        type(layer) is nn.Linear
        and type(layer.weight) is nn.Parameter
        and (layer.weight.device, layer.weight.dtype) == (model.device, model.dtype)
        and model.dtype in _NUMBERS
        for layer in layers
    ) and all(len({layer.bias is None for layer in stack}) == 1 for stack in stacks)


def try_kernels(kernels: Kernels, device: torch.device, dtype: torch.dtype) -> None:
    """Run each once on a token or two. Raises whatever is wrong with them."""
    rows, heads, kv_heads, size, columns = 2, 4, 2, 16, 20
    x = torch.ones(rows, size, dtype=dtype, device=device)
    kernels.add_norm(x.float(), x, x[0], 1e-6)
    kernels.silu_gate(x)
    cache = torch.ones(2, rows, kv_heads, columns, size, dtype=dtype, device=device)
    rotation = torch.ones(2, columns, size, device=device)
    lengths = torch.tensor([0, columns - 1], device=device)
    queries = torch.ones(rows, heads + 2 * kv_heads, size, dtype=dtype, device=device)
    found = kernels.attend(queries, *cache, lengths, tuple(rotation), None, 1e-6, 1.0)
    if not bool(found.isfinite().all()):
        raise RuntimeError("its attention is not finite")
