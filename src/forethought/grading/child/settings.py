"""What the parent tells a sandboxed process on its command line. Holds no secret and no test."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

# Exit status of a launcher that could not build the sandbox; the reason stands on its stderr.
SETUP_FAILED = 125


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to isolate, and the limits of the one process that runs the foreign code."""

    isolation: str  # a value of `grading.isolation.IsolationKind`
    parent: int  # process id: whoever is adopted by another parent before it starts, ends
    memory_bytes: int
    file_bytes: int
    cpu_seconds: int
    max_processes: int
    max_files: int
    visible: tuple[str, ...] = ()  # files and folders of the host that can be read inside
    hidden: tuple[str, ...] = ()  # folders below these that are empty inside
    bubblewrap: str = ""  # its path, where it builds the sandbox
    interpreter: str = ""
    package_root: str = ""  # the folder that holds the package `forethought`
    folder: str = ""  # where the process starts; inside namespaces a folder in memory

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Settings:
        fields = json.loads(text)
        lists = {key: tuple(fields[key]) for key in ("visible", "hidden")}
        return cls(**{**fields, **lists})
