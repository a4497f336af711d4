"""Which way a model decodes: the lean step where it has one, else its own forward pass.

The lean step (`sampling/lean.py`) serves the Llama and Qwen families on CPUs, where numba is
installed. Everything else decodes through its own forward pass (`sampling/cache.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import PreTrainedModel

from forethought.machine import describe_machine
from forethought.sampling.cache import SlotCache, decode, row_bytes
from forethought.sampling.products import Weights
from forethought.sampling.rows import Row
from forethought.sampling.stretch import Stretch, Stretches

if TYPE_CHECKING:
    from forethought.sampling.lean import LeanModel
    from forethought.sampling.shared_cache import SharedCache

FAMILIES = frozenset({"llama", "qwen2", "qwen3"})
_STATIC_ROPE = frozenset({"default", "linear", "llama3", "yarn"})
_SHARE_OF_MEMORY = 0.25


class Decoder:
    """Caches and decoding steps of one model, whose weights, dtype and device may change.

    `weights` is the format of the lean step's packed matrices.
    """

    def __init__(self, model: PreTrainedModel, weights: Weights, max_cache_bytes: int) -> None:
        self._model = model
        self._weights: Weights = weights
        self._max_cache_bytes = max_cache_bytes
        self._lean: LeanModel | None = None
        self._packed_of: list[
            tuple[int, int]
        ] = []  # where the weights stood that copies were made of
        self._cache: SlotCache | None = None
        self._stretches: Stretches | None = None

    def open(self, num_rows: int, prompt: int, own: int, columns: int) -> SlotCache | SharedCache:
        """A cache for at most `num_rows` rows, fewer where memory is short: prompts of up to
        `prompt` tokens, completions of up to `own`, together up to `columns`."""
        affordable = self._max_cache_bytes // row_bytes(self._model, columns)
        num_rows = max(1, min(num_rows, affordable))
        self._refresh()
        if self._lean is not None:
            from forethought.sampling.shared_cache import SharedCache

            return SharedCache(self._model, num_rows, prompt, own)
        if self._cache is None or not self._cache.fits(self._model, num_rows, columns):
            self._cache = SlotCache(self._model, num_rows, columns)
        return self._cache

    def _refresh(self) -> None:
        """Look for the lean step anew where weights changed."""
        if not has_lean_step(self._model):
            self._lean = None
            return
        parameters = self._model.parameters()
        versions = [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in parameters]
        if self._lean is None or versions != self._packed_of:
            from forethought.sampling.lean import LeanModel

            weights = self._weights if _can_afford_copies(self._model) else None
            self._lean, self._packed_of = LeanModel.of(self._model, weights), versions

    def step(
        self, cache: SlotCache | SharedCache, token_ids: Sequence[int], lengths: Sequence[int]
    ) -> Tensor:
        """Logits (n, V) behind one more token a live row; row r has lengths[r] before it."""
        if isinstance(cache, SlotCache):
            return decode(self._model, cache, token_ids, lengths)
        assert self._lean is not None, "only a lean model has a shared cache"
        return self._lean.decode(cache, token_ids, lengths)

    def stretch(self, cache: SlotCache | SharedCache, rows: Sequence[Row]) -> Stretch | None:
        """Several tokens more for each live row, where the host would be waited for otherwise and
        need not look at every token; else None."""
        if not self._is_ahead or not isinstance(cache, SlotCache):
            return None
        if any(row.params.top_logprobs or row.params.max_seconds is not None for row in rows):
            return None
        if self._stretches is None or not self._stretches.is_of(cache):
            self._stretches = Stretches(self._model, cache)
        return self._stretches.run(rows)

    @property
    def _is_ahead(self) -> bool:
        return self._model.device.type == "cuda"

    def release(self) -> None:
        """Give back the cache and the packed copies; they are made anew when needed."""
        self._cache, self._lean, self._packed_of = None, None, []
        self._stretches = None


def has_lean_step(model: PreTrainedModel) -> bool:
    """Whether the lean step computes what this model does: its family, full attention, fixed RoPE,
    SwiGLU. And whether it can here: on a CPU, where numba is installed."""
    config: Any = model.config
    base: Any = model.base_model
    rope = getattr(getattr(base, "rotary_emb", None), "rope_type", None)
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return (
        config.model_type in FAMILIES
        and rope in _STATIC_ROPE
        and kinds == {"full_attention"}
        and not getattr(base, "has_sliding_layers", False)
        and config.hidden_act == "silu"
        and model.device.type == "cpu"
        and find_spec("numba") is not None
    )


def _can_afford_copies(model: PreTrainedModel) -> bool:
    """Whether the model is small enough beside the machine's memory to be packed a second time."""
    memory = describe_machine().memory_bytes
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    return memory is None or size <= _SHARE_OF_MEMORY * memory
