"""Families of puzzles: private conventions stated in the prompt, and countdown (search)."""

from __future__ import annotations

import re
from itertools import permutations
from random import Random

from forethought.tasks.problems import Arithmetic, Content, Family, Work

SYMBOLS = "#@$&~"
_MAX_EXPRESSION = 64
_EXPRESSION = re.compile("[-+() 0-9]+")


def _draw_rule(rng: Random, difficulty: int) -> Content:
    """(p, q, c, operands): a # b means p * a + q * b + c, applied from left to right."""
    factor_a, factor_b = rng.choice(((2, 1), (1, 2), (3, 1), (1, 3), (2, 2)))
    constant = rng.randint(1, 9) if difficulty >= 2 else 0
    operands = tuple(rng.randint(2, 12) for _ in range(3 if difficulty >= 3 else 2))
    value = operands[0]
    for operand in operands[1:]:
        value = factor_a * value + factor_b * operand + constant
    return (factor_a, factor_b, constant, operands) if value <= 99 else _draw_rule(rng, difficulty)


def _scaled(factor: int, name: str) -> str:
    return name if factor == 1 else f"{factor} * {name}"


def _ask_rule(content: Content, rng: Random, distract: int) -> tuple[str, str]:
    factor_a, factor_b, constant, operands = content
    symbol = rng.choice(SYMBOLS)
    meaning = f"{_scaled(factor_a, 'a')} + {_scaled(factor_b, 'b')}"
    meaning += f" + {constant}" if constant else ""
    asked = f"{operands[0]} {symbol} {operands[1]}"
    asked = f"({asked}) {symbol} {operands[2]}" if len(operands) == 3 else asked
    plain = f"Here a {symbol} b means {meaning}. What is {asked}?"
    question, others = plain, [s for s in SYMBOLS if s != symbol]
    for _ in range(distract):
        other = rng.choice(others)
        others.remove(other)
        question = f"Here a {other} b means a + {rng.randint(2, 9)} * b. {question}"
    return question, plain


def _work_rule(content: Content, arithmetic: Arithmetic) -> Work:
    factor_a, factor_b, constant, operands = content
    value = operands[0]
    for operand in operands[1:]:
        left = arithmetic.apply(factor_a, "*", value) if factor_a != 1 else value
        right = arithmetic.apply(factor_b, "*", operand) if factor_b != 1 else operand
        value = arithmetic.apply(left, "+", right)
        value = arithmetic.apply(value, "+", constant) if constant else value
    return Work(steps=tuple(arithmetic.steps), answer=str(value))


def _draw_countdown(rng: Random, difficulty: int) -> Content:
    """(target, numbers): the target is reachable from left to right in some order."""
    numbers = tuple(rng.sample(range(2, 14), difficulty + 1))
    total = numbers[0]
    for number in numbers[1:]:
        total = total - number if rng.random() < 0.5 else total + number
    shown = list(numbers)
    rng.shuffle(shown)
    return (total, tuple(shown)) if total > 0 else _draw_countdown(rng, difficulty)


def _ask_countdown(content: Content, rng: Random, distract: int) -> tuple[str, str]:
    target, numbers = content
    listed = ", ".join(map(str, numbers))
    plain = rng.choice(
        ("Use each of {} once with + and - to make {}.", "Make {1} from {0}, each once, + and -.")
    ).format(listed, target)
    return plain, plain


def _work_countdown(content: Content, arithmetic: Arithmetic) -> Work:
    """Search from left to right, writing each try that misses down before the one that works."""
    target, numbers = content
    for order in permutations(numbers):
        for signs in _sign_patterns(len(order) - 1):
            total = order[0] + sum(s * n for s, n in zip(signs, order[1:], strict=True))
            expression = str(order[0]) + "".join(
                f" {'+' if s > 0 else '-'} {n}" for s, n in zip(signs, order[1:], strict=True)
            )
            if total < 0:
                continue
            if total == target:
                arithmetic.steps.append(f"{expression} = {total} yes")
                return Work(steps=tuple(arithmetic.steps), answer=expression)
            arithmetic.steps.append(f"{expression} = {total} no")
    raise AssertionError("drawn so that it can be reached")


def _sign_patterns(count: int) -> list[tuple[int, ...]]:
    patterns: list[tuple[int, ...]] = [()]
    for _ in range(count):
        patterns = [(*p, s) for p in patterns for s in (1, -1)]
    return patterns


def _check_countdown(content: Content, answer: str) -> bool:
    """True when the answer uses each number once and equals the target. Parsed, never executed."""
    target, numbers = content
    if len(answer) > _MAX_EXPRESSION or not _EXPRESSION.fullmatch(answer):
        return False
    tokens = re.findall("[0-9]+|[-+()]", answer)[::-1]
    used: list[int] = []
    try:
        value = _read_sum(tokens, used)
    except ValueError:
        return False
    return not tokens and value == target and sorted(used) == sorted(numbers)


def _read_sum(tokens: list[str], used: list[int]) -> int:
    """The value of `term + term - ...`, taken from the end of `tokens`; notes the numbers used."""
    value = _read_term(tokens, used)
    while tokens and tokens[-1] in "+-":
        sign = 1 if tokens.pop() == "+" else -1
        value += sign * _read_term(tokens, used)
    return value


def _read_term(tokens: list[str], used: list[int]) -> int:
    """A number, or a sum in brackets. ValueError when there is neither."""
    token = tokens.pop() if tokens else ""
    if token == "(":
        value = _read_sum(tokens, used)
        if not tokens or tokens.pop() != ")":
            raise ValueError("a bracket is not closed")
        return value
    used.append(int(token))
    return used[-1]


RULE = Family(
    name="rule",
    summary=(
        "a private convention such as 'a # b means 2 * a + b'; "
        "difficulty adds a constant, then nesting"
    ),
    max_difficulty=3,
    default_difficulty=2,
    draw=_draw_rule,
    ask=_ask_rule,
    work=_work_rule,
)
COUNTDOWN = Family(
    name="countdown",
    summary="reach a target with + and - from given numbers; difficulty is how many operations",
    max_difficulty=3,
    default_difficulty=2,
    draw=_draw_countdown,
    ask=_ask_countdown,
    work=_work_countdown,
    check=_check_countdown,
    canonical=lambda content: (content[0], tuple(sorted(content[1]))),
)
