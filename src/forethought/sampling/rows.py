"""Completions in the making, and what is written down when one ends."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from forethought.grading.answers import THINK_CLOSE, THINK_OPEN
from forethought.sampling.cache import Prefill, SlotCache
from forethought.sampling.draw import Wants
from forethought.sampling.pieces import Pieces
from forethought.sampling.stopping import LOOP_EVERY
from forethought.types import Completion, FinishReason, SamplingParams, Usage

if TYPE_CHECKING:  # needs numba, an extra
    from forethought.sampling.shared_cache import Read, SharedCache

Prompt = tuple[int, ...]
Decode = Callable[[Sequence[int]], str]


@dataclass(slots=True)
class Row:
    """One completion in the making."""

    request: int
    sibling: int  # among those of its request
    prompt_ids: Prompt
    before: str  # what stopping must know of the prompt's text
    params: SamplingParams
    max_tokens: int
    shares_prefill: bool  # another row of the call pays for the prompt
    uniforms: list[float] = field(default_factory=list)  # one a token, once it is live
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)
    window_sum: float = 0.0  # of the last `confidence_window` confidences
    started: float = 0.0  # on the clock of Batch.share_seconds
    is_watched: bool = field(init=False)  # any token may end it
    wants: Wants = field(init=False)

    def __post_init__(self) -> None:
        params = self.params
        limits = params.min_confidence, params.max_seconds
        self.is_watched = bool(params.stop) or limits != (None, None)
        self.wants = Wants(params.temperature, params.top_p, params.top_logprobs)

    @property
    def length(self) -> int:
        """Tokens that stand in the cache: the newest sampled one does not yet."""
        return len(self.prompt_ids) + len(self.token_ids) - 1

    def may_end(self, ending_ids: Set[int]) -> bool:
        """Whether its newest token could end it, by what it is or as the last of so many; of most
        rows no more need be asked."""
        count = len(self.token_ids)
        is_last = count >= self.max_tokens or count % LOOP_EVERY == 0
        return is_last or self.token_ids[-1] in ending_ids or self.is_watched

    def add_confidence(self, confidence: float) -> None:
        window = self.params.confidence_window
        self.confidences.append(confidence)
        self.window_sum += confidence
        if len(self.confidences) > window:
            self.window_sum -= self.confidences[-window - 1]

    def is_unsure(self) -> bool:
        """Whether the mean confidence of a full window is below the row's `min_confidence`."""
        lowest, window = self.params.min_confidence, self.params.confidence_window
        return (
            lowest is not None
            and len(self.confidences) >= window
            and self.window_sum / window < lowest
        )

    def completion(
        self, reason: FinishReason, seconds: float, decode: Decode, policy_version: int
    ) -> Completion:
        """The row as it ended, with what it cost."""
        text = decode(self.token_ids)
        num_sampled = len(self.token_ids)
        aborted = num_sampled if reason is FinishReason.ABORTED else 0
        return Completion(
            prompt_ids=self.prompt_ids,
            token_ids=tuple(self.token_ids),
            logprobs=tuple(self.logprobs),
            text=text,
            finish_reason=reason,
            usage=Usage(
                prompt_tokens=len(self.prompt_ids),
                cached_tokens=len(self.prompt_ids) if self.shares_prefill else 0,
                sampled_tokens=num_sampled,
                reasoning_tokens=num_reasoning(self.token_ids, text, self.before, decode),
                discarded_tokens=aborted,
                cancelled_tokens=aborted,
                num_calls=0 if self.sibling else 1,
                seconds=seconds,
                peak_context=len(self.prompt_ids) + num_sampled,
            ),
            policy_version=policy_version,
            confidences=tuple(self.confidences),
        )

    def never_begun(self, policy_version: int) -> Completion:
        """The row when its time was over before the model had seen the prompt."""
        return Completion(
            prompt_ids=self.prompt_ids,
            token_ids=(),
            logprobs=(),
            text="",
            finish_reason=FinishReason.BUDGET,
            usage=Usage(num_calls=0 if self.sibling else 1),
            policy_version=policy_version,
        )


@dataclass(slots=True)
class Batch:
    """The state of one call. Row `live[r]` has slot r of the cache."""

    cache: SlotCache | SharedCache
    waiting: deque[Row]
    live: list[Row] = field(default_factory=list)
    ready: dict[Prompt, Prefill | Read] = field(default_factory=dict)
    # Engine time, each moment split evenly among the rows then live: what one row that was live
    # all along would have used. So the seconds of all completions add up to the call's.
    share_seconds: float = 0.0
    began: float = field(default_factory=time.perf_counter)
    step_seconds: float = 0.0  # of the last step of decoding
    has_deadline: bool = field(init=False)  # a row has
    pieces: Pieces | None = None  # hears of the rows as they grow

    def __post_init__(self) -> None:
        self.has_deadline = any(row.params.max_seconds is not None for row in self.waiting)

    def pop_late(self) -> list[Row]:
        """Take the rows out of those waiting whose time is over."""
        late: list[Row] = []
        rest: list[Row] = []
        for row in self.waiting:
            (late if self.is_late(row.params) else rest).append(row)
        self.waiting.clear()
        self.waiting.extend(rest)
        return late

    def spend(self, began: float) -> float:
        """Share out the time since `began`, and return it."""
        seconds = time.perf_counter() - began
        self.share_seconds += seconds / max(1, len(self.live))
        return seconds

    def is_late(self, params: SamplingParams) -> bool:
        """Whether a row with these params has no time for another step, if that lasts as long as
        the last one."""
        limit = params.max_seconds
        if limit is None:
            return False
        return time.perf_counter() - self.began + self.step_seconds >= limit


def num_reasoning(token_ids: Sequence[int], text: str, before: str, decode: Decode) -> int:
    """How many of the tokens, whose text is `text`, belong to the think block and its tags."""
    close, is_opened = text.rfind(THINK_CLOSE), before == THINK_OPEN or THINK_OPEN in text
    if close < 0 or text.rfind(THINK_OPEN) > close:
        return len(token_ids) if is_opened else 0
    return _tokens_until(token_ids, text, close + len(THINK_CLOSE), decode)


def _tokens_until(token_ids: Sequence[int], text: str, end: int, decode: Decode) -> int:
    """The least number of tokens whose text has `end` letters: text grows with tokens. It is looked
    for near where it would be if all tokens were as long."""

    def reaches(k: int) -> bool:
        return len(decode(token_ids[:k])) >= end

    low, high, step = 0, len(token_ids), 1  # it is above the one, and not above the other
    at = round(high * end / len(text))
    while low < at < high:
        if reaches(at):
            high, at = at, at - step
        else:
            low, at = at, at + step
        step *= 2
    return bisect_left(range(high), True, lo=low + 1, key=reaches)
