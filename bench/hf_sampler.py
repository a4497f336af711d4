"""Rollouts by `transformers.generate`, in place of our engine: what TRL 0.16 did by default."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from forethought.sampling.local import LocalEngine
from forethought.types import Completion, FinishReason, Request, Usage


class HfSampler:
    """Answers like an engine, whose model it shares; log-probabilities are left at 0."""

    def __init__(self, engine: LocalEngine) -> None:
        self._engine, self._model, self._tokenizer = engine, engine.model, engine.tokenizer

    @torch.inference_mode()
    def generate(
        self, requests: Sequence[Request], on_finish: object = None
    ) -> list[list[Completion]]:
        """All requests' rows in one call, padded on the left; every row decodes until the last one
        ends."""
        prompts = [self._engine.prompt_ids(request) for request in requests]
        rows = [
            p for p, request in zip(prompts, requests, strict=True) for _ in range(request.params.n)
        ]
        width, pad = max(map(len, rows)), self._tokenizer.pad_token_id
        input_ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        first = requests[0].params
        torch.manual_seed(first.seed)
        model: Any = self._model
        found = model.generate(
            input_ids=input_ids,
            attention_mask=mask,
            max_new_tokens=first.max_tokens,
            do_sample=True,
            temperature=first.temperature,
            top_k=0,
            pad_token_id=pad,
        )
        rest = iter(found[:, width:].tolist())
        return [
            [self._completion(prompt, next(rest)) for _ in range(request.params.n)]
            for prompt, request in zip(prompts, requests, strict=True)
        ]

    def _completion(self, prompt: tuple[int, ...], sampled: list[int]) -> Completion:
        end = self._tokenizer.eos_token_id
        has_ended = end in sampled
        token_ids = tuple(sampled[: sampled.index(end) + 1] if has_ended else sampled)
        return Completion(
            prompt_ids=prompt,
            token_ids=token_ids,
            logprobs=(0.0,) * len(token_ids),
            text=str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True)),
            finish_reason=FinishReason.EOS if has_ended else FinishReason.LENGTH,
            usage=Usage(sampled_tokens=len(token_ids)),
        )
