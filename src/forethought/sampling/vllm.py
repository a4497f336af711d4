"""vLLM as the engine, in this process: its batching and kernels, our rules for when to stop.

vLLM is stepped by hand, so that a completion ends at its box, in a loop, or below its confidence as
in the local engine, and the rest is never sampled. Each sibling is a request of its own with a seed
of its own; vLLM's prefix cache holds their prompt once, and `cached_tokens` are its own count.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

from forethought.errors import EngineError, UserError
from forethought.sampling.admission import Limits, admit
from forethought.sampling.draw import stable_seed
from forethought.sampling.pieces import OnPiece, Pieces
from forethought.sampling.prompts import encode_prompt, encode_prompts
from forethought.sampling.rows import Row
from forethought.sampling.stopping import StopChecker, text_before
from forethought.types import Capabilities, Completion, FinishReason, Request

Finished = Callable[[int, Completion], None]


class VllmEngine:
    """Samples from `llm`, a `vllm.LLM` made with logprobs_mode="processed_logprobs" (as `load`
    makes it): its log-probabilities are then those of the distribution sampled from. Where top_p
    cuts that distribution they are of what is left, unlike the local engine's."""

    def __init__(self, llm: Any) -> None:
        self._engine = llm.llm_engine
        self._tokenizer = llm.get_tokenizer()
        self._checker = StopChecker(self._tokenizer)
        config = self._engine.model_config
        self._limits = Limits(
            num_ids=int(config.get_vocab_size()), context=int(config.max_model_len), window=None
        )

    @classmethod
    def load(cls, model: str, **options: Any) -> Self:
        """Load the folder or hub id `model` with vLLM's own `options`. Raises UserError without
        the extra."""
        try:
            from vllm import LLM
        except ModuleNotFoundError as error:
            raise UserError(
                "vLLM is not installed: pip install 'forethought[vllm]', or sample without it"
            ) from error
        return cls(LLM(model, logprobs_mode="processed_logprobs", **options))

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities.all(self._limits.context)

    def count_prompt(self, request: Request) -> int:
        return len(encode_prompt(self._tokenizer, request))

    def generate(
        self,
        requests: Sequence[Request],
        on_finish: Finished | None = None,
        on_piece: OnPiece | None = None,
    ) -> list[list[Completion]]:
        """`params.n` completions for each request; `on_finish(request_index, completion)` hears of
        each as it ends, `on_piece` of its text as it grows. Raises EngineError, before anything is
        sampled, for a request that cannot be (see `admit`)."""
        rows = {str(number): row for number, row in enumerate(self._rows(requests))}
        found: list[dict[int, Completion]] = [{} for _ in requests]
        try:
            for name, row in rows.items():
                prompt = {"prompt_token_ids": list(row.prompt_ids)}
                self._engine.add_request(name, prompt, _sampling(row))
            pieces = None if on_piece is None else Pieces(self._text, on_piece)
            for row, completion in self._run(dict(rows), pieces):
                found[row.request][row.sibling] = completion
                if on_finish is not None:
                    on_finish(row.request, completion)
        except BaseException:
            self._engine.abort_request(list(rows))
            raise
        return [[by_sibling[i] for i in sorted(by_sibling)] for by_sibling in found]

    def _rows(self, requests: Sequence[Request]) -> Iterator[Row]:
        prompts = encode_prompts(self._tokenizer, requests)
        for index, (request, prompt) in enumerate(zip(requests, prompts, strict=True)):
            max_tokens = admit(index, request, prompt, self._limits)
            before = text_before(self._text(prompt, skip_special_tokens=False), request.prefix)
            for sibling in range(request.params.n):
                yield Row(
                    request=index,
                    sibling=sibling,
                    prompt_ids=prompt,
                    before=before,
                    params=request.params,
                    max_tokens=max_tokens,
                    shares_prefill=False,
                )

    def _run(self, live: dict[str, Row], pieces: Pieces | None) -> Iterator[tuple[Row, Completion]]:
        """Step until nothing is live; yields rows as they end. The time of a step is split evenly
        among the rows then live, so that the seconds of all completions add up to the call's."""
        began = clock = time.perf_counter()
        share_seconds = 0.0
        while live:
            outputs = self._engine.step()
            clock, before = time.perf_counter(), clock
            share_seconds += (clock - before) / len(live)
            for output in outputs:
                row = live.get(output.request_id)
                if row is None:
                    continue  # it ended, and this was on the way
                reason = self._take(row, output, clock - began)
                if pieces is not None:
                    pieces.grew(row)
                if reason is None:
                    continue
                del live[output.request_id]
                if not output.finished:
                    self._engine.abort_request([output.request_id])
                completion = row.completion(reason, share_seconds, self._text, 0)
                if pieces is not None:
                    pieces.ended(row, completion.text)
                cached = min(output.num_cached_tokens or 0, len(row.prompt_ids))
                usage = replace(completion.usage, cached_tokens=cached)
                yield row, replace(completion, usage=usage)
            for name in [n for n, row in live.items() if _is_too_late(row, clock - began)]:
                self._engine.abort_request([name])
                row = live.pop(name)
                yield row, row.never_begun(0)

    def _take(self, row: Row, output: Any, seconds: float) -> FinishReason | None:
        """Write down the new tokens, up to the one that ends the row: why it ends, or None."""
        [new] = output.outputs
        for place, token_id in enumerate(new.token_ids):
            _add(row, token_id, new.logprobs[place])
            is_last = place + 1 == len(new.token_ids)
            if is_last and new.finish_reason == "stop":
                return FinishReason.EOS
            reason = self._checker.reason(row.token_ids, row.params, row.before)
            if reason is not None:
                return reason
            if row.is_unsure():
                return FinishReason.ABORTED
        if output.finished:
            if new.finish_reason != "length":
                raise EngineError(f"vLLM ended a request with reason '{new.finish_reason}'")
            return FinishReason.LENGTH
        limit = row.params.max_seconds
        return FinishReason.BUDGET if limit is not None and seconds >= limit else None

    def _text(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        decode = self._tokenizer.decode
        return str(decode(list(token_ids), skip_special_tokens=skip_special_tokens))


def _is_too_late(row: Row, seconds: float) -> bool:
    """Whether the row waits still, and its time is over."""
    limit = row.params.max_seconds
    return limit is not None and seconds >= limit and not row.token_ids


def _sampling(row: Row) -> Any:
    """vLLM's parameters for one row. It stops at end tokens and lengths; the rest is ours."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    params = row.params
    return SamplingParams(
        max_tokens=row.max_tokens,
        temperature=params.temperature,
        top_p=params.top_p,
        seed=stable_seed("row", params.seed, params.first_sibling + row.sibling),
        logprobs=params.top_logprobs,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )


def _add(row: Row, token_id: int, logprobs: Mapping[int, Any]) -> None:
    """Write down a token. `logprobs` holds its own and those of the top tokens, each with its
    rank."""
    row.token_ids.append(int(token_id))
    row.logprobs.append(float(logprobs[token_id].logprob))
    num_top = row.params.top_logprobs
    if num_top:
        tops = [top.logprob for top in logprobs.values() if top.rank and top.rank <= num_top]
        row.add_confidence(-math.fsum(tops) / len(tops))
