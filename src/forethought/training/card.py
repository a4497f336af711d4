"""The README.md that travels with a pretrained model: how it was made, and on what."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from statistics import fmean

from transformers import PreTrainedModel

from forethought.run import Run
from forethought.schema import PretrainRecipe

_LAST_STEPS = 50


def model_card(
    recipe: PretrainRecipe, run: Run, model: PreTrainedModel, totals: Mapping[str, float]
) -> str:
    """Markdown made from the recipe and from what the run recorded."""
    rows = [row for row in run.metrics() if row.get("loss/mean") is not None]
    loss = fmean([row["loss/mean"] for row in rows[-_LAST_STEPS:]] or [math.nan])
    minutes = sum(row["time/step_seconds"] for row in rows) / 60
    config, machine = model.config, run.info["machine"]
    families = ", ".join(
        f"{n} {_share(w, recipe.mixture.families)}" for n, w in recipe.mixture.families.items()
    )
    writers = ", ".join(
        f"{n} {_share(w, recipe.mixture.writers)}" for n, w in recipe.mixture.writers.items()
    )
    quality = recipe.mixture.quality
    num_last = min(_LAST_STEPS, len(rows))
    tokens, documents = (totals.get(f"total/{name}", 0) for name in ("tokens", "documents"))
    packages = ", ".join(
        f"{name} {run.info['versions'].get(name)}"
        for name in ("torch", "transformers", "forethought")
    )
    command = shlex.join(["forethought", *run.info["command"][1:]])
    return f"""# {recipe.name or "A model"} (pretrained by Forethought)

A Llama of {model.num_parameters():,} parameters: {config.num_hidden_layers} layers,
width {config.hidden_size}, {config.num_attention_heads} heads, vocabulary {config.vocab_size},
context {config.max_position_embeddings}, tied embeddings. Apache-2.0.

## How it was made

| | |
|---|---|
| command | `{command}` (stage pretrain, seed {recipe.seed}) |
| steps | {recipe.num_steps:,} of about {recipe.tokens_per_step:,} tokens |
| tokens | {tokens:,.0f} in {documents:,.0f} documents |
| loss | {loss:.4f} nats a token, last {num_last} steps (prompts weigh {recipe.prompt_weight}) |
| time | {minutes:.0f} minutes of steps on {machine["num_cores"]} cores ({machine["cpu"]}) |
| versions | {packages} |

## On what

Nothing but generated text (`forethought.tasks`). Families: {families}. Writers: {writers}
(`direct` is an answer alone, `distracted` has an irrelevant sentence, `rewrite` removes it).
Of the worked traces a step slips with probability {quality.slip_rate}; {quality.early_stop:.0%} of
the traces stop early, {quality.skip_steps:.0%} skip a step, {quality.verbose:.0%} are wordy; of the
direct answers {quality.hasty:.0%} leave the last step out. A
tenth of all problems, chosen by a hash of their content, are test problems and never occur.

## What it can and cannot do

It answers problems like those above, in the format above, in English, and nothing else: it holds no
knowledge and no conversation. How often it is right, `forethought eval --model` measures.
"""


def _share(weight: float, weights: Mapping[str, float]) -> str:
    return f"{weight / sum(weights.values()):.0%}"
