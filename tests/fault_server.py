"""An OpenAI-compatible chat server on a real socket, that fails as told and counts as it goes.

Its model is a function of the body: words, each one a token. What it can do is a `Dialect`, what
goes wrong with a call is decided by a `Plan`, and `Counted` is its own book, against which an
engine's is held.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from types import TracebackType
from typing import Any, Self

CHAT = "/v1/chat/completions"
OVERHEAD = 4  # tokens around every message
OPENING = 2  # tokens that open the assistant's turn


class Fault(StrEnum):
    """What can go wrong with one call."""

    NONE = "none"
    STORM = "storm"  # 429, with Retry-After
    BUSY = "busy"  # 429, without
    BROKEN = "broken"  # 500
    GONE = "gone"  # closed before the first byte of an answer
    CUT = "cut"  # closed in the middle of the body
    GARBAGE = "garbage"  # 200 with a page of HTML
    TRUNCATED = "truncated"  # 200 with half a JSON object, the length as announced
    STALL = "stall"  # the headers, and then nothing
    FEW = "few"  # one choice fewer than asked for
    MANY = "many"  # two more


REFUSED = (Fault.STORM, Fault.BUSY, Fault.BROKEN)
LOST = (Fault.GONE, Fault.CUT, Fault.GARBAGE, Fault.TRUNCATED, Fault.STALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """What a server can do. What it cannot it ignores, or refuses with 400 when `is_strict`."""

    n: bool = True
    seed: bool = True
    logprobs: bool = True
    token_ids: bool = False
    continues: bool = False
    usage: bool = True
    live_usage: bool = False
    is_strict: bool = False
    limit_field: str = "max_tokens"
    reasoning_field: str | None = None
    context: int | None = None


@dataclass(slots=True)
class Counted:
    """The server's own book."""

    calls: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    replies: int = 0  # written to their end
    left: int = 0  # streams that the client closed before their end
    connections: int = 0
    prompt_tokens: int = 0  # of replies
    sampled_tokens: int = 0  # of replies
    lost_tokens: int = 0  # sampled for a reply that was cut, stalled or spoiled
    most_at_once: int = 0
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)


Body = Mapping[str, Any]
Plan = Callable[[int, Body], Fault]  # (number of the call, its body)
Say = Callable[[Body, int], Sequence[str]]  # (body, index of the choice) -> tokens


def never(_call: int, _body: Body) -> Fault:
    return Fault.NONE


def answer(body: Body, index: int) -> list[str]:
    """A few words and a box, drawn from the prompt, the seed and the index."""
    text = body["messages"][-1]["content"]
    digest = hashlib.sha256(f"{text}/{body.get('seed')}/{index}".encode()).digest()
    return ["so"] + [" on"] * (digest[0] % 9) + [f" \\boxed{{{digest[1] % 10}}}", " ."]


