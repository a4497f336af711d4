"""The data that flows between the rooms. Standard library only; every class is frozen.

Token ids and log-probabilities are plain Python sequences here: tensors begin and end inside
`models`, `sampling.local` and `training`.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, Protocol, TypedDict, runtime_checkable


class Message(TypedDict):
    """One chat message, as in the OpenAI API: role is "system", "user" or "assistant"."""

    role: str
    content: str


class FinishReason(StrEnum):
    """Why a completion ended."""

    EOS = "eos"  # the model produced its end token (kept as the last token)
    STOP = "stop"  # a stop string appeared
    BOXED = "boxed"  # a \boxed{...} outside the think block closed
    LENGTH = "length"  # max_tokens reached: truncated
    LOOP = "loop"  # the same tokens over and over
    BUDGET = "budget"  # the budget ran out
    ABORTED = "aborted"  # its confidence fell below min_confidence
    ERROR = "error"  # the engine gave up on it; it has no tokens

    @property
    def is_truncated(self) -> bool:
        """True when the model did not end the completion by itself."""
        return self not in (FinishReason.EOS, FinishReason.STOP, FinishReason.BOXED)


class GradeStatus(StrEnum):
    """What a grader found."""

    CORRECT = "correct"
    WRONG = "wrong"
    NO_ANSWER = "no_answer"  # nothing that can be read as an answer
    UNCLOSED_THINK = "unclosed_think"  # a think block was opened and never closed
    UNPARSABLE_GOLD = "unparsable_gold"  # the problem is unusable; its score is None
    TIMEOUT = "timeout"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One problem: what the model sees (`messages`) and what only the grader sees (`answer`)."""

    id: str
    messages: tuple[Message, ...]
    answer: str
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grade:
    """Outcome of grading one completion. `score` is in [0, 1], or None when it cannot be known."""

    score: float | None
    status: GradeStatus
    extracted: str | None = None
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to sample. `temperature` 0 is greedy. `n` siblings share one prefill of the prompt.

    `seed` fixes every draw: sibling i of a request is drawn from (seed, first_sibling + i) alone,
    whoever else is in the batch. `stop` strings end a completion and stay in its text.

    `top_logprobs` k > 0 asks for `Completion.confidences`. With `min_confidence` a completion ends
    as ABORTED once the mean of its last `confidence_window` confidences is below it; an engine
    whose capabilities lack `aborts` ignores it and samples to the end. With `max_seconds` a
    completion ends as BUDGET when the call has lasted so long, between two steps of decoding.
    """

    max_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    n: int = 1
    seed: int = 0
    first_sibling: int = 0
    stop: tuple[str, ...] = ()
    stop_at_boxed: bool = True
    detect_loops: bool = True
    top_logprobs: int = 0
    min_confidence: float | None = None
    confidence_window: int = 2048
    max_seconds: float | None = None

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}")
        if self.temperature < 0:
            raise ValueError(f"temperature must be at least 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if self.n < 1:
            raise ValueError(f"n must be at least 1, got {self.n}")
        if self.min_confidence is not None and self.top_logprobs < 1:
            raise ValueError("min_confidence needs top_logprobs of at least 1")


class Purpose(StrEnum):
    """What a request is for: how its tokens are written in the ledger. Engines ignore it."""

    ANSWER = "answer"
    REWRITE = "rewrite"  # of the question
    PROBE = "probe"  # a trial answer, to see how sure the model is of it
    VERIFY = "verify"  # a judgement of another completion


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One door to a model: a prompt as `messages` or as `prompt_ids`, never both.

    `prefix` starts the assistant's turn (with `messages`): the completion continues it. With
    `reserve` a budget leaves room to send prompt and completion once more and sample so many
    tokens behind them: thinking cut short can then still be answered.
    """

    messages: tuple[Message, ...] | None = None
    prompt_ids: tuple[int, ...] | None = None
    prefix: str = ""
    params: SamplingParams = field(default_factory=SamplingParams)
    purpose: Purpose = Purpose.ANSWER
    reserve: int = 0

    def __post_init__(self) -> None:
        if (self.messages is None) == (self.prompt_ids is None):
            raise ValueError("a Request takes either messages or prompt_ids")


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """The ledger: what was spent. Token counts unless the name carries a unit.

    Adds up with `+`, `peak_context` by the larger of the two; `wall_seconds` is of things done one
    after another.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0  # of prompt_tokens, those whose cache was shared and not computed again
    sampled_tokens: int = 0
    reasoning_tokens: int = 0  # of sampled_tokens, those inside a think block
    discarded_tokens: int = 0  # of sampled_tokens, those thrown away: probes, what was aborted
    cancelled_tokens: int = 0  # of discarded_tokens, those of completions aborted before their end
    verifier_tokens: int = 0  # of all tokens, those of requests that judge
    num_calls: int = 0
    num_retries: int = 0  # calls made again after a failure
    seconds: float = 0.0  # summed over completions
    wall_seconds: float = 0.0  # by the clock on the wall
    peak_context: int = 0  # prompt and completion of the longest row
    money: float = 0.0  # by a price table, in its currency

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.sampled_tokens

    @property
    def visible_tokens(self) -> int:
        return self.sampled_tokens - self.reasoning_tokens

    @property
    def computed_tokens(self) -> int:
        """Tokens that a model had to read or write: the cached ones left out."""
        return self.total_tokens - self.cached_tokens

    def __add__(self, other: Usage) -> Usage:
        values = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        values["peak_context"] = max(self.peak_context, other.peak_context)
        return Usage(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What the model answered: sampled ids (end token included) and their log-probabilities.

    `logprobs[i]` is log pi(token_ids[i]) in nats under the distribution sampled from (temperature
    applied, top_p not), from the sampling pass itself. `text` is derived from the ids, special
    tokens left out, and begins after the request's prefix.
    """

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finish_reason: FinishReason
    usage: Usage
    policy_version: int = 0
    confidences: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One sampled episode: prompt and completion in one row of tokens.

    `token_ids`, `sampled_mask` and `logprobs` have one length; `logprobs` is 0.0 where
    `sampled_mask` is False. `advantage` is None until assigned; `reward` is None when ungraded.
    """

    example_id: str
    token_ids: tuple[int, ...]
    sampled_mask: tuple[bool, ...]
    logprobs: tuple[float, ...]
    text: str
    finish_reason: FinishReason
    grade: Grade | None = None
    reward: float | None = None
    reward_parts: Mapping[str, float | None] = field(default_factory=dict)
    advantage: float | None = None
    policy_version: int = 0

    @property
    def num_sampled(self) -> int:
        return sum(self.sampled_mask)


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutGroup:
    """The siblings sampled for one example."""

    example: Example
    rollouts: tuple[Rollout, ...]


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can do beyond plain sampling."""

    prefix: bool
    logprobs: bool
    n: bool
    seed: bool
    confidences: bool = False  # top_logprobs
    aborts: bool = False  # min_confidence
    streams: bool = False  # generate tells on_finish, and on_piece where it knows the text early
    context: int | None = None  # positions of the model's window, where known

    @classmethod
    def all(cls, context: int | None) -> Capabilities:
        """Those of an engine in this process, which can do everything."""
        return cls(
            prefix=True,
            logprobs=True,
            n=True,
            seed=True,
            confidences=True,
            aborts=True,
            streams=True,
            context=context,
        )


