"""Sampled tokens per second: our engine against transformers.generate, the same model and prompts.

    python bench/bench_sampling.py

Two loads, each with 3 repeats in turn: `fixed`, where no row may end before max_tokens, and
`ragged`, where rows end when the model says so. Writes docs/results/sampling.json.
"""

from __future__ import annotations

import statistics
import time

import torch

from forethought.models.load import load_model
from forethought.sampling.local import LocalEngine
from forethought.tasks.base import load_task
from forethought.types import Request, SamplingParams
from record import write_result

REPEATS = 3
MODEL = "bundled:seedling"
PROMPTS, SIBLINGS = 32, 16
MAX_TOKENS = 64


def ours(engine: LocalEngine, requests: list[Request]) -> tuple[int, float]:
    began = time.perf_counter()
    found = engine.generate(requests)
    return sum(len(c.token_ids) for group in found for c in group), time.perf_counter() - began


def theirs(loaded, requests: list[Request], *, ragged: bool) -> tuple[int, float]:  # type: ignore[no-untyped-def]
    began = time.perf_counter()
    tokenizer, model = loaded.tokenizer, loaded.model
    tokenizer.padding_side = "left"
    texts = [
        tokenizer.apply_chat_template(list(r.messages), tokenize=False, add_generation_prompt=True)
        for r in requests
        for _ in range(SIBLINGS)
    ]
    batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    limits = {} if ragged else {"min_new_tokens": MAX_TOKENS}
    with torch.inference_mode():
        ids = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=MAX_TOKENS,
            do_sample=True,
            top_k=0,
            **limits,
        )
    sampled = ids[:, batch["input_ids"].shape[1] :]
    is_end = sampled == tokenizer.eos_token_id
    before_end = (is_end.cumsum(1) - is_end.int()) == 0
    return int(before_end.sum()), time.perf_counter() - began


def main() -> None:
    loaded = load_model(MODEL)
    task = load_task("sum+story+equation+rule", size=PROMPTS)
    raw: dict[str, dict[str, list[float]]] = {}
    for load in ("fixed", "ragged"):
        engine = LocalEngine(loaded.model, loaded.tokenizer)
        if load == "fixed":
            engine._end_ids = frozenset()  # no token ends a row
        requests = [
            Request(
                messages=task[i].messages,
                params=SamplingParams(
                    max_tokens=MAX_TOKENS,
                    n=SIBLINGS,
                    seed=i,
                    stop_at_boxed=False,
                    detect_loops=False,
                ),
            )
            for i in range(PROMPTS)
        ]
        raw[load] = {"forethought": [], "transformers": []}
        ours(engine, requests[:2])
        for _ in range(REPEATS):
            tokens, seconds = ours(engine, requests)
            raw[load]["forethought"].append(tokens / seconds)
            tokens, seconds = theirs(loaded, requests, ragged=load == "ragged")
            raw[load]["transformers"].append(tokens / seconds)
    summary = {
        load: {name: round(statistics.median(values)) for name, values in sides.items()}
        for load, sides in raw.items()
    }
    for sides in summary.values():
        sides["ratio"] = round(sides["forethought"] / sides["transformers"], 2)
    write_result(
        "sampling", command="python bench/bench_sampling.py", seeds=[0], raw=raw, summary=summary
    )
    print(summary)


if __name__ == "__main__":
    main()
