"""One chat completion call over HTTP: sent, waited for, sent again while that may help.

Never more than `max_concurrent` calls are on the way, connections are kept between them, each try
has a deadline and each call a bounded number of tries. When a server says how long to wait, every
call waits. The key goes into one header and nowhere else.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from random import Random
from typing import Any, Protocol
from urllib.parse import urlsplit

import httpx2

from forethought.errors import EngineError, UserError
from forethought.sampling.openai_reply import (
    BadReply,
    Counts,
    Reply,
    error_message,
    parse_context,
)
from forethought.sampling.retries import RetryPolicy, is_retryable, retry_after_seconds

DEFAULT_KEY = "OPENAI_API_KEY"  # sent unasked to its owner's address alone
_KEY_HOME = "api.openai.com"
_MAX_ERROR_BYTES = 1 << 16
_CONNECT_SECONDS = 10.0


class Reader(Protocol):
    """Makes a reply of the bytes of one body. Both methods raise BadReply."""

    def feed(self, chunk: bytes) -> bool:
        """Take in what came; True when that is enough."""
        ...

    def reply(self) -> Reply:
        """What the body said, when it is over or was enough."""
        ...


class ServerError(EngineError):
    """A server did not do what was asked.

    `status` is the last HTTP status, None without any; `said` is what went wrong, in the server's
    words where it has some; `gave_up` says that another try might still have helped.
    """

    def __init__(
        self,
        sentence: str,
        *,
        status: int | None = None,
        said: str = "",
        gave_up: bool = False,
    ) -> None:
        super().__init__(sentence)
        self.status = status
        self.said = said
        self.gave_up = gave_up


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where a server is, up to and with `/v1`, and the key that it wants."""

    url: str
    api_key: str | None = field(default=None, repr=False)

    @property
    def chat_url(self) -> str:
        return f"{self.url}/chat/completions"


def endpoint(url: str, api_key_env: str | None = None) -> Endpoint:
    """The endpoint at `url`, given with or without `/v1` and `/chat/completions`.

    The key is read from the environment variable `api_key_env`; without a name, OPENAI_API_KEY is
    read for api.openai.com and nothing for any other server. Raises UserError.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise UserError(f"backend={url!r} is not a URL: {error}") from error
    if parts.scheme not in ("http", "https") or not host:
        raise UserError(f"backend={url!r} is not a server: give http://HOST:PORT/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UserError(
            f"the backend at {host} must be given without user, password, query or fragment: "
            "put its key in an environment variable and name that one"
        )
    path = parts.path.rstrip("/").removesuffix("/chat/completions") or "/v1"
    name = api_key_env or (DEFAULT_KEY if host == _KEY_HOME else None)
    key = os.environ.get(name, "").strip() if name else ""
    if api_key_env and not key:
        raise UserError(f"the environment variable {api_key_env} is empty: it should hold the key")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UserError(f"the key in {name} has characters that no key has: set it again")
    return Endpoint(url=f"{parts.scheme}://{parts.netloc}{path}", api_key=key or None)


@dataclass(slots=True)
class Traffic:
    """What went over the wire, in calls and in the tokens that the server says it counted.

    Once nothing is under way, num_calls is the sum of the five after it.
    """

    num_calls: int = 0  # tries, each one a POST
    num_replies: int = 0  # read to their end, or as far as we wanted
    num_refused: int = 0  # answered with an HTTP error
    num_lost: int = 0  # cut, stalled or garbage: the server may charge for them, and never says
    num_cancelled: int = 0  # given up by us: at a deadline, or as another request failed
    num_unreached: int = 0  # no connection: the server knows nothing of them
    num_retries: int = 0
    num_unmetered: int = 0  # replies without a count of tokens: those below lack theirs
    prompt_tokens: int = 0
    cached_tokens: int = 0
    sampled_tokens: int = 0

    def count(self, counts: Counts) -> None:
        """A reply came."""
        self.num_replies += 1
        self.num_unmetered += counts.prompt is None or counts.sampled is None
        self.prompt_tokens += counts.prompt or 0
        self.cached_tokens += counts.cached or 0
        self.sampled_tokens += counts.sampled or 0


@dataclass(slots=True)
class Tries:
    """How often a call was made, and the seconds of the last try: known whatever became of it."""

    count: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why one try brought no reply, and what the user could do about it."""

    what: str
    fix: str
    is_retryable: bool = True
    wait_seconds: float = 0.0  # that the server asks for
    status: int | None = None


