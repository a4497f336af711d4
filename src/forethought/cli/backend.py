"""Where a command samples: from a model of this machine, or on a server given by --backend."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from forethought.cli.console import note
from forethought.errors import UserError

if TYPE_CHECKING:
    from forethought.sampling.openai_client import Endpoint
    from forethought.types import Engine

VLLM = "vllm"

Backend = Annotated[
    str | None,
    typer.Option(help="URL of an OpenAI-compatible server, or vllm for vLLM in this process."),
]
ApiKeyEnv = Annotated[
    str | None, typer.Option(help="Environment variable that holds the server's key.")
]
Concurrency = Annotated[int, typer.Option(min=1, help="Calls to the server at once, at most.")]
DEFAULT_CONCURRENCY = 16


@dataclass(frozen=True, slots=True)
class Source:
    """A model, and where it is sampled from: the options of a command."""

    model: str
    backend: str | None = None
    api_key_env: str | None = None
    concurrency: int = DEFAULT_CONCURRENCY

    def check(self) -> None:
        """Raise UserError for a wrong model or address, before anything heavy is imported. What
        models a server has, only the server knows."""
        if self.backend is None or self.backend == VLLM:
            from forethought.models.resolve import resolve

            if self.api_key_env is not None:
                raise UserError("--api-key-env goes with --backend URL: no other needs a key")
            resolve(self.model)
        else:
            _endpoint(self.backend, self.api_key_env)


@contextmanager
def open_engine(source: Source) -> Iterator[Engine]:
    """The engine that samples from `source`, until the block ends. Raises UserError."""
    model, backend = source.model, source.backend
    source.check()
    if backend is None:
        from forethought.models.load import load_model
        from forethought.sampling.local import LocalEngine

        loaded = load_model(model)
        yield LocalEngine(loaded.model, loaded.tokenizer)
    elif backend == VLLM:
        from forethought.models.resolve import resolve
        from forethought.sampling.vllm import VllmEngine

        yield VllmEngine.load(str(resolve(model)))
    else:
        here = _endpoint(backend, source.api_key_env)
        from forethought.sampling.openai import Limits, OpenAIEngine

        with OpenAIEngine(here, model, limits=Limits(max_concurrent=source.concurrency)) as engine:
            yield engine
            _warn(engine.failures, engine.traffic.num_unmetered, engine.traffic.num_lost)


def _endpoint(backend: str, api_key_env: str | None) -> Endpoint:
    try:
        from forethought.sampling.openai_client import endpoint
    except ModuleNotFoundError as error:
        if error.name != "httpx2":
            raise
        raise UserError(
            f"--backend {backend} needs an HTTP client: pip install 'forethought[openai]'"
        ) from error
    return endpoint(backend, api_key_env)


def _warn(failures: list[str], num_unmetered: int, num_lost: int) -> None:
    """Say what the figures lack."""
    if failures:
        note(f"{len(failures)} requests were given up, the last as {failures[-1]}")
    if num_unmetered:
        note(f"the server did not count the tokens of {num_unmetered} replies: usage lacks them")
    if num_lost:
        note(f"{num_lost} replies were lost on the way: what they cost, only the server knows")