@runtime_checkable
class Engine(Protocol):
    """Who samples. One list of `params.n` completions for each request, in order."""

    @property
    def capabilities(self) -> Capabilities: ...

    def generate(self, requests: Sequence[Request]) -> list[list[Completion]]: ...


@runtime_checkable
class CountsPrompts(Protocol):
    """An engine that can say, without sampling, how many tokens a prompt has, or at most has."""

    def count_prompt(self, request: Request) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What a strategy sees: what was asked, how to sample, and what the engine can do."""

    messages: tuple[Message, ...]
    params: SamplingParams
    capabilities: Capabilities


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request as it was sent, what came back, and what that cost."""

    request: Request
    completions: tuple[Completion, ...]
    usage: Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """One class of equivalent answers: how many gave it, and with what weight in all."""

    answer: str
    count: int
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """What a strategy came to. `answer` is None when there is none to be read.

    `text` is the completion that the answer stands in and `finish_reason` why that one ended, or
    BUDGET when the budget ran out on the way. `score` is the answer's log-probability per token,
    or what a verifier says of it; `discarded_tokens` were sampled and thrown away by the strategy.
    `trace` and `usage` are written by the driver.
    """

    answer: str | None
    text: str
    finish_reason: FinishReason
    score: float | None = None
    votes: tuple[Vote, ...] = ()
    discarded_tokens: int = 0
    trace: tuple[Call, ...] = ()
    usage: Usage = Usage()


# Yields requests to be sampled side by side and receives the completions of each, fewer than asked
# for (or none) when the budget runs out; returns the solution.
Steps = Generator[Sequence[Request], list[list[Completion]], Solution]


@runtime_checkable
class Strategy(Protocol):
    """How to spend compute on one problem. No I/O, and never the reference answer."""

    def solve(self, problem: Problem) -> Steps: ...


@runtime_checkable
class Task(Protocol):
    """A finite, deterministic sequence of examples and the grader that belongs to it."""

    @property
    def name(self) -> str: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...

    def grade(self, example: Example, completion: str) -> Grade: ...
