"""What a bench runs on; figures of each kind have a file of their own, as step_cuda.json.

A processor counts as one with bfloat16 where our own measurement takes that format for training.
"""

from __future__ import annotations

from functools import cache

import torch

from forethought.machine import describe_machine
from forethought.models.hardware import fastest_dtype, measure_dtypes


@cache
def is_bf16() -> bool:
    """Whether this is a processor (and no GPU) with fast bfloat16 arithmetic."""
    if torch.cuda.is_available():
        return False
    return fastest_dtype(measure_dtypes(), "training") == "bfloat16"


def name_here(name: str) -> str:
    """`name` with what it is measured on: step, step_bf16, step_amx or step_cuda; step_avx2 where
    the environment keeps torch from instructions that the processor has beyond those."""
    if torch.cuda.is_available():
        return f"{name}_cuda"
    features = describe_machine().cpu_features
    if not is_bf16():
        is_limited = any("AVX512" in f.upper().replace("-", "") for f in features)
        return f"{name}_avx2" if is_limited else name
    has_amx = "AMX BF16" in features
    return f"{name}_amx" if has_amx else f"{name}_bf16"


def half() -> str:
    """The format that `rollout_dtype = "auto"` takes here for a model that can be packed."""
    return "bfloat16" if torch.cuda.is_available() or is_bf16() else "float16"
