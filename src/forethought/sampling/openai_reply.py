"""What a chat completions server sent back, checked field by field: a body is untrusted text.

A field that is missing or of the wrong type is unknown (None), never zero; a body without the
choices that the API promises is a BadReply, which the client asks for again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from forethought.grading.answers import THINK_CLOSE, THINK_OPEN
from forethought.types import FinishReason

# Where servers put reasoning: vLLM, Ollama and Groq; SGLang, llama.cpp and DeepSeek.
_REASONING_FIELDS = ("reasoning", "reasoning_content")
# How models spell a think block that the server left in the text.
_THINK_TAGS = {
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",
    "<reason>": "</reason>",
    "<reasoning>": "</reasoning>",
    "\u25c1think\u25b7": "\u25c1/think\u25b7",
    "<|begin_of_thought|>": "<|end_of_thought|>",
}
_FINISH_REASONS = {
    "stop": FinishReason.EOS,
    "eos": FinishReason.EOS,
    "eos_token": FinishReason.EOS,
    "end_turn": FinishReason.EOS,
    "tool_calls": FinishReason.EOS,
    "function_call": FinishReason.EOS,
    "stop_sequence": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "max_tokens": FinishReason.LENGTH,
    "content_filter": FinishReason.LENGTH,  # cut short, not ended by the model
}
_MAX_COUNT = 1 << 40  # no call has so many tokens
_MAX_NATS = 1e6
_ROUNDING = 1e-3  # how far above 0 a log-probability may come out
_MAX_QUOTED = 300  # letters of a server's own words


class BadReply(Exception):
    """The body is not what the API promises: garbage, cut short, or without choices."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One completion. `token_ids` and `logprobs` are empty where the server gives none; the two
    have one length where it gives both. `confidences` are of the top log-probabilities."""

    text: str
    finish_reason: FinishReason
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    confidences: tuple[float, ...] = ()
    num_reasoning_letters: int = 0

    @property
    def num_tokens(self) -> int | None:
        """Sampled tokens as far as the choice itself tells."""
        return len(self.token_ids) or len(self.logprobs) or None


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """The server's own count of one call, all choices together; None is unknown."""

    prompt: int | None = None
    cached: int | None = None
    sampled: int | None = None
    reasoning: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What one call brought."""

    choices: tuple[Choice, ...]
    counts: Counts
    prompt_ids: tuple[int, ...] = ()


class BodyReader:
    """Reads a whole body, which continues `prefix`, into a reply."""

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix
        self._chunks: list[bytes] = []

    def feed(self, chunk: bytes) -> bool:
        """Take in any piece of the body; there is always more to wait for."""
        self._chunks.append(chunk)
        return False

    def reply(self) -> Reply:
        """Raises BadReply when the body is none."""
        return parse_reply(b"".join(self._chunks), prefix=self._prefix)


def parse_json(body: bytes) -> dict[str, Any]:
    """The JSON object in `body`. Raises BadReply, also for one that carries an error."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:  # also undecodable bytes, too long a number
        raise BadReply(f"the body is not JSON ({len(body)} bytes)") from error
    if not isinstance(found, dict):
        raise BadReply(f"the body is a JSON {type(found).__name__}, not an object")
    if found.get("error"):
        raise BadReply(f"the body is an error: {error_message(body)}")
    return found


def error_message(body: bytes) -> str:
    """What a server says went wrong, on one printable line; "" when it says nothing."""
    try:
        found: Any = json.loads(body)
    except (ValueError, RecursionError):
        found = body.decode("utf-8", "replace")
    for key in ("error", "message"):
        if isinstance(found, dict) and found.get(key):
            found = found[key]
    text = found if isinstance(found, str) else json.dumps(found) if found else ""
    line = " ".join("".join(c if c.isprintable() else " " for c in text[:4096]).split())
    return line if len(line) <= _MAX_QUOTED else line[:_MAX_QUOTED] + " ..."


def parse_reply(body: bytes, *, prefix: str = "") -> Reply:
    """The completions in `body`, which continue `prefix`. Raises BadReply."""
    found = parse_json(body)
    choices = found.get("choices")
    if not isinstance(choices, list) or not choices:
        raise BadReply("the body has no choices")
    choices.sort(key=_index)
    return Reply(
        choices=tuple(parse_choice(choice, prefix) for choice in choices),
        counts=parse_counts(found.get("usage")),
        prompt_ids=parse_ids(found.get("prompt_token_ids")),
    )


def parse_choice(choice: Any, prefix: str) -> Choice:
    """One entry of `choices`. Raises BadReply when it has no message or did not come to an end."""
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        raise BadReply("a choice has no message")
    reasoning = next((t for t in map(message.get, _REASONING_FIELDS) if t), "")
    reasoning, content = _text(reasoning), _text(message.get("content"))
    logprobs, confidences = parse_logprobs(choice.get("logprobs"))
    token_ids = parse_ids(choice.get("token_ids"))
    text = join_reasoning(reasoning, content, prefix)
    stopped_by = choice.get("stop_reason")
    finish_reason = _finish_reason(choice.get("finish_reason"))
    if isinstance(stopped_by, str) and stopped_by and finish_reason is FinishReason.EOS:
        # Servers leave the stop string out; a completion keeps it.
        text = text if text.endswith(stopped_by) else text + _clean(stopped_by)
        finish_reason = FinishReason.STOP
    return Choice(
        text=text,
        finish_reason=finish_reason,
        token_ids=token_ids,
        logprobs=matching(logprobs, token_ids),
        confidences=confidences,
        num_reasoning_letters=len(reasoning),
    )


