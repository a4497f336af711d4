"""The layers of the lean step in one compiled call, where tiles multiply."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from forethought.sampling.attention import heads_together
from forethought.sampling.cache import cache_shape
from forethought.sampling.lean_parts import Floats, Norm, Step, head_norms_of
from forethought.sampling.products import Weights, tiled_layers
from forethought.sampling.scaled import Scaled, Values, room
from forethought.sampling.shared_cache import Form
from forethought.sampling.stacks import stacks_of
from forethought.sampling.tiled import TiledLayers

_WORTH_SHARING = 1 << 15  # words of a layer's weights among threads


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeLayers:
    """All L layers. `products` are of heads, output, gate and up, and down."""

    products: tuple[TiledLayers, ...]
    norms: tuple[Floats, np.float32]  # weights (L, 2, D), and epsilon
    head_norms: tuple[Floats, np.float32]  # (L, 0 or 2, head_dim)
    together: tuple[int, ...]  # see `heads_together`
    num_heads: int
    num_kv_heads: int
    head_dim: int

    @staticmethod
    def of(model: PreTrainedModel, weights: Weights | None) -> WholeLayers | None:
        """None where the products of some layer are not tiled."""
        base: Any = model.base_model
        config: Any = model.config
        kinds = zip(*map(stacks_of, base.layers), strict=True)
        products = tiled_layers([list(kind) for kind in kinds], weights)
        if products is None:
            return None
        norms = [
            [Norm.of(layer.input_layernorm), Norm.of(layer.post_attention_layernorm)]
            for layer in base.layers
        ]
        weights_of = np.array([[norm.weight for norm in both] for both in norms])
        head_norms, epsilons = zip(
            *(head_norms_of(layer.self_attn) for layer in base.layers), strict=True
        )
        num_heads, (_, num_kv_heads, head_dim) = int(config.num_attention_heads), cache_shape(model)
        return WholeLayers(
            products=tuple(products),
            norms=(weights_of, norms[0][0].epsilon),
            head_norms=(np.array(head_norms), epsilons[0]),
            together=heads_together(num_heads, num_kv_heads),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
        )

    def through(self, embedded: Floats, step: Step) -> tuple[Floats, Values]:
        """Embeddings (n, D) to the hidden states (n, D), and what the last layer adds to them."""
        from forethought.sampling.tiles import ROWS_EACH  # needs numba
        from forethought.sampling.whole_step import run_layers

        rows, width = embedded.shape
        heads, output, gate_up, down = self.products
        more = room(rows, _columns(output))
        more[:, :width] = embedded
        hidden, size = np.zeros_like(embedded), self.head_dim
        threads = torch.get_num_threads() if self._num_words > _WORTH_SHARING else 1
        inputs = [
            Scaled.room(rows, count, heads.takes)
            for count in (width, self.num_heads * size, gate_up.width // 2)
        ]
        run_layers(
            threads,
            threads == 1 or rows >= ROWS_EACH * threads,
            step.own is step.prompts and threads > 1,
            () if step.own.is_paired else self.together,
            hidden,
            more,
            self.norms,
            self.head_norms,
            tuple(product.panels for product in self.products),
            tuple((x.values, x.values.view(down.panels[0].dtype), x.scales) for x in inputs),
            (
                room(rows, _columns(heads)),
                room(rows, _columns(gate_up)),
                self._queries(rows, step.own.is_paired),
            ),
            (step.positions, step.groups, step.prompt_lengths, step.seats, step.own_lengths),
            (step.cos, step.sin, tuple(step.prompts), tuple(step.own)),
        )
        return hidden, more

    def _queries(self, rows: int, is_paired: bool) -> Values:
        if not is_paired:
            return room(rows, self.num_heads, self.head_dim)
        repeats = self.num_heads // self.num_kv_heads
        return room(self.num_kv_heads, rows * repeats, self.head_dim, kind=torch.uint16)

    @property
    def _num_words(self) -> int:
        return sum(product.panels[0][0].size for product in self.products)


def form_of(model: PreTrainedModel) -> Form:
    """How keys and values are kept for whole layers. AMX attends over pairs, where words of two
    numbers of a head fill lines, and a register has rows for all queries of a key head."""
    from forethought.sampling.amx import ROWS, WORDS
    from forethought.sampling.tiles import HAS_AMX  # needs numba

    _, num_kv_heads, head_dim = cache_shape(model)
    config: Any = model.config
    fits = head_dim % (2 * WORDS) == 0 and config.num_attention_heads // num_kv_heads <= ROWS
    return "paired" if HAS_AMX and fits else "bfloat16"


def _columns(product: TiledLayers) -> int:
    """Columns that its tiles write."""
    return int(product.panels[3][0].size)
