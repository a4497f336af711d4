r"""Read the answer out of a completion: the last `\boxed{...}` after the think block.

Everything here fails closed and runs in linear time: a completion is untrusted text of any length.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from forethought.types import GradeStatus

THINK_OPEN = "<think>"
THINK_CLOSE = "</think>"
BOX_OPEN = "\\boxed{"
MAX_ANSWER_CHARS = 512
MAX_NESTING = 50

# A backslash takes the next character with it (`\{` is no brace), but not the start of a box, so
# that `\\boxed{` is read as a box by every function here.
_BRACES = re.compile(r"\\boxed\{|\\(?!\\boxed\{).?|[{}]", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Extracted:
    """An answer, or the status that says why there is none. Exactly one of the two is set."""

    answer: str | None = None
    status: GradeStatus | None = None


def split_think(text: str, *, opened: bool = False) -> tuple[str, str]:
    """Split a completion into (reasoning, visible).

    `visible` is what follows the last `</think>`, "" while a think block is open, and the whole
    text when there is none. `opened` says that the prompt itself ended inside a think block.
    """
    if _think_is_open(text, opened=opened):
        return text.replace(THINK_OPEN, "", 1), ""
    reasoning, _, visible = text.rpartition(THINK_CLOSE)
    return reasoning.replace(THINK_OPEN, "", 1), visible


def extract_answer(text: str, *, opened: bool = False) -> Extracted:
    r"""Return the content of the last `\boxed{...}` outside the think block. Never raises.

    An unclosed think block gives UNCLOSED_THINK. A missing, unterminated or empty last box, one
    longer than MAX_ANSWER_CHARS or nested deeper than MAX_NESTING, gives NO_ANSWER: an earlier box
    is not a substitute.
    """
    if _think_is_open(text, opened=opened):
        return Extracted(status=GradeStatus.UNCLOSED_THINK)
    span = last_box(text)
    answer = text[slice(*span)].strip() if span else ""
    if not answer:
        return Extracted(status=GradeStatus.NO_ANSWER)
    return Extracted(answer=answer)


def final_answer(solution: str) -> str:
    """What counts of a reference that is a worked solution: after its last ####, or in its box."""
    if "####" in solution:
        return solution.rpartition("####")[2].strip()
    return (extract_answer(solution).answer or "") if BOX_OPEN in solution else solution


def last_box(text: str) -> tuple[int, int] | None:
    r"""Return (start, end) of the content of the last `\boxed{...}` after the last `</think>`.

    None when there is no box, or when the last one does not close within the limits.
    """
    start = text.rfind(BOX_OPEN, _visible_start(text))
    if start < 0:
        return None
    start += len(BOX_OPEN)
    depth = 1
    for match in _BRACES.finditer(text, start, start + MAX_ANSWER_CHARS + 1):
        if match.group() == "{":
            depth += 1
        elif match.group() == "}":
            depth -= 1
        if depth > MAX_NESTING:
            return None
        if depth == 0:
            return start, match.start()
    return None


def has_closed_box(text: str, *, opened: bool = False) -> bool:
    r"""True once some `\boxed{...}` outside the think block has closed, even an empty one.

    Two substring searches while there is no box, one pass over what follows the first box after
    that, so a sampler may call it after every token; it can only turn true at a token with a `}`.
    """
    if _think_is_open(text, opened=opened):
        return False
    first = text.find(BOX_OPEN, _visible_start(text))
    if first < 0:
        return False
    depth = 0  # inside the box that opened last: it closes before those around it
    for match in _BRACES.finditer(text, first):
        token = match.group()
        if token == BOX_OPEN:
            depth = 1
        elif token == "{":
            depth += 1
        elif token == "}":
            depth -= 1
            if depth == 0:
                return True
    return False


def _think_is_open(text: str, *, opened: bool) -> bool:
    last_open = text.rfind(THINK_OPEN)
    if last_open < 0 and not opened:
        return False
    last_close = text.rfind(THINK_CLOSE)
    return last_close < 0 or last_close < last_open


def _visible_start(text: str) -> int:
    close = text.rfind(THINK_CLOSE)
    return 0 if close < 0 else close + len(THINK_CLOSE)
