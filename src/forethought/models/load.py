"""Loading any Hugging Face causal language model, ready to sample: the one door for models.

torch and transformers are imported on first use; `resolve` needs neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from forethought.errors import ModelError
from forethought.models.hub import hub_reachable
from forethought.models.quiet import quiet_transformers
from forethought.models.resolve import read_config, resolve
from forethought.models.save import DTYPES

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "LoadedModel",
    "answer_greedily",
    "context_of",
    "load_model",
    "load_tokenizer",
    "pick_device",
    "resolve",
]

# For base models without a template of their own: each message on its own line, the end token
# after every assistant turn, nothing to open the assistant's turn.
PLAIN_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% if message['role'] != 'assistant' or not loop.last %}{{ '\n' }}{% endif %}"
    "{% endfor %}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model in eval mode and its tokenizer, which has an end token, a pad token and a template.

    `folder` is where it came from, None for a hub id. The pad token may be the end token: never
    find padding by comparing ids.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    spec: str
    folder: Path | None


def load_model(spec: str, *, dtype: str = "float32", device: str | None = None) -> LoadedModel:
    """Load the causal language model that `spec` names (see `resolve`) onto one device.

    `dtype` is "float32", "bfloat16" or "float16", `device` a torch device such as "cpu" or
    "cuda:0", by default `pick_device()`. Code shipped with a model is never run. Raises ModelError
    when the spec, dtype or device is wrong, the hub cannot be reached, or the files are incomplete,
    broken, or not a causal language model.
    """
    source = resolve(spec)
    if dtype not in DTYPES:
        raise ModelError(f"dtype {dtype!r} is unknown: choose one of {', '.join(DTYPES)}.")
    device = checked_device(device)
    folder = source if isinstance(source, Path) else None
    if folder is not None:
        require_causal(folder)
    model: Any = load_weights(source, dtype)  # transformers' own annotations are in the way
    tokenizer = load_tokenizer(source, config=model.config)
    require_matching(model, tokenizer, spec)
    model.to(device)
    return LoadedModel(model=model.eval(), tokenizer=tokenizer, spec=spec, folder=folder)


def require_matching(model: Any, tokenizer: PreTrainedTokenizerBase, spec: str) -> None:
    """Raise ModelError when the tokenizer has ids that the model has no embedding for."""
    rows, tokens = model.get_input_embeddings().weight.shape[0], len(tokenizer)
    if tokens > rows:
        raise ModelError(
            f"model {spec!r} has {rows} embeddings but its tokenizer has {tokens} tokens: "
            "give a folder whose tokenizer belongs to its weights."
        )


def context_of(model: PreTrainedModel) -> int | None:
    """The positions a model was made for, in tokens; None where its config sets no limit."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return None if context is None else int(context)


def pick_device() -> str:
    """The fastest kind of device this machine has: "cuda", "mps" or "cpu"."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def checked_device(device: str | None) -> str:
    """`device`, or the best one; raises ModelError when this machine does not have it."""
    if device is None:
        return pick_device()
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ModelError(
            f"device {device!r} cannot be used here: use {pick_device()!r}, or leave it out."
        ) from error
    return device


def require_causal(folder: Path) -> None:
    """Raise ModelError when the config is that of an encoder, a classifier or unknown."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    config = read_config(folder)
    kind, names = str(config["model_type"]), config.get("architectures") or []
    known = set(CAUSAL.values())
    if kind not in CAUSAL or (names and known.isdisjoint(names)):
        what = names[0] if names else kind
        raise ModelError(
            f"model folder {folder} holds {what}, not a causal language model: "
            "give a model saved as ...ForCausalLM."
        )


def load_weights(source: Path | str, dtype: str) -> PreTrainedModel:
    """The model on the CPU; raises ModelError when it cannot be read or tensors are missing."""
    import torch
    from transformers import AutoModelForCausalLM

    auto: Any = AutoModelForCausalLM  # its annotations do not know output_loading_info
    try:
        with quiet_transformers():
            model, report = auto.from_pretrained(
                source,
                dtype=getattr(torch, dtype),
                trust_remote_code=False,
                output_loading_info=True,
                local_files_only=only_local(source),
            )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise load_failure(source, error) from error
    # transformers would fill the gaps with random numbers and go on.
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"the weights of model {str(source)!r} lack {len(missing)} tensors, such as "
            f"{missing[0]}: give the complete model."
        )
    loaded: PreTrainedModel = model
    return loaded


def load_tokenizer(source: Path | str, *, config: Any = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder or hub id, completed so that every caller can rely on it.

    An end token missing from the tokenizer is taken from the model's `config`; a missing pad token
    becomes the end token; a missing chat template becomes PLAIN_CHAT_TEMPLATE. Raises ModelError
    when it cannot be read or no end token is known.
    """
    from transformers import AutoTokenizer

    try:
        with quiet_transformers():
            loaded = AutoTokenizer.from_pretrained(
                source, trust_remote_code=False, local_files_only=only_local(source)
            )
    except Exception as error:  # the tokenizers library raises bare Exception on a broken file
        raise load_failure(source, error, part="tokenizer") from error
    tokenizer: PreTrainedTokenizerBase = loaded
    complete_special_tokens(tokenizer, config, source)
    if not tokenizer.chat_template:
        tokenizer.chat_template = plain_template_for(tokenizer)
    return tokenizer


def complete_special_tokens(
    tokenizer: PreTrainedTokenizerBase, config: Any, source: Path | str
) -> None:
    """Give `tokenizer` an end and a pad token in place; raises ModelError when none is known."""
    if tokenizer.eos_token is None:
        end = getattr(config, "eos_token_id", None)
        end = end[0] if isinstance(end, list) and end else end
        if not isinstance(end, int):
            raise ModelError(
                f"the tokenizer of model {str(source)!r} has no end token: set eos_token in its "
                "tokenizer_config.json."
            )
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token


def plain_template_for(tokenizer: PreTrainedTokenizerBase) -> str:
    """PLAIN_CHAT_TEMPLATE, opened by the begin token where the tokenizer itself would add it."""
    ids = tokenizer("a")["input_ids"]
    adds_begin = tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]
    return ("{{ bos_token }}" if adds_begin else "") + PLAIN_CHAT_TEMPLATE


def only_local(source: Path | str) -> bool:
    """True for a folder, and for a hub id when only a copy in the hub's cache can be had."""
    return isinstance(source, Path) or not hub_reachable()


def load_failure(source: Path | str, error: Exception, part: str = "model") -> ModelError:
    """One sentence with the fix, which differs between a folder and the hub."""
    sentence = " ".join(str(error).split()).split(". ")[0]
    reason = sentence[:160].rstrip(". ") or type(error).__name__
    if isinstance(source, Path):
        return ModelError(
            f"the {part} in folder {source} cannot be loaded ({reason}): give a complete folder "
            "saved by save_pretrained."
        )
    return ModelError(
        f"the {part} {source!r} cannot be had from the hub ({reason}): check the name and the "
        "network, or give a local folder."
    )


def answer_greedily(loaded: LoadedModel, question: str, *, max_tokens: int = 48) -> str:
    """The model's greedy answer to one user message, special tokens left out: a proof of life."""
    import torch

    model: Any = loaded.model  # transformers' own annotations are in the way
    tokenizer: Any = loaded.tokenizer
    batch = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    ).to(model.device)
    with torch.inference_mode(), quiet_transformers():
        ids = model.generate(
            **batch,
            max_new_tokens=max_tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )
    new_ids = ids[0, batch["input_ids"].shape[1] :]
    return str(tokenizer.decode(new_ids, skip_special_tokens=True)).strip()
