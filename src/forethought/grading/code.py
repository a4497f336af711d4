"""Code answers: reading them out of a completion, the kinds of tests, comparing what came back.

Expected values are compared here, in our process, and never enter the one that runs the answer.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from forethought.grading.answers import THINK_CLOSE, Extracted, split_think
from forethought.types import GradeStatus

MAX_CODE_CHARS = 100_000

_FENCE = re.compile(r"[ \t]{0,3}(```|~~~)[ \t]*([^\s`]*)")
_PYTHON = ("python", "python3", "py")
_FUTURE = "from __future__ import "


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of the function under test, and the value that it must return."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    expected: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class CallTests:
    """Calls of `entry_point`. `from_json` says that JSON wrote the expected values: a tuple may
    stand where a list is expected, since JSON has no tuples."""

    entry_point: str
    cases: tuple[Call, ...]
    from_json: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramTests:
    """Runs of a whole program: (standard input, expected standard output) each."""

    cases: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckTests:
    """Test code, as in HumanEval: a function `check(candidate)`, or plain assertions that call
    `entry_point`. It runs in a process of its own, where `setup` has run before it, and reaches
    the answer only through calls; arguments and results travel by value, as builtin types."""

    entry_point: str
    check: str
    setup: str = ""


Tests = CallTests | ProgramTests | CheckTests


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the tests said about one answer. `detail` is why, in a few words.

    CORRECT: all passed. WRONG: a value or an output was not the expected one. ERROR: the answer
    raised, ended early, or broke a limit. TIMEOUT: it was not done in time. UNPARSABLE_GOLD: the
    tests themselves cannot be run. `is_known` is False where the answer was not judged at all.
    """

    status: GradeStatus
    detail: str = ""
    seconds: float = 0.0
    is_known: bool = True

    @property
    def score(self) -> float | None:
        if not self.is_known or self.status is GradeStatus.UNPARSABLE_GOLD:
            return None
        return float(self.status is GradeStatus.CORRECT)


def extract_code(text: str, *, opened: bool = False) -> Extracted:
    """The last fenced Python block after the think block. Never raises, linear time.

    Blocks without a language count where none is marked as Python; blocks in other languages never
    do. An unclosed think block gives UNCLOSED_THINK; no block, an empty one, one that does not
    close, or more than MAX_CODE_CHARS gives NO_ANSWER: an earlier block is no substitute.
    """
    _, visible = split_think(text, opened=opened)
    if not visible and (text or opened) and not text.endswith(THINK_CLOSE):
        return Extracted(status=GradeStatus.UNCLOSED_THINK)
    last: dict[bool, str | None] = {}  # marked as Python? -> its text, None while it is open
    language, fence = "", ""
    lines: list[str] = []
    for line in visible.splitlines():
        match = _FENCE.match(line)
        if fence and match and match[1] == fence and not match[2]:
            if language in ("", *_PYTHON):
                last[language != ""] = "\n".join(lines)
            fence = ""
        elif not fence and match:
            fence, language, lines = match[1], match[2].lower(), []
            if language in ("", *_PYTHON):
                last[language != ""] = None
        elif fence:
            lines.append(line)
    return _answer(last.get(True, last.get(False)))


def extract_continuation(text: str) -> Extracted:
    """What a base model wrote after the head of a function: all before the next line that is not
    indented. For completions of a prompt that ends inside the function."""
    kept = []
    for line in text.splitlines():
        if line.strip() and not line[0].isspace():
            break
        kept.append(line)
    return _answer("\n".join(kept))


def _answer(code: str | None) -> Extracted:
    if code is None or not code.strip() or len(code) > MAX_CODE_CHARS:
        return Extracted(status=GradeStatus.NO_ANSWER)
    return Extracted(answer=code)


def join_code(prompt: str, answer: str) -> str:
    """One source text: the prompt's imports and helpers, then the answer, which either continues
    the prompt's last function or defines it anew. Imports from `__future__` come first."""
    lines = f"{prompt.rstrip()}\n{answer}\n".split("\n")
    future = [line for line in lines if line.startswith(_FUTURE)]
    return "\n".join(future + [line for line in lines if not line.startswith(_FUTURE)])


def same_value(expected: Any, found: Any, *, from_json: bool = False) -> bool:
    """Equality of two values as `child.values.encode` writes them: type by type, not `==`.

    1, 1.0 and True differ; floats agree to nine digits; NaN equals NaN; order counts in lists and
    tuples only. Builds no set or dict of what was found: chosen keys could make that slow.
    """
    if from_json and isinstance(expected, list) and isinstance(found, dict):
        found = found.get("tuple")
    if type(expected) is not type(found):
        return False
    if isinstance(expected, float):
        both_nan = math.isnan(expected) and math.isnan(found)
        return both_nan or math.isclose(expected, found, rel_tol=1e-9, abs_tol=1e-12)
    if isinstance(expected, list):
        return len(expected) == len(found) and all(
            same_value(a, b, from_json=from_json) for a, b in zip(expected, found, strict=True)
        )
    if isinstance(expected, dict):
        if expected.keys() != found.keys():
            return False
        ((kind, content),) = expected.items()
        other = found[kind]
        if kind in ("set", "frozenset", "dict") and isinstance(other, list):
            content, other = (sorted(items, key=json.dumps) for items in (content, other))
        return same_value(content, other, from_json=from_json)
    return bool(expected == found)


def same_output(expected: str, found: str) -> bool:
    """Equality of printed text, but for spaces at the ends of lines and empty lines at the end."""
    return _trimmed(expected) == _trimmed(found)


def _trimmed(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]
