"""A reward function of the user's: found by name, called by its convention, checked.

It returns one number or None per completion, in order; it may be `async`. What it must be called
with is told by `conventions`. It runs in this process: it is the user's own code.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import math
import sys
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import Any

from forethought.errors import RewardError
from forethought.grading.conventions import (
    Caller,
    UserFunction,
    call_trl,
    call_verifiers,
    call_verl,
    caller_for,
)
from forethought.grading.reward_batch import RewardBatch, RewardFunction


def adapt(function: UserFunction, spec: str) -> RewardFunction:
    """Wrap a user's function; calling the result raises RewardError when the function fails."""
    call = caller_for(function)

    def reward(batch: RewardBatch) -> list[float | None]:
        try:
            values = call(function, batch, spec)
        except RewardError:
            raise
        except (Exception, SystemExit) as error:
            hint = _hint(error, batch, call)
            raise RewardError(
                f"reward function {spec!r} raised {_describe(error)}; {hint}."
            ) from error
        return _checked(values, len(batch.completions), spec, _EXPECTED.get(call, _A_LIST))

    return reward


def load_function(spec: str) -> UserFunction:
    """Import `path/to/file.py:function` or `package.module:function`; raises RewardError."""
    place, _, name = spec.rpartition(":")
    is_file = place.endswith(".py")
    if is_file and not Path(place).is_file():
        raise RewardError(f"reward {spec!r}: there is no file {place!r}; correct the path.")
    try:
        module = _load_file(Path(place)) if is_file else importlib.import_module(place)
    except (Exception, SystemExit) as error:
        raise RewardError(
            f"reward {spec!r} cannot be imported ({_describe(error)}); correct it, or give the "
            "function as path/to/file.py:function."
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        functions = inspect.getmembers(module, inspect.isfunction)
        own = [key for key, value in functions if value.__module__ == module.__name__]
        raise RewardError(
            f"reward {spec!r}: {place} has no function {name!r}; it has {', '.join(own) or 'none'}."
        )
    return function  # type: ignore[no-any-return]


def _describe(error: BaseException) -> str:
    """The error in one short line: it becomes a part of a sentence."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _load_file(path: Path) -> ModuleType:
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
    name = f"forethought_reward_{digest}"  # two files of one stem do not meet in sys.modules
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


_A_LIST = "return a list of {count} numbers (or None), one per completion"
_EXPECTED: Mapping[Caller, str] = {
    call_verl: "return one number, or a dict with it under 'score'",
    call_verifiers: "return one number (or None)",
}


def _hint(error: BaseException, batch: RewardBatch, call: Caller) -> str:
    if batch.prompts is None and isinstance(error, (TypeError, AttributeError)):
        if call is call_trl:
            return "completions are lists of messages here, their text is completion[0]['content']"
        if call is call_verifiers:
            return "completion is a list of messages here, its text is completion[-1]['content']"
    return "return None for a completion it cannot score"


def _checked(values: Any, num_completions: int, spec: str, expected: str) -> list[float | None]:
    """One float or None per completion, or RewardError."""
    expected = expected.format(count=num_completions)
    if hasattr(values, "tolist"):  # numpy arrays and tensors
        values = values.tolist()
    if not isinstance(values, Sequence) or isinstance(values, (str, bytes)):
        kind = type(values).__name__
        raise RewardError(f"reward function {spec!r} returned {kind}; {expected}.")
    if len(values) != num_completions:
        raise RewardError(f"reward function {spec!r} returned {len(values)} values; {expected}.")
    numbers = [None if value is None else _as_float(value) for value in values]
    for value, number in zip(values, numbers, strict=True):
        if value is not None and number is None:
            raise RewardError(f"reward function {spec!r} returned {value!r:.80}; {expected}.")
    return numbers


def _as_float(value: Any) -> float | None:
    """A finite float; None for what is no number, is not finite, or is too large."""
    if hasattr(value, "item"):  # numpy scalars and tensors of one element
        value = value.item()
    try:
        number = float(value) if isinstance(value, Real) else math.nan
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