def parse_counts(usage: Any) -> Counts:
    """The token counts of a `usage` object."""
    if not isinstance(usage, dict):
        return Counts()
    of_prompt, of_completion = (
        details if isinstance(details, dict) else {}
        for details in map(usage.get, ("prompt_tokens_details", "completion_tokens_details"))
    )
    return Counts(
        prompt=_count(usage.get("prompt_tokens")),
        cached=_count(of_prompt.get("cached_tokens")),
        sampled=_count(usage.get("completion_tokens")),
        reasoning=_count(of_completion.get("reasoning_tokens", usage.get("reasoning_tokens"))),
    )


def parse_context(body: bytes, model: str) -> int | None:
    """The `max_model_len` that a list of models gives `model`. Raises BadReply."""
    models = parse_json(body).get("data")
    entries = models if isinstance(models, list) else []
    found = [e for e in entries if isinstance(e, dict) and e.get("id") == model]
    return _count(found[0].get("max_model_len")) if found else None


def join_reasoning(reasoning: str, content: str, prefix: str = "") -> str:
    """One text of a completion: its reasoning in a `<think>` block, which stays open when nothing
    follows, and what it said. A block that `prefix` opened is not opened again."""
    if not reasoning:
        return _plain_tags(content)
    is_open = prefix.rfind(THINK_OPEN) > prefix.rfind(THINK_CLOSE)
    start = reasoning if is_open else THINK_OPEN + reasoning
    return start + THINK_CLOSE + content if content else start


def _plain_tags(content: str) -> str:
    """`content` with the think block that it begins with spelled `<think>`, as elsewhere here."""
    begin = content.lstrip()
    for opening, closing in _THINK_TAGS.items():
        if begin.startswith(opening):
            return THINK_OPEN + begin[len(opening) :].replace(closing, THINK_CLOSE, 1)
    return content


def _text(value: Any) -> str:
    """A string, or the texts of a list of parts; nothing else is text."""
    if isinstance(value, list):
        parts = (part.get("text") for part in value if isinstance(part, dict))
        return "".join(_text(part) for part in parts if isinstance(part, str))
    return _clean(value) if isinstance(value, str) else ""


def _clean(text: str) -> str:
    """Half of a surrogate pair, which JSON can carry, cannot be written to any file."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _finish_reason(value: Any) -> FinishReason:
    if value in ("abort", "error"):  # the server gave up on it
        raise BadReply(f"the server ended a completion with finish_reason '{value}'")
    return _FINISH_REASONS.get(value, FinishReason.EOS) if isinstance(value, str) else _ended()


def _ended() -> FinishReason:
    raise BadReply("a choice has no finish_reason: it is not complete")


def parse_logprobs(value: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The log-probabilities of the tokens and, where it has top ones, the confidences; both empty
    when any of them is unknown."""
    entries = value.get("content") if isinstance(value, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        return (), ()
    found = [_logprob(entry) for entry in entries]
    known = tuple(x for x in found if x is not None)
    tops = [_confidence(entry.get("top_logprobs")) for entry in entries]
    confidences = tuple(x for x in tops if x is not None)
    return (
        known if len(known) == len(entries) else (),
        confidences if len(confidences) == len(entries) else (),
    )


def _logprob(entry: dict[str, Any]) -> float | None:
    value = entry.get("logprob")
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    # NaN is between no two numbers
    return min(0.0, float(value)) if -_MAX_NATS <= value <= _ROUNDING else None


def _confidence(tops: Any) -> float | None:
    """Minus the mean of a token's top log-probabilities: DeepConf's, arXiv 2508.15260."""
    if not isinstance(tops, list) or not tops:
        return None
    values = [_logprob(top) if isinstance(top, dict) else None for top in tops]
    known = [value for value in values if value is not None]
    return -math.fsum(known) / len(known) if len(known) == len(values) else None


def matching(logprobs: Sequence[float], token_ids: Sequence[int]) -> tuple[float, ...]:
    """The log-probabilities, unless they cannot be those of the tokens."""
    return () if token_ids and len(logprobs) != len(token_ids) else tuple(logprobs)


def parse_ids(value: Any) -> tuple[int, ...]:
    """A list of token ids; empty when it is none."""
    known = [_count(token_id) for token_id in value] if isinstance(value, list) else []
    ids = tuple(token_id for token_id in known if token_id is not None)
    return ids if len(ids) == len(known) else ()


def _count(value: Any) -> int | None:
    is_count = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_COUNT
    return int(value) if is_count else None


def _index(choice: Any) -> int:
    index = _count(choice.get("index")) if isinstance(choice, dict) else None
    return 0 if index is None else index


def share(total: int, weights: Sequence[int]) -> list[int]:
    """`total` in whole parts that go with `weights` as nearly as can be and add up to it."""
    if not sum(weights):
        weights = [1] * len(weights)
    bounds = [0]
    for weight in weights:
        bounds.append(bounds[-1] + weight)
    marks = [total * bound // bounds[-1] for bound in bounds]
    return [after - before for before, after in pairwise(marks)]
