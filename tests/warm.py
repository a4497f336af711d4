"""Imported by the server of forks alone: what every process does first is done once."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from forethought.models.load import load_model
from forethought.sampling.local import LocalEngine
from forethought.types import Message, Request, SamplingParams
from tiny_runs import save_tiny

with TemporaryDirectory() as folder:
    loaded = load_model(str(save_tiny(Path(folder) / "model")), dtype="float32")
params = SamplingParams(max_tokens=3, n=2)
requests = [Request(messages=(Message(role="user", content="1 + 1"),), params=params)]
for weights in ("float32", "float16"):
    LocalEngine(loaded.model, loaded.tokenizer, weights=weights).generate(requests)  # type: ignore[arg-type]