class FaultServer:
    """Serves until closed, from a thread of its own. `url` ends with /v1."""

    def __init__(
        self,
        plan: Plan = never,
        *,
        dialect: Dialect | None = None,
        say: Say = answer,
        reply: Callable[[dict[str, Any]], Any] = lambda reply: reply,
        hold_after: str | None = None,
        retry_after: str = "1",
        status: int = 200,
    ) -> None:
        """`reply` may change what is sent. A stream waits after the token `hold_after` until the
        client has closed the connection."""
        self.counted = Counted()
        self.url = ""
        self._plan, self._say, self._reply = plan, say, reply
        self._dialect = dialect or Dialect()
        self._hold_after, self._retry_after = hold_after, retry_after
        self._status = status
        self._num_open = 0
        self._loop = asyncio.new_event_loop()
        self._is_up = threading.Event()
        self._stop: asyncio.Event | None = None
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._run()))

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._is_up.wait(10)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._stop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        assert not self._thread.is_alive()
        self._loop.close()

    async def _run(self) -> None:
        self._stop = asyncio.Event()
        connections: set[asyncio.Task[None]] = set()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            connections.add(task)
            try:
                await self._serve(reader, writer)
            except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                pass
            finally:
                connections.discard(task)
                writer.close()
                with suppress(ConnectionError, asyncio.CancelledError):
                    await writer.wait_closed()

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        self._is_up.set()
        await self._stop.wait()
        server.close()
        for task in list(connections):
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: a call after the other until somebody closes it."""
        self.counted.connections += 1
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
            raw = await reader.readexactly(int(headers.get("content-length", "0")))
            if head[0].split()[:2] == ["GET", "/v1/models"] and self._dialect.context:
                model = {"id": "fake", "max_model_len": self._dialect.context}
                await _send(writer, 200, {"data": [model]})
                continue
            if head[0].split()[:2] != ["POST", CHAT]:
                await _send(writer, 404, {"error": {"message": f"no page {head[0]}"}})
                continue
            self.counted.headers.append(headers)
            self._num_open += 1
            self.counted.most_at_once = max(self.counted.most_at_once, self._num_open)
            try:
                is_over = await self._answer(json.loads(raw), reader, writer)
            finally:
                self._num_open -= 1
            if is_over:
                return

    async def _answer(
        self, body: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Answer one call; True when the connection is done for."""
        fault = self._plan(self.counted.calls, body)
        self.counted.calls += 1
        self.counted.bodies.append(body)
        self.counted.faults[fault.value] += 1
        if fault in REFUSED:
            status = 500 if fault is Fault.BROKEN else 429
            headers = {"Retry-After": self._retry_after} if fault is Fault.STORM else {}
            await _send(writer, status, {"error": {"message": "not now"}}, headers)
            return False
        refused = self._unknown_field(body)
        if refused is not None:
            error = {"message": f"Unsupported parameter: '{refused}'", "param": refused}
            await _send(writer, 400, {"error": error})
            return False
        reply = self._make_reply(body, fault)
        if body.get("stream"):
            return await self._stream(body, reply, fault, reader, writer)
        content = json.dumps(self._reply(reply)).encode()
        usage = _usage(reply)
        if fault in LOST:
            self.counted.lost_tokens += usage["completion_tokens"]
            await _spoil(writer, fault, content, reader)
            return fault is not Fault.GARBAGE and fault is not Fault.TRUNCATED
        if not self._dialect.usage:
            content = json.dumps({k: v for k, v in reply.items() if k != "usage"}).encode()
        self._book(usage)
        await _send(writer, self._status, content)
        return False

    def _book(self, usage: Mapping[str, int]) -> None:
        self.counted.replies += 1
        self.counted.prompt_tokens += usage["prompt_tokens"]
        self.counted.sampled_tokens += usage["completion_tokens"]

    def _unknown_field(self, body: Body) -> str | None:
        dialect, options = self._dialect, body.get("stream_options", {})
        known = {
            "n": dialect.n,
            "seed": dialect.seed,
            "logprobs": dialect.logprobs,
            "top_logprobs": dialect.logprobs,
            "return_token_ids": dialect.token_ids,
            "continue_final_message": dialect.continues,
            "stream_options": dialect.live_usage or "continuous_usage_stats" not in options,
            "max_tokens": dialect.limit_field == "max_tokens",
        }
        names = [name for name in body if not known.get(name, True)]
        if "max_tokens" in names:
            return "max_tokens' (use max_completion_tokens instead) '"
        return names[0] if names and dialect.is_strict else None

    def _make_reply(self, body: dict[str, Any], fault: Fault) -> dict[str, Any]:
        num_choices = int(body.get("n", 1)) if self._dialect.n else 1
        num_choices += {Fault.FEW: -1, Fault.MANY: 2}.get(fault, 0)
        choices = [self._choice(body, index) for index in range(max(1, num_choices))]
        usage = {
            "prompt_tokens": self._count_prompt(body),
            "completion_tokens": sum(choice.pop("num_tokens") for choice in choices),
        }
        reply: dict[str, Any] = {"id": "chatcmpl-1", "object": "chat.completion"}
        return reply | {"choices": choices, "usage": usage}

    def _choice(self, body: Body, index: int) -> dict[str, Any]:
        limit = int(body.get("max_tokens", body.get("max_completion_tokens", 1 << 30)))
        said = list(self._say(body, index))
        tokens = said[:limit]
        message: dict[str, Any] = {"role": "assistant", "content": "".join(tokens)}
        if self._dialect.reasoning_field and "</think>" in tokens:
            end = tokens.index("</think>")
            message[self._dialect.reasoning_field] = "".join(tokens[:end])
            message["content"] = "".join(tokens[end + 1 :])
        choice: dict[str, Any] = {
            "index": index,
            "message": message,
            "finish_reason": "length" if len(said) > limit else "stop",
            "num_tokens": len(tokens),
        }
        if self._dialect.logprobs and body.get("logprobs"):
            tops = [{"token": "x", "logprob": -1.0}] * int(body.get("top_logprobs", 0))
            entry = {"token": "x", "logprob": -0.5, "top_logprobs": tops}
            choice["logprobs"] = {"content": [entry] * len(tokens)}
        if self._dialect.token_ids and body.get("return_token_ids"):
            choice["token_ids"] = [len(token) for token in tokens]
        return choice

    def _count_prompt(self, body: Body) -> int:
        count = sum(len(m["content"].split()) + OVERHEAD for m in body["messages"]) + OPENING
        going_on = self._dialect.continues and body.get("continue_final_message")
        return count - OPENING - 1 if going_on else count

    async def _stream(
        self,
        body: dict[str, Any],
        reply: dict[str, Any],
        fault: Fault,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> bool:
        """Send a reply a token at a time, as chunks of a chunked body."""
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        await _chunk(writer, b": a heartbeat\n\n")
        choice, usage = reply["choices"][0], _usage(reply)
        limit = int(body.get("max_tokens", body.get("max_completion_tokens", 1 << 30)))
        tokens = list(self._say(body, 0))[:limit]
        prompt_tokens = usage["prompt_tokens"]
        for number, token in enumerate(tokens, start=1):
            is_last = number == len(tokens)
            piece = {
                "index": 0,
                "delta": {"content": token},
                "finish_reason": choice["finish_reason"] if is_last else None,
            }
            if "logprobs" in choice:
                piece["logprobs"] = {"content": [choice["logprobs"]["content"][number - 1]]}
            if "token_ids" in choice:
                piece["token_ids"] = [choice["token_ids"][number - 1]]
            event: dict[str, Any] = {"choices": [piece]}
            if self._dialect.live_usage:
                event["usage"] = {"prompt_tokens": prompt_tokens, "completion_tokens": number}
            await _chunk(writer, b"data: " + json.dumps(event).encode() + b"\n\n")
            if fault is Fault.CUT and number == (len(tokens) + 1) // 2:
                self.counted.lost_tokens += number
                return True
            if token == self._hold_after:
                assert await reader.read() == b""
                self.counted.left += 1
                self._book({"prompt_tokens": prompt_tokens, "completion_tokens": number})
                return True
        last = {"choices": [], "usage": usage if self._dialect.usage else None}
        self._book(usage)
        await _chunk(writer, b"data: " + json.dumps(last).encode() + b"\n\ndata: [DONE]\n\n")
        await _chunk(writer, b"")
        return False


def _usage(reply: Mapping[str, Any]) -> dict[str, int]:
    usage: dict[str, int] = reply["usage"]
    return usage


async def _send(
    writer: asyncio.StreamWriter,
    status: int,
    body: Any,
    headers: Mapping[str, str] | None = None,
) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} X", f"content-length: {len(content)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + content)
    await writer.drain()


async def _chunk(writer: asyncio.StreamWriter, content: bytes) -> None:
    writer.write(f"{len(content):x}\r\n".encode() + content + b"\r\n")
    await writer.drain()


async def _spoil(
    writer: asyncio.StreamWriter, fault: Fault, content: bytes, reader: asyncio.StreamReader
) -> None:
    """Fail a call that was sampled."""
    if fault is Fault.GARBAGE:
        await _send(writer, 200, b"<html>Bad gateway</html>")
    elif fault is Fault.TRUNCATED:
        await _send(writer, 200, content[: len(content) // 2])
    elif fault in (Fault.CUT, Fault.STALL):
        sent = content[: len(content) // 2] if fault is Fault.CUT else b""
        writer.write(f"HTTP/1.1 200 OK\r\ncontent-length: {len(content)}\r\n\r\n".encode() + sent)
        await writer.drain()
        if fault is Fault.STALL:
            await reader.read()  # until the client gives up
