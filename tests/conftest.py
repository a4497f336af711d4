"""What every test gets: no network, no files of the user's, one order-independent start."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from forethought.machine import usable_cores

# Set before any library reads them; commands that tests start inherit them.
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", NO_COLOR="1")

# A busy machine is no failure: examples have no deadline of their own.
# ... and does not change the number of threads halfway: some tests compare bits.
os.environ.setdefault("OMP_NUM_THREADS", str(usable_cores()))

settings.register_profile("forethought", deadline=None)
settings.load_profile("forethought")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test connect to this machine only."""
    connect = socket.socket.connect

    def connect_here(self: socket.socket, address: Any) -> None:
        is_here = self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "::1", "localhost")
        if not is_here:
            raise AssertionError(f"a test tried to reach {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_here)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Bits that do not depend on the machine's cores: `pytest.mark.usefixtures("one_thread")`."""
    import torch  # most tests do without

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train on the processor even beside a GPU, whose sums come in any order: for what compares
    bits."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete model folder of random weights."""
    from tiny_runs import save_tiny

    return save_tiny(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give every test an empty cache of models, never the user's."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("FORETHOUGHT_CACHE", str(folder))
    return folder
