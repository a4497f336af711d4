"""The environment with vLLM in it, which tests marked `integration` start processes of.

    make test-integration

wants .bench/vllm (make bench-env) and SmolLM2 (forethought model get smollm2-135m); the tests are
skipped, with the reason, without them.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from forethought.errors import ModelError
from forethought.machine import usable_cores
from forethought.models.registry import cache_folder, get_model

ROOT = Path(__file__).resolve().parent.parent
PYTHON = ROOT / ".bench" / "vllm" / "bin" / "python"
USERS_CACHE = cache_folder()  # read before any test gets a cache of its own
CONTEXT = 512


def smollm2_folder() -> Path:
    """Where SmolLM2 is. Skips the test without it, and without vLLM to run it."""
    if not PYTHON.exists():
        pytest.skip("there is no environment .bench/vllm: make bench-env makes it")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FORETHOUGHT_CACHE", str(USERS_CACHE))
        try:
            return get_model("smollm2-135m", progress=print)
        except ModelError as error:
            pytest.skip(str(error))


def environment(**more: str) -> dict[str, str]:
    """What a process with vLLM needs to know of this machine."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    settings = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, range(usable_cores()))),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    return kept | settings | more
