"""Three conventions for reward functions, told apart by what the parameters are called.

- verl: `compute_score(data_source, solution_str, ground_truth, extra_info)`, once a completion;
  known by `solution_str`. A dict has its `score`; its other numbers are logged.
- TRL: once a batch, lists under plural names (`prompts`, `completions`, `completion_ids`) and one
  list per column of the examples; known by a plural name, and taken where nothing else is known.
- verifiers: a rubric's function, once a completion, singular names (`prompt`, `completion`,
  `answer`, `state`, `info`, `task`, `parser`); known by one of them. With `answers`, `states`,
  `infos` or `tasks` it is a group function, called once for the siblings of a problem.

A caller gets the function and the batch and returns what the function returned, one value per
completion where the convention is one call per completion; checking is `user_rewards`'.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from numbers import Real
from typing import Any, TypeAlias

from forethought.errors import RewardError
from forethought.grading.answers import extract_answer, split_think
from forethought.grading.built_in_rewards import is_well_formed
from forethought.grading.reward_batch import RewardBatch
from forethought.types import Message

UserFunction: TypeAlias = Callable[..., Any]
Caller: TypeAlias = Callable[[UserFunction, RewardBatch, str], Any]

# TRL keeps these names for itself: a data column of that name is not passed on.
_RESERVED = frozenset({"prompt", "prompts", "completion", "completions", "completion_ids"})
_BATCHED = frozenset({"prompts", "completions", "completion_ids"})
_SINGLE = frozenset({"prompt", "completion", "state", "info", "parser"})
_GROUPED = frozenset({"answers", "states", "infos", "tasks"})
_GOLD_NAMES = ("solution", "ground_truth")  # what else a reference answer is called


def caller_for(function: UserFunction) -> Caller:
    """Who calls the function, by its signature; see above."""
    names = set(_parameters(function) or ())
    if "solution_str" in names:
        return call_verl
    if names & _GROUPED:
        return call_verifiers_group
    if names & _SINGLE and not names & _BATCHED:
        return call_verifiers
    return call_trl


# --- TRL ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TrainerState:
    """Of TRL's `trainer_state`, the part that exists here: updates made, and updates to make."""

    global_step: int
    max_steps: int


def call_trl(function: UserFunction, batch: RewardBatch, spec: str) -> Any:
    """One call with a list for every name, as GRPOTrainer of TRL 1.16 makes it."""
    columns = _columns(batch)
    lists = {key: column for key, column in columns.items() if key not in _RESERVED}
    lists["completion_ids"] = [list(ids) for ids in batch.completion_ids]
    lists["prompts"] = _prompts(batch)
    lists["completions"] = _completions(batch)
    arguments: dict[str, Any] = {
        **lists,
        "trainer_state": TrainerState(max(0, batch.step - 1), batch.num_steps),
        "log_metric": batch.log_metric,
        "log_extra": lambda column, values: None,  # there is no table of completions here
    }
    for name in _GOLD_NAMES:
        if name in (_parameters(function) or ()):
            arguments.setdefault(name, list(columns["answer"]))
    values = _settled(function(**_accepted(function, arguments, spec)))
    return list(values) if isinstance(values, Iterator) else values


# --- verl ---------------------------------------------------------------------------------------


def call_verl(function: UserFunction, batch: RewardBatch, spec: str) -> list[Any]:
    """One call per completion; `data_source` and `extra_info` are the row's, where it has them."""
    calls = []
    for example, text in zip(batch.examples, batch.completions, strict=True):
        meta = example.meta
        extra = meta.get("extra_info")
        arguments = {
            "data_source": meta.get("data_source", meta.get("family", "")),
            "solution_str": text,
            "ground_truth": example.answer,
            "extra_info": dict(extra) if isinstance(extra, Mapping) else {**meta, "id": example.id},
        }
        calls.append(function(**_accepted(function, arguments, spec)))
    scores = _settled(calls)
    return [_score_of(score, batch, spec) if isinstance(score, dict) else score for score in scores]


def _score_of(result: dict[str, Any], batch: RewardBatch, spec: str) -> Any:
    if "score" not in result:
        raise RewardError(
            f"reward function {spec!r} returned a dict without 'score' "
            f"(it has {', '.join(map(str, result)) or 'nothing'}); add it."
        )
    for name, value in result.items():
        if name != "score" and isinstance(value, Real):
            batch.log_metric(str(name), float(value))
    return result["score"]


# --- verifiers ----------------------------------------------------------------------------------


