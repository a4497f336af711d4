"""The engine on a real server of another project: vLLM's, running SmolLM2 on this machine.

Not part of `make test`: see vllm_peer.py for what it wants.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from forethought.models.load import load_model
from forethought.sampling.local import LocalEngine
from forethought.sampling.openai import OpenAIEngine
from forethought.sampling.openai_client import ServerError, endpoint
from forethought.sampling.pieces import Piece
from forethought.types import Completion, FinishReason, Message, Request, SamplingParams, Usage
from vllm_peer import CONTEXT, PYTHON, ROOT, environment, smollm2_folder

pytestmark = pytest.mark.integration

NAME = "smollm2"
START_SECONDS = 400


@pytest.fixture(scope="module")
def folder() -> Path:
    return smollm2_folder()


@pytest.fixture(scope="module")
def url(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A vLLM server of its own process group, which is gone afterwards with all its children."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("vllm") / "log"
    options = {
        "--model": str(folder),
        "--served-model-name": NAME,
        "--host": "127.0.0.1",
        "--port": str(port),
        "--dtype": "float32",
        "--max-model-len": str(CONTEXT),
        "--max-num-seqs": "8",
    }
    command = [str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--enforce-eager"]
    command += [word for pair in options.items() for word in pair]
    with log.open("wb") as file:
        server = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment(),
            cwd=log.parent,
            start_new_session=True,
        )
    try:
        _wait_until_up(server, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(60)
        _end_group(server)


def _wait_until_up(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            pytest.fail(f"vLLM did not start:\n{log.read_text(errors='replace')[-3000:]}")
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(1)  # nothing tells when another project's server is up
    pytest.fail(f"vLLM was not up after {START_SECONDS} seconds")


def _end_group(server: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


@pytest.fixture(scope="module")
def engine(url: str) -> Iterator[OpenAIEngine]:
    with OpenAIEngine(endpoint(url), NAME) as engine:
        yield engine


def ask(text: str, prefix: str = "", **params: object) -> Request:
    sampling = SamplingParams(**({"max_tokens": 16} | params))  # type: ignore[arg-type]
    messages = (Message(role="user", content=text),)
    return Request(messages=messages, prefix=prefix, params=sampling)


def total(groups: list[list[Completion]]) -> Usage:
    return sum((c.usage for group in groups for c in group), start=Usage())


def test_vllm_can_do_everything(engine: OpenAIEngine) -> None:
    traits = engine.traits
    assert traits.n and traits.seed and traits.logprobs and traits.top_logprobs
    assert traits.token_ids and traits.prefix and traits.counts and traits.live_counts
    assert engine.capabilities.context == CONTEXT


def test_greedy_ids_are_those_of_the_local_engine(engine: OpenAIEngine, folder: Path) -> None:
    """The prompt too: vLLM lays out the chat, and continues a prefix, as we do."""
    greedy = {"temperature": 0.0, "stop_at_boxed": False, "detect_loops": False}
    requests = [
        ask("What is 17 + 25?", **greedy),
        ask("Name three colours.", **greedy),
        ask("What is 2 + 3?", prefix="The answer is", **greedy),
    ]
    loaded = load_model(str(folder), device="cpu", dtype="float32")
    mine = LocalEngine(loaded.model, loaded.tokenizer).generate(requests)
    for [remote], [local] in zip(engine.generate(requests), mine, strict=True):
        assert remote.prompt_ids == local.prompt_ids
        assert remote.token_ids == local.token_ids
        assert remote.text == local.text
        assert remote.logprobs == pytest.approx(local.logprobs, abs=1e-3)
        assert remote.usage.prompt_tokens == local.usage.prompt_tokens
        assert remote.usage.sampled_tokens == local.usage.sampled_tokens


@pytest.mark.parametrize("stream", [True, False])
def test_counts_ids_and_bounds_agree(url: str, stream: bool) -> None:
    requests = [ask(f"What is {i} + {i}?", n=3, seed=i, top_logprobs=5) for i in range(4)]
    with OpenAIEngine(endpoint(url), NAME, stream=stream) as engine:
        bounds = [engine.count_prompt(request) for request in requests]
        before = engine.traffic
        groups = engine.generate(requests)
        after = engine.traffic
    usage = total(groups)
    assert usage.sampled_tokens == after.sampled_tokens - before.sampled_tokens
    assert usage.prompt_tokens == after.prompt_tokens - before.prompt_tokens
    assert usage.num_calls == after.num_calls - before.num_calls == (12 if stream else 4)
    for bound, group in zip(bounds, groups, strict=True):
        for completion in group:
            assert len(completion.token_ids) == len(completion.logprobs) <= 16
            assert len(completion.confidences) == len(completion.token_ids)
            assert completion.usage.sampled_tokens == len(completion.token_ids)
            assert len(completion.prompt_ids) <= bound


def test_a_seed_brings_the_same_draws_again(engine: OpenAIEngine) -> None:
    first, again, other = (engine.generate([ask("Tell a story.", n=4, seed=s)]) for s in (1, 1, 2))
    ids = [[c.token_ids for c in groups[0]] for groups in (first, again, other)]
    assert ids[0] == ids[1] != ids[2]
    assert len(set(ids[0])) == 4


def test_a_stop_string_ends_a_completion_and_stays(engine: OpenAIEngine) -> None:
    request = ask("What is 2 + 3?", prefix="Two plus three is", stop=(".",), temperature=0.0)
    [[completion]] = engine.generate([request])
    assert completion.finish_reason is FinishReason.STOP
    assert completion.text.endswith(".")


def test_a_box_ends_the_stream_early(engine: OpenAIEngine) -> None:
    request = ask("What is 2 + 3?", prefix="\\boxed{5", temperature=0.0, max_tokens=200, n=2)
    groups = engine.generate([request])
    for completion in groups[0]:
        assert completion.finish_reason is FinishReason.BOXED
        assert "}" in completion.text
        assert completion.usage.sampled_tokens == len(completion.token_ids) < 200


def test_the_text_is_told_as_it_grows(engine: OpenAIEngine) -> None:
    pieces: list[Piece] = []
    request = ask("Tell a story.", max_tokens=64, stop_at_boxed=False)
    [[completion]] = engine.generate([request], on_piece=pieces.append)
    text = ""
    for piece in pieces:
        text = text[: piece.start] + piece.text
    assert text == completion.text
    assert len(pieces) > 2


def test_a_prompt_beyond_the_window_is_the_servers_own_sentence(engine: OpenAIEngine) -> None:
    with pytest.raises(ServerError, match=r"HTTP 400, .*maximum context length is 512 tokens"):
        engine.generate([ask("word " * 600)])


def test_a_wrong_name_of_a_model_is_the_servers_own_sentence(url: str) -> None:
    with (
        OpenAIEngine(endpoint(url), "nope") as engine,
        pytest.raises(ServerError, match=r"HTTP 404, .*check the model's name"),
    ):
        engine.generate([ask("Hello")])


def test_the_command_line_asks_it(url: str) -> None:
    command = [sys.executable, "-m", "forethought", "ask", "What is 2 + 3?", "--json"]
    command += ["--backend", url, "--model", NAME, "--max-tokens", "16"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    answer = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert '"finish_reason"' in answer.stdout