class Client:
    """Belongs to one event loop. `request_seconds` is the deadline of a try, body included."""

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        policy: RetryPolicy,
        max_concurrent: int,
        request_seconds: float,
        max_body_bytes: int,
    ) -> None:
        self.endpoint = endpoint
        self.traffic = Traffic()
        self._policy = policy
        self._request_seconds = request_seconds
        self._max_body_bytes = max_body_bytes
        self._slots = asyncio.Semaphore(max_concurrent)
        self._resume_at = 0.0
        self._rng = Random()
        limits = httpx2.Limits(
            max_connections=max_concurrent, max_keepalive_connections=max_concurrent
        )
        # Compressed bodies are not asked for: a small one could unfold to any size.
        headers = {"content-type": "application/json", "accept-encoding": "identity"}
        if endpoint.api_key is not None:
            headers["authorization"] = f"Bearer {endpoint.api_key}"
        self._http = httpx2.AsyncClient(
            headers=headers,
            limits=limits,
            timeout=httpx2.Timeout(None, connect=min(_CONNECT_SECONDS, request_seconds)),
            follow_redirects=False,  # a key is for the server that was named
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def ask(
        self, body: Mapping[str, Any], new_reader: Callable[[], Reader], tries: Tries
    ) -> Reply:
        """Send `body` until a reader makes a reply of what comes back. Raises ServerError."""
        content = json.dumps(body, allow_nan=False).encode()
        while True:
            async with self._slots:
                await asyncio.sleep(max(0.0, self._resume_at - time.monotonic()))
                began = time.perf_counter()
                self.traffic.num_calls += 1
                self.traffic.num_retries += tries.count > 0
                tries.count += 1
                found = await self._try(content, new_reader())
            if isinstance(found, Reply):
                tries.seconds = time.perf_counter() - began
                self.traffic.count(found.counts)
                return found
            if not found.is_retryable or tries.count > self._policy.max_retries:
                raise self._error(found, tries.count)
            self._resume_at = max(self._resume_at, time.monotonic() + found.wait_seconds)
            await asyncio.sleep(self._policy.wait_seconds(tries.count, self._rng))

    async def context_of(self, model: str) -> int | None:
        """How many positions the model has, where the server's list of models says it."""
        try:
            async with (
                asyncio.timeout(min(_CONNECT_SECONDS, self._request_seconds)),
                self._http.stream("GET", f"{self.endpoint.url}/models") as response,
            ):
                return parse_context(await _beginning(response), model)
        except (httpx2.HTTPError, TimeoutError, BadReply):
            return None  # a list of models is not part of what is asked of a server

    async def _try(self, content: bytes, reader: Reader) -> Reply | Failure:
        traffic = self.traffic
        try:
            async with (
                asyncio.timeout(self._request_seconds),
                self._http.stream("POST", self.endpoint.chat_url, content=content) as response,
            ):
                if response.status_code != httpx2.codes.OK:
                    refusal = self._refusal(response, await _beginning(response))
                    traffic.num_refused += 1
                    return refusal
                return await self._read(response, reader)
        except asyncio.CancelledError:
            traffic.num_cancelled += 1
            raise
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            traffic.num_unreached += 1
            return Failure(
                what=f"no connection ({_named(error)})",
                fix="is a server running at that address?",
                is_retryable=traffic.num_replies > 0,  # else the address is wrong, most likely
            )
        except TimeoutError:
            traffic.num_lost += 1
            return Failure(
                what=f"no whole reply within {self._request_seconds:g} seconds",
                fix="allow a request more seconds, or lower max_tokens",
            )
        except (BadReply, httpx2.HTTPError) as error:
            traffic.num_lost += 1
            said = str(error) if isinstance(error, BadReply) else f"cut off ({_named(error)})"
            return Failure(
                what=self._redacted(said), fix="is this the address of an OpenAI-compatible server?"
            )

    async def _read(self, response: httpx2.Response, reader: Reader) -> Reply:
        size = 0
        async with aclosing(response.aiter_raw()) as chunks:
            async for chunk in chunks:
                size += len(chunk)
                if size > self._max_body_bytes:
                    raise BadReply(f"the body is longer than {self._max_body_bytes} bytes")
                if reader.feed(chunk):
                    break
        return reader.reply()

    def _refusal(self, response: httpx2.Response, body: bytes) -> Failure:
        """What an answer other than 200 means."""
        status = response.status_code
        said = self._redacted(error_message(body))
        headers = {name.lower(): value for name, value in response.headers.items()}
        wait = retry_after_seconds(headers)
        fix = _FIXES.get(status) or _FIXES.get(status // 100 * 100, "change the request")
        is_too_long = wait > self._policy.max_server_seconds
        if is_too_long:
            fix = f"the server asks to wait {wait:.0f} seconds: try again then"
        return Failure(
            what=f"HTTP {status}" + (f", {said}" if said else ""),
            fix=fix,
            is_retryable=is_retryable(status, headers, said) and not is_too_long,
            wait_seconds=wait,
            status=status,
        )

    def _error(self, failure: Failure, num_tries: int) -> ServerError:
        tries = f" after {num_tries} tries" if num_tries > 1 else ""
        return ServerError(
            f"{self.endpoint.chat_url} failed{tries}: {failure.what}; {failure.fix}",
            status=failure.status,
            said=failure.what,
            gave_up=failure.is_retryable,
        )

    def _redacted(self, text: str) -> str:
        key = self.endpoint.api_key
        return text.replace(key, "***") if key else text


_FIXES = {
    300: "give the address that it redirects to",
    401: "name the environment variable that holds the server's key",
    403: "name the environment variable that holds a key with access to this model",
    404: "check the model's name, and that the URL ends with /v1",
    413: "shorten the prompt",
    429: "let fewer requests go at once, or wait",
    500: "look into the server's log",
}


async def _beginning(response: httpx2.Response) -> bytes:
    """The first bytes of an error's body, whatever its size."""
    found = b""
    async with aclosing(response.aiter_raw()) as chunks:
        async for chunk in chunks:
            found += chunk
            if len(found) >= _MAX_ERROR_BYTES:
                break
    return found[:_MAX_ERROR_BYTES]


def _named(error: Exception) -> str:
    said = str(error).strip()
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
