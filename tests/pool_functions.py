"""What the tests of the pool have its workers run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def add(left: int, right: int) -> int:
    return left + right


def echo(value: Any) -> Any:
    return value


def length(text: str) -> int:
    return len(text)


def process_id() -> int:
    return os.getpid()


def spin() -> None:
    while True:
        pass


def huge_power() -> int:
    """One call into C that holds the interpreter and hears no Python signal."""
    return 9 ** (9**9)


def sleep_with_a_child(place: str) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with open(place, "w", encoding="utf-8") as fifo:
        fifo.write(str(child.pid))
    time.sleep(600)


def tell_and_spin(place: str) -> None:
    with open(place, "w", encoding="utf-8") as fifo:
        fifo.write(str(os.getpid()))
    spin()


def ignore_signals_and_sleep() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    time.sleep(600)


def fail(text: str) -> None:
    raise ValueError(text)


def leave(code: int) -> None:
    sys.exit(code)


def vanish(code: int) -> None:
    os._exit(code)


def crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def eat_memory() -> int:
    return len(bytearray(8 << 30))


def hold_memory(size: int) -> int:
    held = bytearray(size)
    return len(held)


def recurse(depth: int = 0) -> None:
    recurse(depth + 1)


def not_json() -> object:
    return {1, 2}


def large(size: int) -> str:
    return "x" * size


def print_a_lot() -> str:
    print("x" * 1_000_000)
    sys.stderr.write("y" * 1_000_000)
    return "done"


def write_to_every_pipe(text: str) -> str:
    """What hostile code would do: answer in the grader's own format."""
    body = text.encode()
    for number in range(3, 64):
        try:
            os.write(number, len(body).to_bytes(4, "big") + body)
        except OSError:
            continue
    return "done"


def environment() -> dict[str, str]:
    return dict(os.environ)


def write_file(place: str) -> None:
    Path(place).write_text("x" * 1000, encoding="utf-8")


def modules() -> list[str]:
    return sorted(sys.modules)
