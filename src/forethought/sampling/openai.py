"""Sampling from any OpenAI-compatible chat server: vLLM, SGLang, llama.cpp, Ollama, hosted ones.

A completion is what the server tells of it, no more. `token_ids` are empty unless the server
returns ids (vLLM does), `logprobs` empty unless it returns those (most report them before the
temperature is applied, whatever the temperature). Counts in `usage` are the server's own and add
up to them: what one reply's choices share, its prompt, goes to the first of them, and a total that
is not told by choice is split by length of text. What a server does not count stays 0 in `usage`
and is counted as unmetered in `traffic`; so do the replies that were lost on the way.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Self

from forethought.errors import EngineError
from forethought.sampling.background import Background
from forethought.sampling.openai_client import (
    Client,
    Endpoint,
    Reader,
    ServerError,
    Traffic,
    Tries,
)
from forethought.sampling.openai_probe import Traits, probe
from forethought.sampling.openai_reply import BodyReader, Reply
from forethought.sampling.openai_request import admit, count_bound, prompt_key, request_body
from forethought.sampling.openai_stream import StreamReader
from forethought.sampling.openai_usage import completions_of, without_tokens
from forethought.sampling.pieces import Growth, OnPiece, Piece
from forethought.sampling.retries import RetryPolicy
from forethought.types import (
    Capabilities,
    Completion,
    FinishReason,
    Request,
    SamplingParams,
)

Finished = Callable[[int, Completion], None]
Emit = Callable[[tuple[int, int, Completion] | Piece], None]

_LATE_SECONDS = 0.25  # that a stream may need to notice by itself that its time is up
_MAX_REMEMBERED = 10_000  # prompts whose length is known
_PLAIN = SamplingParams(stop_at_boxed=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How a server is called. `call_seconds` is the deadline of one `generate`, None for none."""

    max_concurrent: int = 16
    request_seconds: float = 600.0
    call_seconds: float | None = None
    max_body_bytes: int = 64 << 20
    retries: RetryPolicy = field(default_factory=RetryPolicy)


