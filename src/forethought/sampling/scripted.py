"""An engine that says what a script tells it: for tests of strategies, without a model or torch.

A script is a function from a request and the completion's own random generator to what the model
would say. The engine does the rest as a real one would: it counts prompts and completions, ends
at stop strings, closed boxes and max_tokens, and draws sibling i from (seed, first_sibling + i).

>>> engine = ScriptedEngine(lambda request, rng: "\\boxed{4}" if rng.random() < 0.7 else "?")
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from forethought.grading.answers import has_closed_box, split_think
from forethought.types import (
    Capabilities,
    Completion,
    FinishReason,
    Request,
    SamplingParams,
    Usage,
)

_PIECES = re.compile(r"\s*\S+|\s+")  # a token is a word with the space before it
ABLE = Capabilities(prefix=True, logprobs=True, n=True, seed=True, confidences=True, aborts=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What the model says, and how surely: one number for every token, or one a token (the last one
    goes on). `is_failure` is an answer that never came."""

    text: str
    logprob: float | Sequence[float] = -0.1
    confidence: float | Sequence[float] = 1.0
    is_failure: bool = False


Script = Callable[[Request, Random], "str | Reply"]


class ScriptedEngine:
    """Says what `script` does. `calls` are the requests of every call so far, and `usage` what the
    engine itself counts."""

    def __init__(self, script: Script, capabilities: Capabilities = ABLE) -> None:
        self._script = script
        self._capabilities = capabilities
        self.calls: list[list[Request]] = []
        self.usage = Usage()

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    def count_prompt(self, request: Request) -> int:
        return len(_prompt_ids(request))

    def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        self.calls.append(list(requests))
        groups = [[self._sample(r, i) for i in range(r.params.n)] for r in requests]
        self.usage += sum((c.usage for group in groups for c in group), start=Usage())
        return groups

    def _sample(self, request: Request, sibling: int) -> Completion:
        params = request.params
        if params.temperature == 0:
            rng = Random("greedy")
        else:
            rng = Random(f"{params.seed}/{params.first_sibling + sibling}")
        said = self._script(request, rng)
        reply = said if isinstance(said, Reply) else Reply(text=said)
        prompt = _prompt_ids(request)
        num_calls = int(sibling == 0 or not self._capabilities.n)
        if reply.is_failure:
            usage = Usage(num_calls=num_calls)
            return Completion(
                prompt_ids=prompt, token_ids=(), logprobs=(), text="",
                finish_reason=FinishReason.ERROR, usage=usage,
            )  # fmt: skip
        kept, reason = _cut(_PIECES.findall(reply.text), reply, request)
        text = "".join(kept)
        num_aborted = len(kept) if reason is FinishReason.ABORTED else 0
        reasoning = split_think(text)[0] if "<think>" in request.prefix + text else ""
        return Completion(
            prompt_ids=prompt,
            token_ids=tuple(map(_id, kept)),
            logprobs=_spread(reply.logprob, len(kept)) if self._capabilities.logprobs else (),
            text=text,
            finish_reason=reason,
            usage=Usage(
                prompt_tokens=len(prompt),
                cached_tokens=len(prompt) if sibling else 0,
                sampled_tokens=len(kept),
                reasoning_tokens=min(len(kept), len(_PIECES.findall(reasoning))),
                discarded_tokens=num_aborted,
                cancelled_tokens=num_aborted,
                num_calls=num_calls,
                peak_context=len(prompt) + len(kept),
            ),
            confidences=_spread(reply.confidence, len(kept)) if params.top_logprobs else (),
        )


def _cut(pieces: list[str], reply: Reply, request: Request) -> tuple[list[str], FinishReason]:
    """The tokens up to where the completion ends, and why it ends there."""
    params, text = request.params, ""
    confidences = _spread(reply.confidence, len(pieces))
    for index, piece in enumerate(pieces):
        text += piece
        kept = pieces[: index + 1]
        if any(stop in text for stop in params.stop):
            return kept, FinishReason.STOP
        if params.stop_at_boxed and has_closed_box(request.prefix + text):
            return kept, FinishReason.BOXED
        if _is_unsure(confidences[: index + 1], params):
            return kept, FinishReason.ABORTED
        if index + 1 == params.max_tokens and index + 1 < len(pieces):
            return kept, FinishReason.LENGTH
    return pieces, FinishReason.EOS


def _is_unsure(confidences: Sequence[float], params: SamplingParams) -> bool:
    window = params.confidence_window
    if params.min_confidence is None or len(confidences) < window:
        return False
    return sum(confidences[-window:]) / window < params.min_confidence


def _spread(values: float | Sequence[float], count: int) -> tuple[float, ...]:
    """One value a token; a shorter list goes on with its last."""
    given = [values] if isinstance(values, int | float) else list(values)
    return tuple(given[min(index, len(given) - 1)] for index in range(count))


def _prompt_ids(request: Request) -> tuple[int, ...]:
    if request.prompt_ids is not None:
        return request.prompt_ids
    texts = [message["content"] for message in request.messages or ()] + [request.prefix]
    return tuple(_id(piece) for text in texts for piece in _PIECES.findall(text))


def _id(piece: str) -> int:
    return zlib.crc32(piece.encode())
