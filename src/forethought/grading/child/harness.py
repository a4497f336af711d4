"""Run foreign code: as a program, as a function that is called, or as a test that calls one.

This shares its process with the foreign code, which can read and change all of it. So it knows no
test and no expected value, and what it reports is believed only as far as the parent can compare.

The first message is 8 bytes of length and then JSON: `role`, `parts` (source texts that share one
module), `entry_point`. The roles `calls` and `check` go on in lines of JSON; every reply quotes the
`token` of the message that it answers, so no reply can be written before its question.
"""

from __future__ import annotations

import builtins
import json
import os
import sys
from importlib.machinery import SourceFileLoader
from types import ModuleType

from forethought.grading.child.values import UnsupportedType, decode, encode

TYPE_CHECKING = False  # importing typing takes a tenth of the time that a sandbox takes to start
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, BinaryIO


def run() -> None:
    """Read the first message and do what it says."""
    message = json.loads(_read(int.from_bytes(_read(8), "big")))
    sys.argv[:] = ["solution.py"]
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 2)
    if message["role"] == "program":
        os.close(null)
        load(message["parts"], "__main__")
        return
    channel = Channel(null)
    if message["role"] == "calls":
        serve_calls(channel, message)
    else:
        run_check(channel, message)


def _read(size: int) -> bytes:
    """Exactly `size` bytes of standard input, and none of what follows them."""
    found = b""
    while len(found) < size:
        piece = os.read(0, size - len(found))
        if not piece:
            os._exit(0)
        found += piece
    return found


class Channel:
    """Lines of JSON over what were standard input and output; those are the null device now."""

    def __init__(self, null: int) -> None:
        self._in: BinaryIO = os.fdopen(os.dup(0), "rb")
        self._out: BinaryIO = os.fdopen(os.dup(1), "wb")
        os.dup2(null, 0)
        os.dup2(null, 1)

    def read(self) -> dict[str, Any]:
        line = self._in.readline()
        if not line:
            os._exit(0)
        message: dict[str, Any] = json.loads(line)
        return message

    def write(self, message: Mapping[str, Any]) -> None:
        self._out.write(json.dumps(message).encode() + b"\n")
        self._out.flush()


class _TextLoader(SourceFileLoader):
    """Runs a text as the content of a module."""

    def __init__(self, text: str) -> None:
        super().__init__("solution", "solution.py")
        self._data = text.encode("utf-8", "surrogatepass")

    def get_data(self, path: str) -> bytes:
        return self._data

    def path_stats(self, path: str) -> Mapping[str, Any]:
        raise OSError("a text has no file, and no bytecode beside it")

    def run(self, module: ModuleType) -> None:
        self.name = module.__name__
        self.exec_module(module)


def load(parts: Sequence[str], name: str) -> ModuleType:
    """Run `parts` one after the other in one module, registered under `name`."""
    module = sys.modules[name] = ModuleType(name)
    for part in parts:
        _TextLoader(part).run(module)
    return module


def serve_calls(channel: Channel, message: Mapping[str, Any]) -> None:
    """Load the foreign code, say how that went, then answer calls of its entry point."""
    function: Any = None

    def start() -> None:
        nonlocal function
        module = load(message["parts"], "solution")
        function = getattr(module, message["entry_point"], None)
        if not callable(function):
            raise NameError(f"no function {message['entry_point']} is defined")

    reply = _attempt(start)
    while True:
        channel.write({"token": message["token"], **reply})
        message = channel.read()
        args, kwargs = decode(message["args"]), decode(message["kwargs"])
        reply = _attempt(function, *args, **kwargs)


def _attempt(function: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """What the call gave: a value, the exception it raised, or a type that cannot be sent."""
    try:
        value = encode(function(*args, **kwargs))
        json.dumps(value)  # nested too deep: better now than in the reply
        return {"value": value}
    except UnsupportedType as error:
        return {"unsupported": _short(error)}
    except BaseException as error:
        return {"raised": type(error).__name__, "detail": _short(error)}


def _short(error: BaseException) -> str:
    try:
        return str(error)[:200]
    except Exception:
        return ""


def run_check(channel: Channel, message: Mapping[str, Any]) -> None:
    """Run test code whose `candidate` is a stand-in that asks the parent for each value.

    The last of `parts` is the test: assertions, or a function `check(candidate)`. Those before it
    are the problem's own helpers.
    """
    token = message["token"]

    def candidate(*args: Any, **kwargs: Any) -> Any:
        nonlocal token
        channel.write({"token": token, "args": encode(args), "kwargs": encode(kwargs)})
        reply = channel.read()
        token = reply["token"]
        if "value" not in reply:
            raise _made(reply.get("raised"), reply.get("detail"))
        try:
            return decode(reply["value"])
        except UnsupportedType as error:
            raise ValueError(str(error)) from error

    *helpers, text = message["parts"]
    test = _TextLoader(text)
    try:
        test.get_code("solution")  # a test that is no Python is told apart from one that fails
        module = load(helpers, "problem")
        setattr(module, message["entry_point"], candidate)
    except BaseException as error:
        reply = {"unusable": f"{type(error).__name__}: {_short(error)}"}
    else:
        reply = _run_test(module, test, candidate)
    channel.write({"token": token, **reply})


def _made(name: object, detail: object) -> Exception:
    """The builtin exception of that name, as the answer raised it, or a RuntimeError."""
    kind = getattr(builtins, str(name), None)
    try:
        if isinstance(kind, type) and issubclass(kind, Exception):
            return kind(detail)
    except TypeError:  # UnicodeDecodeError and its like take more arguments
        pass
    return RuntimeError(detail)


def _run_test(module: ModuleType, test: _TextLoader, candidate: Any) -> dict[str, Any]:
    try:
        test.run(module)
        check = getattr(module, "check", None)
        if callable(check) and check is not candidate:
            check(candidate)
    except UnsupportedType as error:  # an argument; what comes back is a ValueError
        return {"unusable": _short(error)}
    except BaseException as error:
        return {"failed": type(error).__name__, "detail": _short(error)}
    return {"passed": True}
