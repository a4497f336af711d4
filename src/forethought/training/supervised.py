"""Next-token prediction on rows of tokens: the step that pretraining and SFT share."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from forethought.models.precision import compute_in, keep_casts
from forethought.models.threads import fit_threads
from forethought.run import Run
from forethought.schema_tables import Optimizer
from forethought.tasks.traces import Document
from forethought.training.batch import batch_logprobs, flat_step, pack_batches
from forethought.training.faults import Fault, describe_rows, fault_of_loss, report_fault
from forethought.training.loop import Metrics
from forethought.training.strips import Row
from forethought.training.update import Optimizers, apply_update


def supervised_step(
    model: PreTrainedModel,
    optimizers: Optimizers,
    rows: Sequence[Row],
    config: Optimizer,
    *,
    run: Run,
    step: int,
    num_steps: int,
    max_batch_tokens: int,
    pad_id: int,
    dtype: torch.dtype,
) -> Metrics:
    """One update on `rows`: the weighted mean of -log p(token), in nats, over all of them."""
    began = time.perf_counter()
    model.train()
    total_weight = sum(sum(row.weights[1:]) for row in rows)
    loss, num_tokens, num_cells = 0.0, 0, 0
    fault: Fault | None = None
    device = str(model.device)
    batches = pack_batches(
        rows,
        max_batch_tokens=max_batch_tokens,
        pad_id=pad_id,
        device=device,
        flat_step=flat_step(model, dtype),
    )
    with keep_casts(device, dtype):
        for number, batch in enumerate(batches):
            fit_threads()
            with compute_in(device, dtype):
                logprobs = batch_logprobs(model, batch)
            batch_loss = -(logprobs * batch.weights).sum() / total_weight
            loss += batch_loss.item()
            num_tokens += batch.num_tokens
            num_cells += batch.input_ids.numel()
            fault = fault_of_loss(batch_loss, logprobs, batch, number)
            if fault is not None:
                break
            batch_loss.backward()  # type: ignore[no-untyped-call]
    update = apply_update(model, optimizers, config, step - 1, num_steps, is_sound=fault is None)
    if update.skipped:
        fault = fault or Fault(cause="gradient", parameters=update.bad_parameters)
        report_fault(run, step, fault, describe_rows(rows))
    return {
        "loss/mean": loss,
        "loss/perplexity": math.exp(min(loss, 50.0)),
        "data/padding_frac": 1 - num_tokens / num_cells,
        "data/tokens_per_second": num_tokens / (time.perf_counter() - began),
        "total/tokens": float(num_tokens),
        "total/documents": float(len(rows)),
    } | update.metrics()


def encode_documents(
    tokenizer: PreTrainedTokenizerBase, documents: Sequence[Document], prompt_weight: float
) -> list[Row]:
    """Rows of prompt and completion tokens; the completion ends with the end token.

    Prompt and completion are encoded apart, as at sampling time, so that the boundary between
    them is always one between tokens.
    """
    template = _chat_wrapper(tokenizer)
    prompts = tokenizer([template(d.prompt) for d in documents], add_special_tokens=False)
    completions = tokenizer([d.completion for d in documents], add_special_tokens=False)
    rows = []
    for prompt, completion in zip(prompts["input_ids"], completions["input_ids"], strict=True):
        ending = [*completion, tokenizer.eos_token_id]
        weights = [prompt_weight] * len(prompt) + [1.0] * len(ending)
        rows.append(Row(token_ids=[*prompt, *ending], weights=weights))
    return rows


def _chat_wrapper(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], str]:
    """The chat template around one user message, rendered once: templates are slow."""
    hole = "@@question@@"
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": hole}], tokenize=False, add_generation_prompt=True
    )
    before, after = str(rendered).split(hole)
    return lambda question: f"{before}{question}{after}"
