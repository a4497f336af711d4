"""How far rollouts from packed weights are from the policy that learns, in nats a token.

    python bench/bench_gap.py

Completions of 16 problems x 4 siblings, at most 48 tokens, sampled with weights in float32,
float16, int8 and, on a processor that has it, bfloat16; the log-probability that the sampler
recorded for each token against the one that the update computes, in float32 or, for bfloat16, as it
would there. Also the share of tokens whose ratio is above importance_cap's 2. Writes
docs/results/gap.json, gap_bf16.json on such a processor, gap_amx.json with AMX.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

from device import is_bf16, name_here
from forethought.models.load import load_model
from forethought.models.precision import compute_in
from forethought.sampling.local import LocalEngine
from forethought.tasks.base import load_task
from forethought.training.batch import batch_logprobs, pack_batches
from forethought.training.strips import Row
from forethought.types import Completion, Request, SamplingParams
from record import write_result

FORMATS = ["float32", "float16", *["bfloat16"] * is_bf16(), "int8"]
MODELS = {"seedling": "bundled:seedling", "smollm2": "smollm2-135m"}
PROBLEMS, SIBLINGS, MAX_TOKENS, CAP = 16, 4, 48, 2.0


def row_of(completion: Completion) -> Row:
    prompt = len(completion.prompt_ids)
    return Row(
        token_ids=completion.prompt_ids + completion.token_ids,
        weights=[0.0] * prompt + [1.0] * len(completion.token_ids),
        sampler_logprobs=(0.0,) * prompt + completion.logprobs,
    )


def logprobs_of(loaded: Any, batch: Any, weights: str) -> torch.Tensor:
    """Of the update, in bfloat16 where that is what the rollouts are in."""
    dtype = torch.bfloat16 if weights == "bfloat16" else torch.float32
    with compute_in("cpu", dtype):
        return batch_logprobs(loaded.model, batch)


@torch.no_grad()
def gap(loaded: Any, weights: Any) -> dict[str, float]:
    task = load_task("sum+story", size=PROBLEMS)
    params = [
        SamplingParams(max_tokens=MAX_TOKENS, n=SIBLINGS, seed=i, stop_at_boxed=False)
        for i in range(PROBLEMS)
    ]
    requests = [Request(messages=task[i].messages, params=p) for i, p in enumerate(params)]
    dtype = torch.bfloat16 if weights == "bfloat16" else torch.float32
    engine = LocalEngine(loaded.model, loaded.tokenizer, weights=weights, prefill_dtype=dtype)
    groups = engine.generate(requests)
    rows = [row_of(completion) for group in groups for completion in group]
    pad = loaded.tokenizer.pad_token_id
    differences = torch.cat(
        [
            logprobs_of(loaded, batch, weights) - batch.sampler_logprobs
            for batch in pack_batches(rows, max_batch_tokens=2048, pad_id=pad)
        ]
    )
    return {
        "mean": round(float(differences.abs().mean()), 6),
        "largest": round(float(differences.abs().max()), 4),
        "above_cap_percent": round(100 * float((differences.exp() > CAP).float().mean()), 2),
        "tokens": len(differences),
    }


def main() -> None:
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, spec in MODELS.items():
        loaded = load_model(spec, dtype="float32")
        found[name] = {w: gap(loaded, w) for w in FORMATS}
        print(name, json.dumps(found[name]), file=sys.stderr)
    command = "python bench/bench_gap.py"
    write_result(name_here("gap"), command=command, seeds=[0], raw=found, summary=found)


if __name__ == "__main__":
    main()
