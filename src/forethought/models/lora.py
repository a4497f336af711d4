"""Low-rank adapters beside a model's matrices, through peft (Hu et al. 2021, arXiv 2106.09685).

W x becomes W x + alpha / rank * B A x, where only A (rank, in) and B (out, rank) learn. They stand
in the model itself: its class stays, and everything that reaches into it goes on working. Who
samples, and who opens the saved model, gets plain matrices W + alpha / rank * B A. W itself is
never written to: merging and taking it out again would leave rounding behind.

peft is an extra; it is imported where an adapter is made, saved or found.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from forethought.errors import RecipeError
from forethought.models.load import LoadedModel
from forethought.models.save import save_model, staged_folder
from forethought.schema_tables import Lora

if TYPE_CHECKING:
    from peft.tuners.lora import Linear

_NAME = "default"  # as PeftModel calls the adapter that it opens


def require_peft(config: Lora | None) -> None:
    """Raise RecipeError when an adapter is asked for and peft is not installed."""
    if config is None:
        return
    try:
        import peft  # noqa: F401
    except ImportError:
        raise RecipeError(
            f"lora.rank={config.rank} needs peft: pip install 'forethought[lora]', or leave the "
            "table [lora] out"
        ) from None


def adapt(loaded: LoadedModel, config: Lora | None, *, seed: int) -> None:
    """Put an adapter into the model, where one is asked for."""
    if config is not None:
        base = loaded.spec if loaded.folder is None else str(loaded.folder.resolve())
        add_adapter(loaded.model, config, seed=seed, base=base)


def add_adapter(
    model: PreTrainedModel, config: Lora, *, seed: int, base: str | None = None
) -> None:
    """Put an adapter into `model`, in place, and freeze the rest. It changes nothing yet: B is 0.

    A is drawn from `seed`. `base` is the folder or hub id that the saved adapter will name. Raises
    RecipeError when a target is not in the model, or is something other than a linear layer inside
    its blocks.
    """
    from peft import LoraConfig, inject_adapter_in_model

    wanted = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # peft multiplies by it, and no more
        lora_dropout=config.dropout,
        target_modules=config.targets,
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # GPT-2 keeps its matrices transposed: peft sees to it
        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(wanted, model)
        except ValueError as error:
            raise _wrong_targets(config, "are not all in this model") from error
    if not _are_inside_blocks(model):
        raise _wrong_targets(config, "name more than linear layers inside the blocks")


def _wrong_targets(config: Lora, what: str) -> RecipeError:
    return RecipeError(
        f'lora.targets={config.targets!r} {what}; take "all-linear", or names such as "q_proj"'
    )


def _are_inside_blocks(model: PreTrainedModel) -> bool:
    """False where embeddings or head are adapted: many models have one table for both, and merging
    would change the other one too."""
    from peft.tuners.lora import Linear
    from peft.tuners.tuners_utils import BaseTunerLayer

    caller: Any = model  # transformers' own annotations are in the way
    found = [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
    head = caller.get_output_embeddings()
    return all(isinstance(layer, Linear) and layer is not head for layer in found)


def adapted_layers(model: PreTrainedModel) -> dict[str, Linear]:
    """The layers with an adapter by name, none in a model without."""
    if not hasattr(model, "peft_config"):
        return {}
    from peft.tuners.lora import Linear

    return {name: layer for name, layer in model.named_modules() if isinstance(layer, Linear)}


@torch.no_grad()
def plain_parameters(model: PreTrainedModel) -> Iterator[Tensor]:
    """The parameters of the same model without adapters, in its order.

    Merged anew where there is an adapter, the model's very own elsewhere.
    """
    layers = adapted_layers(model).values()
    adapters = {id(p) for layer in layers for p in _adapter_parameters(layer)}
    merged = {id(layer.base_layer.weight): layer for layer in layers}
    for parameter in model.parameters():
        if id(parameter) in merged:
            yield parameter + merged[id(parameter)].get_delta_weight(_NAME)
        elif id(parameter) not in adapters:
            yield parameter


def _adapter_parameters(layer: Linear) -> Iterator[nn.Parameter]:
    yield from layer.lora_A.parameters()
    yield from layer.lora_B.parameters()


@torch.no_grad()
def plain_copy(model: PreTrainedModel, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The same model without adapters, what they learned merged in.

    In `dtype`; in the model's own, it shares every parameter that has no adapter with `model`.
    """
    layers = adapted_layers(model)
    matrices = {id(layer.base_layer.weight) for layer in layers.values()}
    is_shared = bool(layers) and dtype in (None, model.dtype)
    shared = [p for p in model.parameters() if is_shared and id(p) not in matrices]
    plain: Any = copy.deepcopy(model, {id(p): p for p in shared})
    for name, layer in adapted_layers(plain).items():
        plain.set_submodule(name, layer.base_layer)
    if layers:
        del plain.peft_config
    for mine, merged in zip(plain.parameters(), plain_parameters(model), strict=True):
        if mine is not merged:
            mine.copy_(merged)
    made: PreTrainedModel = plain if dtype is None else plain.to(dtype)
    return made


@contextmanager
def without_adapter(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """`model` as it was before its adapter, inside the block: the reference for a KL penalty."""
    layers = adapted_layers(model).values()
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield model
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def save_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Write what `peft.PeftModel.from_pretrained(base_model, folder)` opens, all or nothing.

    Raises ModelError.
    """
    from peft.utils.save_and_load import get_peft_model_state_dict
    from safetensors.torch import save_file

    caller: Any = model
    config = copy.copy(caller.peft_config[_NAME])
    config.inference_mode = True
    config.target_modules = sorted(config.target_modules)
    state = get_peft_model_state_dict(model, adapter_name=_NAME)
    # as a PeftModel names them, which stands around the model
    weights = {f"base_model.model.{name}": t.contiguous() for name, t in state.items()}
    with staged_folder(folder) as staging:
        config.save_pretrained(str(staging))
        save_file(weights, staging / "adapter_model.safetensors", metadata={"format": "pt"})


def save_result(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write what a stage trained into its run folder.

    `adapter/` where that was one, then `model/`, with the adapter merged in. Raises ModelError.
    """
    if adapted_layers(model):
        save_adapter(model, folder / "adapter")
        model = plain_copy(model)
    save_model(model, tokenizer, folder / "model")
