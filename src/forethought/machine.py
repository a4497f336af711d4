"""What a run runs on: processor, cores, memory, load, versions, commit. Nothing is timed here.

`forethought.models.hardware` measures how fast it computes.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from forethought import __version__

# The flags that decide how fast matrices multiply, by the name people know them by.
_FLAGS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_bf16": "AVX-512 BF16",
    "amx_tile": "AMX",
    "amx_bf16": "AMX BF16",
    "asimd": "NEON",
    "bf16": "ARM BF16",
    "sve": "SVE",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """`num_cores` are those this process may use, by its affinity and its container's quota."""

    cpu: str
    cpu_features: tuple[str, ...]
    num_cores: int
    memory_bytes: int | None
    system: str


def describe_machine() -> Machine:
    """Describe the machine this process runs on; what cannot be found out is empty or None."""
    cpu, flags = _cpu_name_and_flags()
    return Machine(
        cpu=cpu,
        cpu_features=tuple(name for flag, name in _FLAGS.items() if flag in flags),
        num_cores=usable_cores(),
        memory_bytes=_memory_bytes(),
        system=f"{platform.system()} {platform.machine()}",
    )


def usable_cores() -> int:
    """Cores this process may use: its affinity, cut down to the container's quota; at least 1."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    quota = _read("/sys/fs/cgroup/cpu.max").split()  # "200000 100000" or "max 100000"
    if len(quota) == 2 and quota[0].isdigit() and int(quota[1]) > 0:
        cores = min(cores, round(int(quota[0]) / int(quota[1])))
    return max(cores, 1)


def free_memory_bytes() -> int | None:
    """Memory that a process may still take without swapping, within its container's limit; None
    where it cannot be found out."""
    lines = (line.partition(":") for line in _read("/proc/meminfo").splitlines())
    sizes = {name: value.split() for name, _, value in lines}
    if "MemAvailable" not in sizes:
        return None
    free = int(sizes["MemAvailable"][0]) * 1024  # the kernel's kB are KiB
    limit, used = (_read(f"/sys/fs/cgroup/memory.{name}").strip() for name in ("max", "current"))
    if limit.isdigit() and used.isdigit():
        free = min(free, int(limit) - int(used))
    return max(free, 0)


def load_average() -> float | None:
    """Processes that ran or wanted to run, averaged over the last minute; None where unknown."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


def num_threads() -> int:
    """Threads that compute: what OMP_NUM_THREADS says, else one for each usable core."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    return int(told) if told.isdigit() and int(told) else usable_cores()


def versions() -> dict[str, str | None]:
    """Versions that decide what a run computes; None for what is not installed."""
    found: dict[str, str | None] = {
        "forethought": __version__,
        "python": sys.version.split()[0],
    }
    for package in ("torch", "transformers", "tokenizers", "numba"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def source_commit() -> str | None:
    """The git commit of this package's source, "-dirty" when edited; None outside a checkout."""
    source = Path(__file__).parent
    if "site-packages" in source.parts:
        return None  # a surrounding repository is not this package's
    command = ["git", "-C", str(source), "describe", "--always", "--dirty", "--abbrev=40"]
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=5, check=False, env=environment
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None


def what_changed(info: Mapping[str, Any]) -> str:
    """What decides the bits of a result and is other than in `info`, the run.json of a run, as in
    "torch 2.9.0 (now 2.9.1), threads 2 (now 1)"; empty when nothing is."""
    machine = asdict(describe_machine())
    before = {
        "cpu": info["machine"]["cpu"],
        "cpu features": " ".join(info["machine"]["cpu_features"]),
        **info["versions"],
        **{name: info[name] for name in ("threads", "commit") if info.get(name)},
    }
    now = {
        "cpu": machine["cpu"],
        "cpu features": " ".join(machine["cpu_features"]),
        **versions(),
        "threads": num_threads(),
        "commit": source_commit(),
    }
    return ", ".join(
        f"{name} {before[name]} (now {now[name]})"
        for name in now
        if name in before and before[name] != now[name]
    )


def _cpu_name_and_flags() -> tuple[str, frozenset[str]]:
    name, flags = "", frozenset[str]()
    for line in _read("/proc/cpuinfo").splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "model name":
            name = name or value
        elif key in ("flags", "Features"):
            flags = flags or frozenset(value.split())
    if sys.platform == "darwin":
        name = _sysctl("machdep.cpu.brand_string")
    return name or platform.processor() or platform.machine() or "unknown", flags


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _sysctl(key: str) -> str:
    try:
        answer = subprocess.run(
            ["sysctl", "-n", key], capture_output=True, text=True, timeout=2, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip()


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