class OpenAIEngine:
    """Samples from `model` at `endpoint`; `extra` fields go into every body as they are.

    What the server can do is found out at the first use, unless `traits` say it. With `stream`,
    replies are streamed where the server counts tokens live: a completion then ends at its box, at
    `min_confidence` and at `max_seconds`, and the rest is never sampled. Without, or on other
    servers, a completion goes on to its end. `detect_loops` is for engines that sample themselves.

    Close it, or use it in a `with` block: it holds connections and a thread.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        model: str,
        *,
        traits: Traits | None = None,
        limits: Limits | None = None,
        stream: bool = True,
        extra: dict[str, Any] | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.model = model
        self.failures: list[str] = []  # why completions ended as ERROR
        self._limits = limits or Limits()
        self._stream = stream
        self._extra = dict(extra or {})
        self._traits = traits
        self._prompt_counts: dict[object, int] = {}
        self._background = Background()
        self._client = Client(
            endpoint,
            policy=self._limits.retries,
            max_concurrent=self._limits.max_concurrent,
            request_seconds=self._limits.request_seconds,
            max_body_bytes=self._limits.max_body_bytes,
        )

    @property
    def traits(self) -> Traits:
        """What the server can do. Raises ServerError when it cannot be asked."""
        if self._traits is None:
            self._background.run(self._probe())
        assert self._traits is not None
        return self._traits

    @property
    def capabilities(self) -> Capabilities:
        traits = self.traits
        return Capabilities(
            prefix=traits.prefix,
            logprobs=traits.logprobs,
            n=traits.n and not self._can_stream,
            seed=traits.seed,
            confidences=traits.top_logprobs,
            aborts=traits.top_logprobs and self._can_stream,
            streams=True,
            context=traits.context,
        )

    @property
    def traffic(self) -> Traffic:
        """What went over the wire since this engine was made, the probe's calls included."""
        return replace(self._client.traffic)

    def count_prompt(self, request: Request) -> int:
        """At most how many tokens the prompt has; exact for prompts that were asked before.

        Raises EngineError when the server does not count tokens.
        """
        known = self._prompt_counts.get(prompt_key(request))
        if known is not None:
            return known
        overhead = self.traits.overhead_tokens
        if overhead is None:
            raise EngineError(
                f"{self.endpoint.url} does not count tokens, so that no budget of tokens can be "
                "kept on it: choose another server or a budget of calls"
            )
        return count_bound(request, overhead)

    def generate(
        self,
        requests: Sequence[Request],
        on_finish: Finished | None = None,
        on_piece: OnPiece | None = None,
    ) -> list[list[Completion]]:
        """`params.n` completions for each request. `on_finish(request_index, completion)` hears of
        each as it ends, and `on_piece` of its text as it grows where replies are streamed, both in
        the caller's thread.

        A request that the server keeps failing on while it answers others ends as ERROR, and
        `failures` says why. Raises EngineError for a request that cannot be sampled, before
        anything is sent, and ServerError for a server that refuses or answers nothing any more.
        """
        for index, request in enumerate(requests):
            admit(index, request, self.traits)
        found: list[dict[int, Completion]] = [{} for _ in requests]
        sample = partial(self._sample, requests, on_piece is not None)
        with closing(self._background.events(sample)) as events:
            for event in events:
                if isinstance(event, Piece):
                    assert on_piece is not None
                    on_piece(event)
                    continue
                index, sibling, completion = event
                found[index][sibling] = completion
                if on_finish is not None:
                    on_finish(index, completion)
        return [[by_sibling[i] for i in sorted(by_sibling)] for by_sibling in found]

    def close(self) -> None:
        """End the thread and its connections."""
        self._background.close(self._client.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def _sample(self, requests: Sequence[Request], is_watched: bool, emit: Emit) -> None:
        """Ask for every completion at once; the client lets so many calls through."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._limits.call_seconds), asyncio.TaskGroup() as group:
                for index, request in enumerate(requests):
                    is_told = is_watched and self._can_tell(request)
                    for siblings in self._lots(request):
                        # a call whose text is told has one choice
                        growth = Growth(index, siblings[0], emit) if is_told else None
                        fill = self._fill(index, request, siblings, began, emit, growth)
                        group.create_task(fill)
        except TimeoutError as error:
            raise ServerError(
                f"{self.endpoint.chat_url} did not answer everything within "
                f"{self._limits.call_seconds:g} seconds: allow the whole more, or ask for less"
            ) from error
        except BaseExceptionGroup as group_of_errors:
            raise group_of_errors.exceptions[0] from None

    def _lots(self, request: Request) -> list[list[int]]:
        """The siblings, by the calls that ask for them."""
        siblings = list(range(request.params.n))
        # A stream has one choice, and vLLM refuses several greedy ones.
        is_one_call = self.traits.n and not self._can_stream and request.params.temperature > 0
        return [siblings] if is_one_call else [[sibling] for sibling in siblings]

    def _can_tell(self, request: Request) -> bool:
        """Whether its text can be heard of as it grows, at no call more and with its counts."""
        is_alone = self.traits.end_counts and request.params.n == 1
        return self._can_stream or (self._stream and is_alone)

    def _is_streamed(self, request: Request) -> bool:
        params = request.params
        has_use = (
            params.stop_at_boxed
            or params.min_confidence is not None
            or params.max_seconds is not None
        )
        return self._can_stream and has_use

    @property
    def _can_stream(self) -> bool:
        return self._stream and self.traits.live_counts

    async def _fill(
        self,
        index: int,
        request: Request,
        siblings: list[int],
        began: float,
        emit: Emit,
        growth: Growth | None,
    ) -> None:
        """Ask until there is a completion for each sibling; a server may send fewer at a time."""
        is_again = False
        while siblings:
            completions = await self._ask(request, siblings, began, is_again, growth)
            if growth is not None:
                growth.become(completions[0].text)
            for sibling, completion in zip(siblings, completions, strict=False):
                emit((index, sibling, completion))
            siblings, is_again = siblings[len(completions) :], True

    async def _ask(
        self,
        request: Request,
        siblings: list[int],
        began: float,
        is_again: bool,
        growth: Growth | None,
    ) -> list[Completion]:
        """One call, and the completions that it brought: at least one."""
        stream = growth is not None or self._is_streamed(request)
        params = request.params
        cut_at = None if params.max_seconds is None else began + params.max_seconds
        is_live = stream and self.traits.live_counts  # it can be left early, and still be counted
        give_up_at = None if cut_at is None else cut_at + (_LATE_SECONDS if is_live else 0.0)
        body = request_body(
            request,
            model=self.model,
            traits=self.traits,
            n=len(siblings),
            sibling=siblings[0],
            stream=stream,
            extra=self._extra,
        )

        def reader() -> Reader:
            if not stream:
                return BodyReader(request.prefix)
            if is_live:
                return StreamReader(params, request.prefix, cut_at, growth)
            return StreamReader(_PLAIN, request.prefix, growth=growth)

        num_replies = self._client.traffic.num_replies
        tries = Tries()
        try:
            async with asyncio.timeout_at(give_up_at):
                reply = await self._client.ask(body, reader, tries)
        except TimeoutError:
            return without_tokens(FinishReason.BUDGET, len(siblings), tries, is_again=is_again)
        except ServerError as error:
            if not error.gave_up or self._client.traffic.num_replies == num_replies:
                raise
            self.failures.append(str(error))
            return without_tokens(FinishReason.ERROR, len(siblings), tries, is_again=is_again)
        self._remember(request, reply)
        return completions_of(reply, request, len(siblings), tries, is_again=is_again)

    def _remember(self, request: Request, reply: Reply) -> None:
        """How many tokens the prompt had."""
        if reply.counts.prompt is not None:
            if len(self._prompt_counts) >= _MAX_REMEMBERED:
                self._prompt_counts.clear()
            self._prompt_counts[prompt_key(request)] = reply.counts.prompt

    async def _probe(self) -> None:
        async def ask(body: Mapping[str, Any]) -> Reply:
            return await self._client.ask({**body, **self._extra}, BodyReader, Tries())

        async def ask_live(body: Mapping[str, Any]) -> tuple[bool, bool]:
            readers: list[StreamReader] = []

            def reader() -> Reader:
                readers.append(StreamReader(_PLAIN, ""))
                return readers[-1]

            await self._client.ask({**body, **self._extra}, reader, Tries())
            growing = readers[-1].growing
            return growing.has_live_counts, growing.counts.sampled is not None

        traits = await probe(ask, ask_live, self.model)
        self._traits = replace(traits, context=await self._client.context_of(self.model))
