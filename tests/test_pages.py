"""What a step frees, the next one gets again without asking the kernel."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
from torch import nn

from forethought.models import pages

COUNT_FAULTS = """
import resource
import sys
import torch
from forethought.models.pages import keep_pages

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

assert sys.argv[1] == "as before" or keep_pages(torch.nn.Linear(4, 4))
torch.ones(32 << 20)
before = faults()
torch.ones(16 << 20)  # 64 MiB, more than glibc keeps by itself
print(faults() - before)
"""

is_glibc = platform.libc_ver()[0] == "glibc"


def faults(how: str) -> int:
    command = [sys.executable, "-c", COUNT_FAULTS, how]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(not is_glibc, reason="only glibc's allocator is told")
def test_a_block_that_was_freed_is_not_asked_of_the_kernel_again() -> None:
    assert faults("kept") < 100 < 10 * faults("as before")


def test_a_model_that_is_large_for_the_free_memory_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = nn.Linear(1 << 10, 1 << 10, device="meta")  # 16 MiB with gradient and moments
    monkeypatch.setattr(pages, "free_memory_bytes", lambda: 1 << 25)
    assert not pages.keep_pages(model)
