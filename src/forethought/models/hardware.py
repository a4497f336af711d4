"""Which number format computes fastest here: measured at start, never guessed from a name.

A processor may store bfloat16 and still multiply it twenty times slower than float32. So a small
matrix product in the shapes a small language model uses is timed in each format, once a process.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

from forethought.errors import ModelError

if TYPE_CHECKING:
    import torch

Purpose = Literal["sampling", "training"]

# (rows, inner, columns): a decode step of 512 rows; a training micro-batch of 2048 tokens.
Shapes = Mapping[Purpose, tuple[int, int, int]]
SHAPES: Shapes = {"sampling": (512, 192, 512), "training": (2048, 256, 1024)}
# A GPU is done with these before the next product has been handed to it.
LARGE_SHAPES: Shapes = {"sampling": (512, 1024, 4096), "training": (4096, 1024, 4096)}
NUM_ROUNDS = 2
MAX_REPEATS = 8
FEW_ROWS = 16
MAX_SECONDS = 0.015  # for one format and shape in one round; a slow format gets fewer repeats
# A lower precision must be worth its rounding: sampler and trainer agree best in float32.
WORTHWHILE = 1.2


@dataclass(frozen=True, slots=True, kw_only=True)
class DtypeSpeed:
    """Billions of operations a second in one number format, by purpose; on a CPU, of one core."""

    sampling_gflops: float
    training_gflops: float

    def of(self, purpose: Purpose) -> float:
        return self.sampling_gflops if purpose == "sampling" else self.training_gflops


@cache
def measure_dtypes(device: str = "cpu") -> Mapping[str, DtypeSpeed]:
    """Time float32 and bfloat16 (on CUDA float16 too) on `device`, in about 0.3 seconds.

    On a CPU with one thread: threads that wait for each other on a busy machine would be timed
    instead of the arithmetic. Formats that the device cannot multiply are left out. Cached: a
    process measures once.
    """
    import torch

    names = ["float32", "bfloat16"] + ["float16"] * device.startswith("cuda")
    rounds: dict[str, list[DtypeSpeed]] = {name: [] for name in names}
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # In turns: a busy moment of the machine then does not fall on one format alone.
        for _ in range(NUM_ROUNDS):
            for name, speeds in rounds.items():
                with contextlib.suppress(RuntimeError, TypeError):  # no such product here
                    speeds.append(_measure(device, getattr(torch, name)))
    finally:
        torch.set_num_threads(num_threads)
    return {
        name: DtypeSpeed(
            sampling_gflops=max(speed.sampling_gflops for speed in speeds),
            training_gflops=max(speed.training_gflops for speed in speeds),
        )
        for name, speeds in rounds.items()
        if speeds
    }


def fastest_dtype(speeds: Mapping[str, DtypeSpeed], purpose: Purpose) -> str:
    """The format to use: float32, or bfloat16 where it is clearly faster.

    Never float16, whose range needs loss scaling in training and overflows in sampling.
    """
    if "bfloat16" not in speeds:
        return "float32"
    ratio = speeds["bfloat16"].of(purpose) / speeds["float32"].of(purpose)
    return "bfloat16" if ratio >= WORTHWHILE else "float32"


def pick_dtype(name: str, purpose: Purpose, device: str = "cpu") -> str:
    """`name` itself, or for "auto" the format that is fastest on `device` for `purpose`.

    Raises ModelError for a name other than "auto", "float32", "bfloat16" or "float16".
    """
    if name == "auto":
        return fastest_dtype(measure_dtypes(device), purpose)
    if name not in ("float32", "bfloat16", "float16"):
        raise ModelError(f"dtype {name!r} is unknown: choose auto, float32, bfloat16 or float16")
    return name


def _measure(device: str, dtype: torch.dtype) -> DtypeSpeed:
    shapes = SHAPES if device.startswith("cpu") else LARGE_SHAPES
    return DtypeSpeed(
        sampling_gflops=_gflops(device, dtype, shapes["sampling"]),
        training_gflops=_gflops(device, dtype, shapes["training"]),
    )


def _gflops(device: str, dtype: torch.dtype, shape: tuple[int, int, int]) -> float:
    """Best speed of (rows, inner) @ (inner, columns), as 2 * rows * inner * columns / seconds.

    The best and not the mean, because other processes only ever add time. A format so slow that
    one product would take longer than MAX_SECONDS is timed on fewer rows.
    """
    import torch

    rows, inner, columns = shape
    left = torch.ones(rows, inner, dtype=dtype, device=device)
    right = torch.ones(inner, columns, dtype=dtype, device=device)
    _time_product(left[:FEW_ROWS], right, device)  # the first one pays for choosing kernels
    few_seconds = _time_product(left[:FEW_ROWS], right, device)
    rows = min(rows, max(FEW_ROWS, int(FEW_ROWS * MAX_SECONDS / few_seconds)))
    seconds: list[float] = []
    while len(seconds) < MAX_REPEATS and sum(seconds) < MAX_SECONDS:
        seconds.append(_time_product(left[:rows], right, device))
    return 2e-9 * rows * inner * columns / min(seconds)


def _time_product(left: torch.Tensor, right: torch.Tensor, device: str) -> float:
    import torch

    start = time.perf_counter()
    torch.mm(left, right)
    _wait(device)
    return time.perf_counter() - start


def _wait(device: str) -> None:
    """Let an asynchronous device finish what it was given."""
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    elif device.startswith("mps"):
        torch.mps.synchronize()
