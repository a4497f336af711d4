"""Reads the text of generated questions back, sharing no code with what wrote them.

`read(question)` gives the content of the problem as its family would key it, and an answer worked
out from the text alone (None where many answers are right).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_LOSSES = ("gives away", "loses", "sells", "uses")
_GAINS = ("buys", "finds", "gets", "wins")


@dataclass(frozen=True)
class Problem:
    """What a question says."""

    family: str
    content: tuple[Any, ...]
    answer: int | None

    @property
    def key(self) -> str:
        if self.family == "countdown":  # the order of the numbers makes no other problem
            target, numbers = self.content
            return f"countdown:{(target, tuple(sorted(numbers)))!r}"
        return f"{self.family}:{self.content!r}"


def read(question: str) -> Problem:
    """The problem in `question`, whatever irrelevant sentence stands around it."""
    for reader in (_read_rule, _read_countdown, _read_equation, _read_story, _read_sum):
        problem = reader(question)
        if problem is not None:
            return problem
    raise AssertionError(f"no reader understands {question!r}")


def _read_sum(question: str) -> Problem | None:
    found = re.search(r"(?:What is|Compute|Work out) (\d+(?: [-+] \d+)+)[?.]$", question)
    if not found:
        return None
    terms = tuple(int(t.replace(" ", "")) for t in re.findall(r"(?:[-+] )?\d+", found[1]))
    return Problem("sum", terms, sum(terms))


def _read_story(question: str) -> Problem | None:
    found = re.search(r"How many (\w+) does (\w+) have\?$", question)
    if not found:
        return None
    thing, name = found.groups()
    start = re.search(rf"\b{name} has (\d+) {thing}\.", question)
    assert start is not None
    terms = [int(start[1])]
    for verb, number in re.findall(rf"\b{name} ([a-z ]+) (\d+)\.", question):
        assert verb in _LOSSES + _GAINS
        terms.append(int(number) if verb in _GAINS else -int(number))
    return Problem("story", tuple(terms), sum(terms))


def _read_equation(question: str) -> Problem | None:
    found = re.search(
        r"(?:Solve|If) (?P<left>[^=?]*[xynk][^=?]*) = (?P<right>\d+)"
        r"(?: for [xynk]\.|, what is [xynk]\?)$",
        question,
    )
    if not found:
        return None
    form = r"(?:(?P<p>\d+) \* )?(?:\([xynk] \+ (?P<q>\d+)\)|[xynk]) (?P<sign>[-+]) (?P<r>\d+)"
    left = re.fullmatch(form, found["left"])
    assert left is not None, question
    factor, inner = int(left["p"] or 1), int(left["q"] or 0)
    outer = int(left["sign"] + left["r"])
    # tried out, not solved: the one x for which both sides agree
    [x] = [x for x in range(-200, 200) if factor * (x + inner) + outer == int(found["right"])]
    return Problem("equation", (factor, inner, outer, x), x)


def _read_rule(question: str) -> Problem | None:
    found = re.search(r"What is (.*?[#@$&~].*)\?$", question)
    if not found:
        return None
    symbol = re.search(r"[#@$&~]", found[1])
    assert symbol is not None
    meaning = re.search(rf"Here a {re.escape(symbol[0])} b means ([^.]*)\.", question)
    assert meaning is not None
    form = r"(?:(\d) \* )?a \+ (?:(\d) \* )?b(?: \+ (\d))?"
    parts = re.fullmatch(form, meaning[1])
    assert parts is not None, question
    p, q, c = int(parts[1] or 1), int(parts[2] or 1), int(parts[3] or 0)
    operands = tuple(map(int, re.findall(r"\d+", found[1])))
    assert len(operands) == 2 or found[1].startswith("(")
    combine: Callable[[int, int], int] = lambda a, b: p * a + q * b + c  # noqa: E731
    value = combine(operands[0], operands[1])
    value = combine(value, operands[2]) if len(operands) == 3 else value
    return Problem("rule", (p, q, c, operands), value)


def _read_countdown(question: str) -> Problem | None:
    use = re.search(r"Use each of ([\d, ]+) once with \+ and - to make (\d+)\.$", question)
    make = re.search(r"Make (\d+) from ([\d, ]+), each once, \+ and -\.$", question)
    if not use and not make:
        return None
    target, listed = (use[2], use[1]) if use else (make[1], make[2])  # type: ignore[index]
    return Problem("countdown", (int(target), tuple(map(int, listed.split(", ")))), None)
