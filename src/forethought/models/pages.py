"""Keep the memory that one training step frees for the next.

glibc gives a large block back to the kernel when it is freed, and the next block of that size
comes as pages that must be found and cleared one by one, in a virtual machine by the host too. A
step frees and asks for the same blocks again and again. A model that is large for the free memory
is left alone, as what lies between its blocks adds up.
"""

from __future__ import annotations

import ctypes
import sys

from torch import nn

from forethought.machine import free_memory_bytes

# Of mallopt(3), by glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_NEVER = 2**31 - 1
_STATE_BYTES = 16  # a parameter with its gradient and AdamW's moments
_SHARE_OF_FREE = 1 / 4


def keep_pages(model: nn.Module) -> bool:
    """Where glibc allocates and training `model` takes at most a quarter of the free memory, let
    this process keep what it frees, from here on. Returns whether it does."""
    free = free_memory_bytes()
    state = _STATE_BYTES * sum(p.numel() for p in model.parameters())
    if sys.platform != "linux" or free is None or state > _SHARE_OF_FREE * free:
        return False
    allocator = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if allocator is None:
        return False
    # what a thread frees is for all: every arena of its own would keep as much again
    wanted = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER), (_ARENA_MAX, 1))
    return bool(min(allocator(*pair) for pair in wanted))  # 0 is a refusal
