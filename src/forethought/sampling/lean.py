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
from torch import Tensor
from transformers import PreTrainedModel

from forethought.sampling.cache import round_up
from forethought.sampling.lean_blocks import Blocks, add_and_norm, is_coarse
from forethought.sampling.lean_parts import Floats, Norm, Step
from forethought.sampling.products import Product, Weights, products_of
from forethought.sampling.scaled import Values, tensor_of
from forethought.sampling.shared_cache import Form, Indices, Prompt, Read, SharedCache, Table
from forethought.sampling.stacks import stacks_of
from forethought.sampling.tiled import Tiled
from forethought.sampling.whole_layers import WholeLayers, form_of


@dataclass(frozen=True, slots=True, kw_only=True)
class LeanModel:
    """Views of a model's weights, and packed copies of its large matrices. `cache_form` is the
    format of keys and values: bfloat16 where products round to that or further, in pairs for AMX.
    """

    model: PreTrainedModel
    layers: Blocks | WholeLayers
    norm: Norm
    head: Product
    cache_form: Form
    rotations: dict[int, tuple[Floats, Floats]]  # one table, by its number of positions

    @staticmethod
    def of(model: PreTrainedModel, weights: Weights | None = "float32") -> LeanModel:
        """The lean view of `model`. Large matrices are packed in the format `weights`; with None
        they stay as they are."""
        base: Any = model.base_model
        caller: Any = model
        heads = [caller.get_output_embeddings()]
        form: Form = "float32"
        whole = WholeLayers.of(model, weights)
        if whole is not None:
            layers: Blocks | WholeLayers = whole
            [head] = products_of([heads], weights)
            form = form_of(model)
        else:
            stacks = [stack for layer in base.layers for stack in stacks_of(layer)]
            *products, head = products_of([*stacks, heads], weights)
            layers = Blocks.of(model, products)
            if layers.is_coarse or is_coarse(head):
                form = "bfloat16"
        return LeanModel(
            model=model,
            layers=layers,
            norm=Norm.of(base.norm),
            head=head,
            cache_form=form,
            rotations={},
        )

    @torch.inference_mode()
    def decode(
        self, cache: SharedCache, token_ids: Sequence[int], lengths: Sequence[int]
    ) -> Tensor:
        """Feed one token a live row, which stands at position lengths[r]: logits (n, V)."""
        (order, back), behind = cache.order(), np.array(lengths, dtype=np.int64)
        seen = (indices[order] for indices in cache.seats(behind))
        groups, prompt_lengths, seats, own_lengths = seen
        cos, sin = self._rotation(cache.max_columns)
        step = Step(
            prompts=cache.prompts,
            own=cache.own,
            cos=cos,
            sin=sin,
            positions=behind[order],
            groups=groups,
            prompt_lengths=prompt_lengths,
            seats=seats,
            own_lengths=own_lengths,
            num_seen=int(behind.sum()) + len(behind),
        )
        hidden, more = self._through(np.array(token_ids, dtype=np.int64)[order], step)
        return self._logits(hidden[back], more[back])

    @property
    def cache_dtype(self) -> torch.dtype:
        """Of keys and values, whichever way they stand."""
        return torch.float32 if self.cache_form == "float32" else torch.bfloat16

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
        table.end(counts)
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
        hidden, more = self._through(np.concatenate(prompts).astype(np.int64), step)
        ends = counts.cumsum() - 1
        logits = self._logits(hidden[ends], more[ends])
        alone = [table.alone(place, int(count)) for place, count in enumerate(counts)]
        return [Read(row.clone(), mine) for row, mine in zip(logits, alone, strict=True)]

    def _through(self, token_ids: Indices, step: Step) -> tuple[Floats, Values]:
        """All layers: the hidden states (n, D), and what the last layer adds to them."""
        base: Any = self.model.base_model
        more: Floats = base.embed_tokens(torch.from_numpy(token_ids)).float().numpy()  # (n, D)
        return self.layers.through(more, step)

    def _logits(self, hidden: Floats, more: Values) -> Tensor:
        return tensor_of(self.head(add_and_norm(hidden, more, self.norm, self.head))).float()

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
