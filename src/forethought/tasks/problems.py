"""What a problem is, and what a family of problems must say about itself.

A family draws content (numbers, operators), words it as a question, and works it out line by
line. Content has a canonical key; whether a problem belongs to the test or the training split is
a function of that key alone, so the splits cannot overlap whatever the wording, seed or size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

TEST_FRACTION = 0.1
MAX_DISTRACT = 4

Content = tuple[Any, ...]


def is_test_key(key: str, *, fraction: float = TEST_FRACTION) -> bool:
    """True when a problem with this content key is in the test split, as `fraction` of them are."""
    digest = hashlib.sha256(key.encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A worked solution: one line a step, and the answer that those lines lead to."""

    steps: tuple[str, ...]
    answer: str


class Arithmetic:
    """Integer arithmetic that writes down its steps and, for flawed traces, slips now and then."""

    def __init__(self, slip_rng: Random | None = None, slip_rate: float = 0.0) -> None:
        self.steps: list[str] = []
        self._rng = slip_rng
        self._rate = slip_rate

    def apply(self, left: int, operator: str, right: int) -> int:
        """`left operator right`, written as a step. The operators are + - * and exact /."""
        result = self._slip({"+": left + right, "-": left - right, "*": left * right}.get(operator))
        if result is None:
            result = self._slip(left // right) or 0
        self.steps.append(f"{left} {operator} {right} = {result}")
        return result

    def _slip(self, value: int | None) -> int | None:
        if value is None or self._rng is None or self._rng.random() >= self._rate:
            return value
        return abs(value + self._rng.choice((-10, -2, -1, 1, 2, 10)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A family of problems along one difficulty dial (1 is easiest).

    draw(rng, difficulty) -> content; ask(content, rng, distract) -> question;
    work(content, arithmetic) -> Work. `distract` is how many irrelevant sentences to put in, 0 to
    MAX_DISTRACT; the question is (with them, without them). `check(content, answer)` replaces the
    comparison with the gold answer where many answers are right. `canonical(content)` forgets what
    makes no difference to the problem, such as the order in which numbers are listed.
    """

    name: str
    summary: str
    max_difficulty: int
    default_difficulty: int
    draw: Callable[[Random, int], Content]
    ask: Callable[[Content, Random, int], tuple[str, str]]
    work: Callable[[Content, Arithmetic], Work]
    check: Callable[[Content, str], bool] | None = None
    canonical: Callable[[Content], Content] | None = None

    def key(self, content: Content) -> str:
        """The canonical content: what makes two wordings the same problem."""
        return f"{self.name}:{self.canonical(content) if self.canonical else content!r}"

    def draw_in_split(self, rng: Random, difficulty: int, *, test: bool) -> Content:
        """Content of the wanted split, by rejection (a tenth of all keys are test keys)."""
        while True:
            content = self.draw(rng, difficulty)
            if is_test_key(self.key(content)) is test:
                return content
