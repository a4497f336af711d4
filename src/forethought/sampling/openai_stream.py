"""A reply that arrives in pieces, and when to stop listening.

Only streams of one choice are read: with several, the counts that a server sends along do not say
whose they are. What is built up is the choice of an unstreamed reply, so that both are read alike.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from typing import Any

from forethought.grading.answers import has_closed_box
from forethought.sampling.openai_reply import (
    BadReply,
    Choice,
    Counts,
    Reply,
    matching,
    parse_choice,
    parse_counts,
    parse_ids,
    parse_json,
    parse_logprobs,
)
from forethought.sampling.pieces import Growth
from forethought.types import FinishReason, SamplingParams

_MAX_LINE_BYTES = 1 << 20
_DONE = b"[DONE]"
_TELL_SECONDS = 0.05  # between two pieces of text that are told
_TEXTS = ("content", "reasoning", "reasoning_content")


@dataclass(slots=True)
class Growing:
    """One choice as far as it has come."""

    prefix: str
    texts: dict[str, list[str]] = field(default_factory=dict)
    logprobs: list[float] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)
    num_entries: int = 0  # tokens that came with something about their log-probability
    token_ids: list[Any] = field(default_factory=list)
    finish_reason: Any = None
    stop_reason: Any = None
    counts: Counts = field(default_factory=Counts)
    has_live_counts: bool = False  # they came before the end
    prompt_ids: tuple[int, ...] = ()
    newest: str = ""  # the text of the last chunk

    def add(self, chunk: dict[str, Any]) -> None:
        """Take in one chunk. Raises BadReply when it is none."""
        usage = parse_counts(chunk.get("usage"))
        if usage.sampled is not None:
            self.counts = usage
        self.prompt_ids = self.prompt_ids or parse_ids(chunk.get("prompt_token_ids"))
        self.newest = ""
        choices = chunk.get("choices")
        if not isinstance(choices, list):
            raise BadReply("a chunk of the stream has no choices")
        for choice in choices[:1]:
            if not isinstance(choice, dict):
                raise BadReply("a choice of the stream is not an object")
            self._add_choice(choice)
            self.has_live_counts |= self.finish_reason is None and usage.sampled is not None

    def _add_choice(self, choice: dict[str, Any]) -> None:
        delta = choice.get("delta")
        for name in _TEXTS:
            piece = delta.get(name) if isinstance(delta, dict) else None
            if isinstance(piece, str) and piece:
                self.texts.setdefault(name, []).append(piece)
                self.newest += piece
        logprobs, confidences = parse_logprobs(choice.get("logprobs"))
        self.logprobs += logprobs
        self.confidences += confidences
        self.num_entries += _num_entries(choice.get("logprobs"))
        ids = choice.get("token_ids")
        self.token_ids += ids if isinstance(ids, list) else []
        self.finish_reason = choice.get("finish_reason") or self.finish_reason
        self.stop_reason = choice.get("stop_reason") or self.stop_reason

    def choice(self, cut: FinishReason | None = None) -> Choice:
        """What has come, ended by the server or `cut` by us."""
        found = parse_choice(
            {
                "message": {name: "".join(pieces) for name, pieces in self.texts.items()},
                "token_ids": self.token_ids,
                "finish_reason": "stop" if cut else self.finish_reason,
                "stop_reason": self.stop_reason,
            },
            self.prefix,
        )
        has_all = len(self.logprobs) == self.num_entries
        return replace(
            found,
            finish_reason=cut or found.finish_reason,
            logprobs=matching(self.logprobs if has_all else (), found.token_ids),
            confidences=tuple(self.confidences) if self.has_confidences else (),
        )

    @property
    def has_confidences(self) -> bool:
        return 0 < len(self.confidences) == self.num_entries


def over(growing: Growing, params: SamplingParams) -> FinishReason | None:
    """Why the choice is over for us, though the server would go on; None while it is not."""
    if params.stop_at_boxed and "}" in growing.newest:
        before = "" if has_closed_box(growing.prefix) else growing.prefix
        if has_closed_box(before + growing.choice(FinishReason.BOXED).text):
            return FinishReason.BOXED
    if params.min_confidence is not None and growing.has_confidences:
        newest = growing.confidences[-params.confidence_window :]
        is_full = len(newest) == params.confidence_window
        if is_full and math.fsum(newest) / len(newest) < params.min_confidence:
            return FinishReason.ABORTED
    return None


class StreamReader:
    """Reads server-sent events into a reply; comments, which servers send as a heartbeat, are left
    out. `cut_at` is a moment on time.monotonic() at which the choice is over as BUDGET; `growth`
    hears of the text now and then."""

    def __init__(
        self,
        params: SamplingParams,
        prefix: str,
        cut_at: float | None = None,
        growth: Growth | None = None,
    ) -> None:
        self._params = params
        self._cut_at = cut_at
        self._growth = growth
        self._told_at = -_TELL_SECONDS
        self._rest = b""
        self.growing = Growing(prefix=prefix)
        self._cut: FinishReason | None = None
        self._is_done = False

    def feed(self, chunk: bytes) -> bool:
        """Take in any piece of the stream. True when the choice is over."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if len(self._rest) > _MAX_LINE_BYTES:
            raise BadReply(f"a line of the stream is longer than {_MAX_LINE_BYTES} bytes")
        for line in lines:
            if line.startswith(b"data:") and not self._is_done:
                self._take(line.removeprefix(b"data:").strip())
        return self._is_done

    def _take(self, data: bytes) -> None:
        if data == _DONE:
            self._is_done = True
            return
        growing = self.growing
        growing.add(parse_json(data))
        if growing.finish_reason is None:
            is_late = self._cut_at is not None and time.monotonic() >= self._cut_at
            self._cut = FinishReason.BUDGET if is_late else over(growing, self._params)
            self._is_done = self._cut is not None
        if self._growth is not None and time.monotonic() - self._told_at >= _TELL_SECONDS:
            self._growth.become(growing.choice(FinishReason.EOS).text)
            self._told_at = time.monotonic()

    def reply(self) -> Reply:
        """Raises BadReply when the stream broke off."""
        growing = self.growing
        if self._cut is None and growing.finish_reason is None:
            raise BadReply("the stream broke off")
        return Reply(
            choices=(growing.choice(self._cut),),
            counts=growing.counts,
            prompt_ids=growing.prompt_ids,
        )


def _num_entries(logprobs: Any) -> int:
    entries = logprobs.get("content") if isinstance(logprobs, dict) else None
    return len(entries) if isinstance(entries, list) else 0
