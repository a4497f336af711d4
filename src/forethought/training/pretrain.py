"""Pretraining a small Llama from nothing on generated text."""

from __future__ import annotations

from random import Random
from typing import Any

from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from forethought.models.load import pick_device
from forethought.models.save import save_model
from forethought.models.tiny import build_model, train_tokenizer
from forethought.run import Run
from forethought.schema import PretrainRecipe
from forethought.tasks.base import FAMILIES
from forethought.tasks.traces import draw_document
from forethought.training.card import model_card
from forethought.training.checkpoint import settled_dtypes
from forethought.training.health import watched
from forethought.training.loop import Metrics, OnStep, run_steps
from forethought.training.supervised import supervised_step
from forethought.training.text import build_mixture, generated_rows
from forethought.training.update import build_optimizers

_TOKENIZER_DOCUMENTS = 4_000


def run_pretrain(recipe: PretrainRecipe, run: Run, on_step: OnStep | None = None) -> Metrics:
    """Make the tokenizer and the model, train, and save `model/` (bf16) in the run folder."""
    tokenizer = make_tokenizer(recipe)
    model = make_model(recipe, tokenizer)
    dtype = settled_dtypes(run, recipe.dtype, str(model.device))["training"]
    optimizers = build_optimizers(model, recipe.optimizer)
    rows_at = generated_rows(
        recipe.mixture,
        tokenizer,
        seed=recipe.seed,
        prompt_weight=recipe.prompt_weight,
        context=recipe.architecture.max_context,
        enough=lambda rows: sum(len(r.token_ids) for r in rows) >= recipe.tokens_per_step,
    )

    def step_function(step: int) -> Metrics:
        return supervised_step(
            model,
            optimizers,
            rows_at(step),
            recipe.optimizer,
            run=run,
            step=step,
            num_steps=recipe.num_steps,
            max_batch_tokens=recipe.max_batch_tokens,
            pad_id=tokenizer.pad_token_id,
            dtype=dtype,
        )

    totals = run_steps(
        run,
        model,
        optimizers,
        step_function,
        num_steps=recipe.num_steps,
        checkpoint_every=recipe.checkpoint_every,
        on_step=watched(run, recipe, on_step),
    )
    card = model_card(recipe, run, model, totals)
    target = run.folder / "model"
    run.guard("model", lambda: save_model(model, tokenizer, target, dtype="bfloat16", card=card))
    return totals


def make_tokenizer(recipe: PretrainRecipe) -> PreTrainedTokenizerFast:
    """The tokenizer of the recipe's mixture; a pure function of recipe and seed."""
    mixture = build_mixture(recipe.mixture)
    rng = Random(f"{recipe.seed}/tokenizer")
    documents = [draw_document(mixture, FAMILIES, rng) for _ in range(_TOKENIZER_DOCUMENTS)]
    texts = [text for d in documents for text in (d.prompt, d.completion)]
    tokenizer = train_tokenizer(texts, recipe.architecture.vocab_size)
    tokenizer.model_max_length = recipe.architecture.max_context
    return tokenizer


def make_model(recipe: PretrainRecipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The recipe's model with random weights, on the best device."""
    shape = recipe.architecture
    model: Any = build_model(
        tokenizer,
        hidden_size=shape.hidden_size,
        num_layers=shape.num_layers,
        num_heads=shape.num_heads,
        intermediate_size=shape.intermediate_size,
        max_context=shape.max_context,
        seed=recipe.seed,
    )
    made: LlamaForCausalLM = model.to(pick_device())
    return made
