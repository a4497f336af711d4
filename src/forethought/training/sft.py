"""Supervised fine-tuning on worked traces: the cold start before reinforcement learning."""

from __future__ import annotations

from pathlib import Path

from forethought.models.load import context_of, load_model
from forethought.models.lora import adapt, require_peft, save_result
from forethought.models.trained_layers import train_last
from forethought.run import Run
from forethought.sampling.draw import stable_seed
from forethought.schema import SftRecipe
from forethought.tasks.traces import Document
from forethought.training.checkpoint import settled_dtypes
from forethought.training.health import watched
from forethought.training.loop import Metrics, OnStep, run_steps
from forethought.training.supervised import supervised_step
from forethought.training.text import build_mixture, file_rows, generated_rows, read_documents
from forethought.training.update import build_optimizers


def run_sft(recipe: SftRecipe, run: Run, on_step: OnStep | None = None) -> Metrics:
    """Train on completions only (prompts carry no loss) and save `model/` in the run folder.

    Raises RecipeError before any model loads when the mixture or the data file is wrong.
    """
    documents = check_sft(recipe)
    loaded = load_model(recipe.model, dtype="float32")
    model, tokenizer = loaded.model, loaded.tokenizer
    adapt(loaded, recipe.lora, seed=stable_seed("lora", recipe.seed))
    train_last(model, recipe.trained_layers)
    dtype = settled_dtypes(run, recipe.dtype, str(model.device))["training"]
    optimizers = build_optimizers(model, recipe.optimizer)
    context = context_of(model)
    if recipe.mixture is not None:
        rows_at = generated_rows(
            recipe.mixture,
            tokenizer,
            seed=recipe.seed,
            prompt_weight=0.0,
            context=context,
            enough=lambda rows: len(rows) >= recipe.traces_per_step,
        )
    else:
        rows_at = file_rows(
            documents,
            tokenizer,
            seed=recipe.seed,
            count=recipe.traces_per_step,
            context=context,
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
    run.guard("model", lambda: save_result(model, tokenizer, run.folder))
    return totals


def check_sft(recipe: SftRecipe) -> list[Document]:
    """The documents of the recipe's data file, none for a mixture. Raises RecipeError."""
    require_peft(recipe.lora)
    if recipe.mixture is not None:
        build_mixture(recipe.mixture)
        return []
    assert recipe.data is not None, "the recipe holds exactly one source"
    return read_documents(Path(recipe.data))
