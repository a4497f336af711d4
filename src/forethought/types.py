"""The data that flows between the rooms. Standard library only; every class is frozen.

Token ids and log-probabilities are plain Python sequences here: tensors begin and end inside
`models`, `sampling.local` and `training`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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

    @property
    def is_truncated(self) -> bool:
        """True when the model did not end the completion by itself."""
        return self in (FinishReason.LENGTH, FinishReason.LOOP, FinishReason.BUDGET)


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

    `seed` fixes every draw: sibling i of a request is drawn from (seed, i) alone, whoever else is
    in the batch. `stop` strings end a completion and stay in its text.
    """

    max_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    n: int = 1
    seed: int = 0
    stop: tuple[str, ...] = ()
    stop_at_boxed: bool = True
    detect_loops: bool = True

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}")
        if self.temperature < 0:
            raise ValueError(f"temperature must be at least 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if self.n < 1:
            raise ValueError(f"n must be at least 1, got {self.n}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One door to a model: a prompt as `messages` or as `prompt_ids`, never both.

    `prefix` starts the assistant's turn (with `messages`): the completion continues it.
    """

    messages: tuple[Message, ...] | None = None
    prompt_ids: tuple[int, ...] | None = None
    prefix: str = ""
    params: SamplingParams = field(default_factory=SamplingParams)

    def __post_init__(self) -> None:
        if (self.messages is None) == (self.prompt_ids is None):
            raise ValueError("a Request takes either messages or prompt_ids")


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What was spent. Token counts unless the name carries a unit; adds up with `+`."""

    prompt_tokens: int = 0
    cached_tokens: int = 0  # of prompt_tokens, those whose cache was shared and not computed again
    sampled_tokens: int = 0
    num_calls: int = 0
    seconds: float = 0.0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.sampled_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            cached_tokens=self.cached_tokens + other.cached_tokens,
            sampled_tokens=self.sampled_tokens + other.sampled_tokens,
            num_calls=self.num_calls + other.num_calls,
            seconds=self.seconds + other.seconds,
        )


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


@runtime_checkable
class Engine(Protocol):
    """Who samples. One list of `params.n` completions for each request, in order."""

    @property
    def capabilities(self) -> Capabilities: ...

    def generate(self, requests: Sequence[Request]) -> list[list[Completion]]: ...


@runtime_checkable
class Task(Protocol):
    """A finite, deterministic sequence of examples and the grader that belongs to it."""

    @property
    def name(self) -> str: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...

    def grade(self, example: Example, completion: str) -> Grade: ...
