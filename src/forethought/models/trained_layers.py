"""Which of a model's own weights learn: all, or those of its last layers.

A layer that does not learn has no gradient, no optimizer state and keeps nothing for the backward
pass, which ends where the first that learns begins.
"""

from __future__ import annotations

from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel

from forethought.errors import RecipeError


def train_last(model: PreTrainedModel, count: int | None) -> None:
    """Freeze `model`, in place, but for its last `count` layers and the norm behind them; None
    freezes nothing. Embeddings and head, which are often one table, stay as they are.

    Raises RecipeError when the model has fewer layers, or none that can be told apart.
    """
    if count is None:
        return
    layers = layers_of(model)
    if layers is None:
        raise RecipeError(
            f"trained_layers={count} is not for a {type(model).__name__}, whose layers cannot be"
            " told apart; leave it out to train every weight"
        )
    if count > len(layers):
        raise RecipeError(
            f"trained_layers={count} is more than the {len(layers)} layers of this model; lower it,"
            " or leave it out to train every weight"
        )
    model.requires_grad_(False)
    base: Any = model.base_model
    children = list(base.children())
    behind = children[children.index(layers) + 1 :] if layers in children else []
    for module in [*layers[-count:], *behind]:
        module.requires_grad_(True)


def layers_of(model: PreTrainedModel) -> nn.ModuleList | None:
    """The layers of the model, first to last; None where they cannot be told apart."""
    count = model.config.get_text_config().num_hidden_layers
    base: Any = model.base_model
    for module in base.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    return None


def num_kept(model: PreTrainedModel) -> int:
    """Layers that keep numbers for the backward pass: from the first that learns on."""
    layers, caller = layers_of(model), cast("Any", model)
    if layers is None or caller.get_input_embeddings().weight.requires_grad:
        return int(model.config.get_text_config().num_hidden_layers)
    learning = [any(p.requires_grad for p in layer.parameters()) for layer in layers]
    return len(layers) - learning.index(True) if True in learning else 0
