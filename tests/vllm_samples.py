"""Run in vLLM's environment: sample what test_vllm_integration.py asks for, and write it down.

    .bench/vllm/bin/python tests/vllm_samples.py MODEL CONTEXT ASKED.json FOUND.json

ASKED.json is a list of {"messages", "prefix", "params"}; FOUND.json has the completions of each and
the engine's own sums.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from forethought.sampling.pieces import Piece
from forethought.sampling.vllm import VllmEngine
from forethought.types import Completion, Request, SamplingParams


def main() -> None:
    model, context, asked, target = sys.argv[1:]
    requests = [
        Request(
            messages=tuple(entry["messages"]),
            prefix=entry["prefix"],
            params=SamplingParams(**entry["params"]),
        )
        for entry in json.loads(Path(asked).read_text(encoding="utf-8"))
    ]
    engine = VllmEngine.load(
        model, dtype="float32", max_model_len=int(context), max_num_seqs=8, enforce_eager=True
    )
    heard: list[int] = []

    def hear(index: int, _completion: Completion) -> None:
        heard.append(index)

    texts: dict[str, str] = {}

    def tell(piece: Piece) -> None:
        name = f"{piece.request}/{piece.sibling}"
        texts[name] = texts.get(name, "")[: piece.start] + piece.text

    first = engine.generate(requests, on_finish=hear, on_piece=tell)
    again = engine.generate(requests)
    found = {
        "groups": [[asdict(completion) for completion in group] for group in first],
        "again": [[completion.token_ids for completion in group] for group in again],
        "heard": sorted(heard),
        "told": texts,
        "prompts": [engine.count_prompt(request) for request in requests],
        "capabilities": asdict(engine.capabilities),
    }
    Path(target).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
