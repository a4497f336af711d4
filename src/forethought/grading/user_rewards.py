"""Call a user's reward function the way TRL's GRPOTrainer does.

The function is called once per batch with keyword arguments `prompts`, `completions`,
`completion_ids` and one list per column of the examples (`answer`, `id` and the keys of `meta`),
or with those of them it has parameters for. It returns one number or None per completion, in
order; it may be `async`. Where prompts are messages, `completions[i]` is
`[{"role": "assistant", "content": text}]`; where they are text it is the text. TRL's
`trainer_state`, `log_extra` and `log_metric` are not passed: give them a default.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import importlib.util
import inspect
import math
import sys
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

from forethought.errors import RewardError
from forethought.types import Example, Grade

UserFunction: TypeAlias = Callable[..., Any]

# TRL keeps these names for itself: a data column of that name is not passed on.
_RESERVED = frozenset({"prompt", "prompts", "completion", "completions", "completion_ids"})


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardBatch:
    """What a reward sees: B completions, and for each its example, grade and token ids.

    `prompts` holds B texts, or None when the prompts are the examples' messages. `opened` says
    that every prompt ends inside a think block.
    """

    examples: tuple[Example, ...]
    completions: tuple[str, ...]
    grades: tuple[Grade, ...]
    completion_ids: tuple[tuple[int, ...], ...]
    prompts: tuple[str, ...] | None = None
    opened: bool = False


def adapt(function: UserFunction, spec: str) -> Callable[[RewardBatch], list[float | None]]:
    """Wrap a user's function; calling the result raises RewardError when the function fails."""

    def reward(batch: RewardBatch) -> list[float | None]:
        arguments = _arguments(batch)
        accepted = _accepted(function, arguments, spec)
        try:
            values = function(**{name: arguments[name] for name in accepted})
            if inspect.isawaitable(values):
                values = _wait_for(values)
        except (Exception, SystemExit) as error:
            hint = _hint(error, batch)
            raise RewardError(
                f"reward function {spec!r} raised {_describe(error)}; {hint}."
            ) from error
        return _checked(values, len(batch.completions), spec)

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


def _arguments(batch: RewardBatch) -> dict[str, list[Any]]:
    """Every keyword argument, as lists of B; fresh copies, so a function cannot harm its batch."""
    keys = {key: None for example in batch.examples for key in example.meta}
    columns: dict[str, list[Any]] = {
        key: [example.meta.get(key) for example in batch.examples] for key in keys
    }
    columns["id"] = [example.id for example in batch.examples]
    columns["answer"] = [example.answer for example in batch.examples]
    arguments = {key: column for key, column in columns.items() if key not in _RESERVED}
    arguments["completion_ids"] = [list(ids) for ids in batch.completion_ids]
    if batch.prompts is not None:
        return {**arguments, "prompts": [*batch.prompts], "completions": [*batch.completions]}
    arguments["prompts"] = [[dict(m) for m in example.messages] for example in batch.examples]
    arguments["completions"] = [
        [{"role": "assistant", "content": text}] for text in batch.completions
    ]
    return arguments


def _accepted(function: UserFunction, arguments: dict[str, list[Any]], spec: str) -> list[str]:
    """Names of the arguments the function takes; RewardError when it needs one we do not have."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some callables written in C have no signature
        return list(arguments)
    named = [p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    missing = [p.name for p in named if p.default is p.empty and p.name not in arguments]
    if missing:
        raise RewardError(
            f"reward function {spec!r} needs {missing[0]!r}, which the examples do not have; give "
            f"it a default or use one of {', '.join(sorted(arguments))}."
        )
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return list(arguments)
    return [p.name for p in named if p.name in arguments]


def _wait_for(values: Awaitable[Any]) -> Any:
    """Run an async reward to its end, also where an event loop runs already (a notebook)."""

    async def finish() -> Any:
        return await values

    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(asyncio.run, finish()).result()


def _hint(error: BaseException, batch: RewardBatch) -> str:
    if batch.prompts is None and isinstance(error, (TypeError, AttributeError)):
        return "completions are lists of messages here, their text is completion[0]['content']"
    return "return None for a completion it cannot score"


def _checked(values: Any, num_completions: int, spec: str) -> list[float | None]:
    """One float or None per completion, or RewardError."""
    if hasattr(values, "tolist"):  # numpy arrays and tensors
        values = values.tolist()
    expected = f"return a list of {num_completions} numbers (or None), one per completion"
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
