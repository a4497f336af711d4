"""Which way a model decodes: a leaner step where it has one, else its own forward pass.

For the Llama and Qwen families there is a lean step on CPUs where numba is installed
(`sampling/lean.py`), and a fused one on CUDA, with Triton (`sampling/fused.py`). Everything else
decodes through its own forward pass (`sampling/cache.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from forethought.machine import describe_machine
from forethought.models.precision import compute_in, wide_attention
from forethought.sampling.cache import Prefill, SlotCache, decode, prefill, row_bytes
from forethought.sampling.fused import FusedModel, Kernels, can_fuse, try_kernels
from forethought.sampling.products import Weights
from forethought.sampling.rows import Row
from forethought.sampling.stretch import Stretch, Stretches

if TYPE_CHECKING:
    from forethought.sampling.lean import LeanModel
    from forethought.sampling.shared_cache import Prompt, Read, SharedCache

logger = logging.getLogger("forethought")

FAMILIES = frozenset({"llama", "qwen2", "qwen3"})
_STATIC_ROPE = frozenset({"default", "linear", "llama3", "yarn"})
_SHARE_OF_MEMORY = 0.25
_SHARE_TO_KEEP = 0.5
_NUMBERS_EACH = 16  # of a parameter's, to see whether it has changed
Marks = tuple[list[tuple[int, int]], list[float]]


class Decoder:
    """Caches and decoding steps of one model, whose weights, dtype and device may change.

    `weights` is the format of the lean step's packed matrices.
    """

    def __init__(self, model: PreTrainedModel, weights: Weights, max_cache_bytes: int) -> None:
        self._model = model
        self._weights: Weights = weights
        self._max_cache_bytes = max_cache_bytes
        self._lean: LeanModel | None = None
        self._packed_of: Marks | None = None  # of the weights that copies were made of
        self._fused: FusedModel | None = None
        self._cache: SlotCache | None = None
        self._stretches: Stretches | None = None

    def open(self, num_rows: int, prompt: int, own: int, columns: int) -> SlotCache | SharedCache:
        """A cache for at most `num_rows` rows, fewer where memory is short: prompts of up to
        `prompt` tokens, completions of up to `own`, together up to `columns`."""
        self._refresh()
        lean = self._lean
        dtype = self._model.dtype if lean is None else lean.cache_dtype
        affordable = self._max_cache_bytes // row_bytes(self._model, columns, dtype)
        num_rows = max(1, min(num_rows, affordable))
        if self._lean is not None:
            from forethought.sampling.shared_cache import SharedCache

            return SharedCache(self._model, num_rows, prompt, own, self._lean.cache_form)
        if self._cache is None or not self._cache.fits(self._model, num_rows, columns):
            self._cache = SlotCache(self._model, num_rows, columns)
        if self._stretches is not None and not self._stretches.is_of(self._cache):
            self._stretches = None
        return self._cache

    def _refresh(self) -> None:
        """Look for the leaner steps anew where weights changed."""
        kernels = fused_kernels(self._model)
        if self._fused is not None and (kernels is None or not self._fused.is_whole):
            self._fused, self._stretches = None, None
        if self._fused is None and kernels is not None:
            self._fused, self._stretches = FusedModel(self._model, kernels), None
        if not has_lean_step(self._model):
            self._lean = None
            return
        marks = marks_of(self._model)
        if self._lean is None or marks != self._packed_of:
            from forethought.sampling.lean import LeanModel

            weights = self._weights if _can_afford_copies(self._model) else None
            self._lean, self._packed_of = LeanModel.of(self._model, weights), marks

    def prefill(self, prompts: Sequence[Prompt], dtype: torch.dtype) -> Sequence[Prefill | Read]:
        """Read the prompts; where the model's own forward pass does it, under autocast to
        `dtype`."""
        if self._lean is not None and self._lean.reads:
            return self._lean.prefill(prompts)
        with compute_in(str(self._model.device), dtype), wide_attention():
            return prefill(self._model, prompts)

    def step(
        self, cache: SlotCache | SharedCache, token_ids: Sequence[int], lengths: Sequence[int]
    ) -> Tensor:
        """Logits (n, V) behind one more token a live row; row r has lengths[r] before it."""
        if isinstance(cache, SlotCache) and self._fused is not None:
            tensors = self._tensor(token_ids), self._tensor(lengths)
            with self._device_guard():
                return self._fused.decode(cache, *tensors)
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
        if self._stretches is None or self._stretches.cache is not cache:
            self._stretches = Stretches(self._model, cache, self._fused)
        with self._device_guard():
            return self._stretches.run(rows)

    def _tensor(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, device=self._model.device)

    def _device_guard(self) -> AbstractContextManager[object]:
        """Triton and graphs go by the current device, not by that of their tensors."""
        device = self._model.device
        return torch.cuda.device(device) if device.type == "cuda" else nullcontext()

    @property
    def _is_ahead(self) -> bool:
        return self._model.device.type == "cuda"

    def release(self, *, can_keep: bool = False) -> None:
        """Give back the cache and the packed copies; they are made anew when needed. With
        `can_keep`, a GPU with memory to spare keeps its cache, over which the step was captured."""
        if can_keep and self._is_ahead and _has_room(self._model.device):
            return
        self.clear()

    def drop_copies(self) -> None:
        """The weights have changed: what was made of them is made anew."""
        self._lean = None

    def clear(self) -> None:
        """Give back everything, whatever it takes to make it anew."""
        self._cache, self._lean, self._packed_of = None, None, None
        self._fused, self._stretches = None, None


@torch.no_grad()
def marks_of(model: PreTrainedModel) -> Marks:
    """By what weights are recognised: where they stand, how often torch saw them change, and a few
    numbers of each, as torch's fused optimizers change them unseen."""
    parameters = list(model.parameters())
    few = [p.reshape(-1)[:: max(1, p.numel() // _NUMBERS_EACH)].float() for p in parameters]
    places = [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in parameters]
    return places, torch.cat(few).tolist()


def has_lean_step(model: PreTrainedModel) -> bool:
    """Whether the lean step can be taken here: a known model, on a CPU, with numba."""
    return _is_known(model) and model.device.type == "cpu" and find_spec("numba") is not None


def fused_kernels(model: PreTrainedModel) -> Kernels | None:
    """The kernels of the fused step, None where it cannot be taken: it needs a known model of plain
    layers, on CUDA, and a Triton that works."""
    if model.device.type != "cuda" or find_spec("triton") is None:
        return None
    if not _is_known(model) or not can_fuse(model):
        return None
    return _working_kernels(model.device, model.dtype)


@cache
def _working_kernels(device: torch.device, dtype: torch.dtype) -> Kernels | None:
    """Triton's kernels, tried out once: it builds its launcher with the machine's C compiler, and
    an old GPU may lack what they need."""
    try:
        from forethought.sampling import triton_kernels

        kernels: Any = triton_kernels
        with torch.cuda.device(device):
            try_kernels(kernels, device, dtype)
    except Exception as error:  # whatever a compiler says
        logger.warning("decoding without Triton, which is slower: %s", str(error)[:200])
        return None
    return kernels  # type: ignore[no-any-return]


def _is_known(model: PreTrainedModel) -> bool:
    """Whether the leaner steps compute what this model does: its family, full attention, fixed
    RoPE, SwiGLU."""
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
    )


def _has_room(device: torch.device) -> bool:
    """Whether more than half of the GPU's memory is free, beside what torch holds of it."""
    free, total = torch.cuda.mem_get_info(device)
    return free > _SHARE_TO_KEEP * total


def _can_afford_copies(model: PreTrainedModel) -> bool:
    """Whether the model is small enough beside the machine's memory to be packed a second time."""
    memory = describe_machine().memory_bytes
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    return memory is None or size <= _SHARE_OF_MEMORY * memory
