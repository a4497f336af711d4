"""What the parent tells a sandboxed process on its command line. Holds no secret and no test."""

from __future__ import annotations

import json

# Exit status of a launcher that could not build the sandbox; the reason stands on its stderr.
SETUP_FAILED = 125


class Settings:
    """How to isolate, and the limits of the one process that runs the foreign code.

    A plain class: to import dataclasses would double the time that a sandbox takes to start.
    """

    isolation: str  # a value of `grading.isolation.IsolationKind`
    parent: int  # process id: a launcher that has another parent by then does not go on
    memory_bytes: int
    file_bytes: int
    cpu_seconds: int
    max_processes: int
    max_files: int
    visible: list[str]  # files and folders of the host that can be read inside
    hidden: list[str]  # folders below these that are empty inside
    bubblewrap: str  # its path, where it builds the sandbox
    interpreter: str
    package_root: str  # the folder that holds the package `forethought`
    folder: str  # where the process starts; inside namespaces it is in memory

    def __init__(self, **fields: object) -> None:
        assert fields.keys() == Settings.__annotations__.keys()
        self.__dict__.update(fields)

    def to_json(self) -> str:
        return json.dumps(self.__dict__)