class Parser:
    """What rubric functions ask of a parser, for the format that Forethought teaches."""

    def parse(self, text: str) -> str:
        """What stands after the think block."""
        return split_think(text)[1].strip()

    def parse_answer(self, completion: str | Iterable[Message]) -> str | None:
        r"""The content of the last `\boxed{...}` after the think block, or None."""
        return extract_answer(_text_of(completion)).answer

    def get_format_reward_func(self) -> Callable[..., float]:
        """A function that is 1 for a well-formed completion and else 0."""

        def format_reward(completion: Any, **kwargs: Any) -> float:
            return float(is_well_formed(_text_of(completion)))

        return format_reward


def call_verifiers(function: UserFunction, batch: RewardBatch, spec: str) -> list[Any]:
    """One call per completion, with the arguments that the function names."""
    columns = _rubric_columns(batch)
    calls = []
    for index in range(len(batch.completions)):
        arguments = {name: column[index] for name, column in columns.items()}
        arguments["parser"] = Parser()
        calls.append(function(**_accepted(function, arguments, spec)))
    return list(_settled(calls))


def call_verifiers_group(function: UserFunction, batch: RewardBatch, spec: str) -> list[Any]:
    """One call for all siblings of a problem, with lists under plural names."""
    columns = {f"{name}s": column for name, column in _rubric_columns(batch).items()}
    calls, sizes = [], []
    places = groupby(range(len(batch.examples)), lambda index: batch.examples[index].id)
    for _, group in places:
        chosen = list(group)
        arguments: dict[str, Any] = {
            name: [column[index] for index in chosen] for name, column in columns.items()
        }
        arguments["parser"] = Parser()
        calls.append(function(**_accepted(function, arguments, spec)))
        sizes.append(len(chosen))
    values: list[Any] = []
    for found, size in zip(_settled(calls), sizes, strict=True):
        if not isinstance(found, list | tuple) or len(found) != size:
            raise RewardError(
                f"reward function {spec!r} returned {found!r:.80}; return a list of {size} "
                "numbers, one for each sibling."
            )
        values += found
    return values


def _rubric_columns(batch: RewardBatch) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {
        "prompt": _prompts(batch),
        "completion": _completions(batch),
        "answer": [example.answer for example in batch.examples],
        "info": [dict(example.meta) for example in batch.examples],
        "task": [str(example.meta.get("family", "default")) for example in batch.examples],
    }
    rows = zip(*columns.values(), strict=True)
    columns["state"] = [dict(zip(columns, row, strict=True)) for row in rows]
    return columns


# --- What they share ----------------------------------------------------------------------------


def _columns(batch: RewardBatch) -> dict[str, list[Any]]:
    """The examples' columns, as lists of B; fresh ones, so a function cannot harm its batch."""
    keys = {key: None for example in batch.examples for key in example.meta}
    columns: dict[str, list[Any]] = {
        key: [example.meta.get(key) for example in batch.examples] for key in keys
    }
    columns["id"] = [example.id for example in batch.examples]
    columns["answer"] = [example.answer for example in batch.examples]
    return columns


def _prompts(batch: RewardBatch) -> list[Any]:
    if batch.prompts is not None:
        return list(batch.prompts)
    return [[dict(message) for message in example.messages] for example in batch.examples]


def _completions(batch: RewardBatch) -> list[Any]:
    if batch.prompts is not None:
        return list(batch.completions)
    return [[{"role": "assistant", "content": text}] for text in batch.completions]


def _text_of(completion: str | Iterable[Message]) -> str:
    if isinstance(completion, str):
        return completion
    return "".join(m["content"] for m in completion if m["role"] == "assistant")


def _parameters(function: UserFunction) -> dict[str, inspect.Parameter] | None:
    try:
        return dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # some callables written in C have no signature
        return None


def _accepted(function: UserFunction, arguments: dict[str, Any], spec: str) -> dict[str, Any]:
    """The arguments that the function takes; RewardError when it needs one we do not have."""
    found = _parameters(function)
    if found is None:
        return arguments
    parameters = found.values()
    named = [p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    missing = [p.name for p in named if p.default is p.empty and p.name not in arguments]
    if missing:
        raise RewardError(
            f"reward function {spec!r} needs {missing[0]!r}, which the examples do not have; give "
            f"it a default or use one of {', '.join(sorted(arguments))}."
        )
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return arguments
    return {p.name: arguments[p.name] for p in named if p.name in arguments}


def _settled(values: Any) -> Any:
    """An awaitable, or a list with awaitables among the values, run to the end together."""
    if inspect.isawaitable(values):
        return _wait_for([values])[0]
    if isinstance(values, list) and any(map(inspect.isawaitable, values)):
        return _wait_for(values)
    return values


def _wait_for(values: list[Any]) -> list[Any]:
    """Async rewards run to their end, also where an event loop runs already (a notebook)."""

    async def finish() -> list[Any]:
        return list(await asyncio.gather(*map(_value_of, values)))

    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(asyncio.run, finish()).result()


async def _value_of(value: Awaitable[Any] | Any) -> Any:
    return await value if inspect.isawaitable(value) else value
