"""Layers of the Llama and Qwen families with one compiled pass between two matrix products.

The model is transformers' own. For the time of a training pass on a CPU three kinds of modules have
another `forward`: norms and MLPs do in one pass what torch does in many (`training/passes.py`), and
attention turns its queries and keys and works out the pairs that a strip lets through, and no
others (`training/strip_attention.py`). Each has its own gradient and keeps less for it than torch's
operations do. Their products are torch's; where they are by AMX our own, whole layers go by two
operations each (`training/block_functions.py`), unless someone listens to a part of one. A table
of embeddings that is the head's as well adds its few rows to the head's gradient instead of making
another of that size, most of it zeros.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from forethought.sampling.decoder import has_lean_step

Lengths = Sequence[int]  # of a strip's prompt and of its completions
Forward = tuple[nn.Module, Any]
_LARGE_VOCABULARY = 4096


@contextmanager
def lean_layers(
    model: PreTrainedModel, pieces: Sequence[Lengths], starts: Sequence[int]
) -> Iterator[bool]:
    """Where the model can, let its layers take their compiled passes; strip b of a batch consists
    of pieces[b], and of padding up to the cell where the next one starts. Yields whether attention
    goes by that in all layers, so that no mask is read."""
    knows_pieces = has_lean_attention(model)
    forwards = _forwards(model, pieces, starts)
    for module, forward in forwards:
        module.__dict__["forward"] = forward
    try:
        yield knows_pieces
    finally:
        for module, _ in forwards:
            del module.__dict__["forward"]


def has_lean_attention(model: PreTrainedModel) -> bool:
    """Whether attention takes its compiled pass in all layers of a model that is transformers' own,
    so that a strip is read as it is meant."""
    base: Any = model.base_model
    if not _is_lean(model) or not _is_untouched(base):
        return False
    return all(_is_plain_attention(layer.self_attn) for layer in base.layers)


def lean_head(model: PreTrainedModel) -> Any | None:
    """The head's log-probabilities as an autograd function, where the model's layers are lean and
    its vocabulary is not so small that a few of torch's operations take no longer."""
    if not _is_lean(model) or model.config.get_text_config().vocab_size < _LARGE_VOCABULARY:
        return None
    from forethought.training.lean_head import LeanHead

    return LeanHead


def _is_lean(model: PreTrainedModel) -> bool:
    is_cast = torch.is_autocast_enabled("cpu")
    if is_cast and torch.get_autocast_dtype("cpu") != torch.bfloat16:
        return False
    if not has_lean_step(model) or model.dtype != torch.float32:
        return False
    base: Any = model.base_model  # a layer that is read anew on the way back would be another then
    return not any(getattr(layer, "gradient_checkpointing", False) for layer in base.layers)


def _forwards(
    model: PreTrainedModel, pieces: Sequence[Lengths], starts: Sequence[int]
) -> list[Forward]:
    if not _is_lean(model):
        return []
    from forethought.training.block_functions import layer_of
    from forethought.training.lean_functions import attend_in, layout_of, mlp_of, norm_of

    base: Any = model.base_model
    layout = layout_of(pieces, starts)
    found: list[Forward] = []
    table = base.get_input_embeddings()
    if _is_tied(model, table):
        found.append((table, partial(_look_up, table)))
    for layer in base.layers:
        if _goes_by_blocks(layer):
            found.append((layer, partial(layer_of, layout, layer)))
            continue
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            found.append((norm, partial(norm_of, norm)))
        found.append((layer.mlp, partial(mlp_of, layer.mlp)))
        if _is_plain_attention(layer.self_attn):
            found.append((layer.self_attn, partial(attend_in, layout, layer.self_attn)))
    return [pair for pair in found if _is_untouched(pair[0])]


def _goes_by_blocks(layer: Any) -> bool:
    from forethought.training.block_functions import is_whole

    parts = layer, layer.mlp, layer.input_layernorm, layer.post_attention_layernorm
    is_known = all(map(_is_untouched, parts)) and _is_plain_attention(layer.self_attn)
    return torch.is_autocast_enabled("cpu") and is_known and is_whole(layer)


def _is_tied(model: Any, table: nn.Module) -> bool:
    head = model.get_output_embeddings()
    is_plain = type(table) is nn.Embedding and not (table.max_norm or table.scale_grad_by_freq)
    return is_plain and head is not None and head.weight is table.weight


def _look_up(table: nn.Embedding, ids: Tensor) -> Tensor:
    return F.embedding(ids, table.weight, table.padding_idx, sparse=True)


def _is_untouched(module: nn.Module) -> bool:
    is_known = type(module).__module__.startswith("transformers.models.")
    return (is_known or type(module) is nn.Embedding) and "forward" not in vars(module)


def _is_plain_attention(attention: Any) -> bool:
    """Whether queries and keys are turned as they come, and nothing is dropped."""
    has_norms = hasattr(attention, "q_norm")
    drops = attention.training and attention.attention_dropout > 0
    is_sdpa = attention.config._attn_implementation == "sdpa"
    return is_sdpa and not has_norms and not drops and _is_untouched(attention)
