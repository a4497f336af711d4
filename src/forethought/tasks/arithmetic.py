"""Families of arithmetic: bare sums, stories about sums, and equations in one unknown."""

from __future__ import annotations

from random import Random

from forethought.tasks.problems import Arithmetic, Content, Family, Work

MAX_TOTAL = 99

NAMES = ("Ann", "Ben", "Cara", "Dan", "Eva", "Finn", "Gia", "Hugo", "Ida", "Jon", "Kim", "Leo")
THINGS = ("apples", "books", "coins", "cards", "eggs", "keys", "pens", "shells", "stamps", "toys")
GAINS = ("buys", "finds", "gets", "wins")
LOSSES = ("gives away", "loses", "sells", "uses")
PLACES = ("shop", "park", "school", "market", "house")


def _draw_chain(rng: Random, num_terms: int, max_term: int) -> Content:
    """Signed terms whose running total stays in 0..99; the first is positive."""
    total = rng.randint(2, max_term)
    terms = [total]
    while len(terms) < num_terms:
        term = rng.randint(2, max_term) * (1 if rng.random() < 0.6 else -1)
        if 0 <= total + term <= MAX_TOTAL:
            terms.append(term)
            total += term
    return tuple(terms)


def _work_chain(content: Content, arithmetic: Arithmetic) -> Work:
    total = content[0]
    for term in content[1:]:
        total = arithmetic.apply(total, "+" if term > 0 else "-", abs(term))
    return Work(steps=tuple(arithmetic.steps), answer=str(total))


def _draw_sum(rng: Random, difficulty: int) -> Content:
    return _draw_chain(rng, difficulty + 1, 30)


def _ask_sum(content: Content, rng: Random, distract: int) -> tuple[str, str]:
    terms = str(content[0]) + "".join(f" {'+' if t > 0 else '-'} {abs(t)}" for t in content[1:])
    question = rng.choice(("What is {}?", "Compute {}.", "Work out {}.")).format(terms)
    return _with_distraction(question, rng, distract)


def _with_distraction(plain: str, rng: Random, count: int) -> tuple[str, str]:
    """The question behind so many irrelevant sentences, and alone."""
    return " ".join([*(_irrelevant_sentence(rng) for _ in range(count)), plain]), plain


def _irrelevant_sentence(rng: Random, besides: str = "") -> str:
    """A sentence with a number in it that has nothing to do with the question."""
    name = rng.choice([n for n in NAMES if n != besides])
    number, thing = rng.randint(2, 30), rng.choice(THINGS)
    return rng.choice(
        (
            f"{name} has {number} {thing}.",
            f"{name} is {number} years old.",
            f"The {rng.choice(PLACES)} is {number} miles away.",
            f"It was {number} degrees at the {rng.choice(PLACES)}.",
        )
    )


def _draw_story(rng: Random, difficulty: int) -> Content:
    return _draw_chain(rng, difficulty + 1, 25)


def _ask_story(content: Content, rng: Random, distract: int) -> tuple[str, str]:
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    sentences = [f"{name} has {content[0]} {thing}."]
    for term in content[1:]:
        verb = rng.choice(GAINS if term > 0 else LOSSES)
        sentences.append(f"{name} {verb} {abs(term)}.")
    asked = f"How many {thing} does {name} have?"
    plain = " ".join([*sentences, asked])
    for _ in range(distract):
        sentences.insert(rng.randint(1, len(sentences)), _irrelevant_sentence(rng, besides=name))
    return " ".join([*sentences, asked]), plain


def _draw_equation(rng: Random, difficulty: int) -> Content:
    """(factor, inner, outer, x) of factor * (x + inner) + outer = right-hand side."""
    x = rng.randint(2, 9 if difficulty > 1 else 40)
    factor = 1 if difficulty == 1 else rng.randint(2, 9)
    inner = rng.randint(1, 10 - x) if difficulty >= 3 and x < 10 else 0
    outer = rng.randint(2, 30) * (1 if rng.random() < 0.5 else -1)
    if not 0 <= factor * (x + inner) + outer <= MAX_TOTAL:
        outer = -outer
    if not 0 <= factor * (x + inner) + outer <= MAX_TOTAL:
        return _draw_equation(rng, difficulty)
    return (factor, inner, outer, x)


def _ask_equation(content: Content, rng: Random, distract: int) -> tuple[str, str]:
    factor, inner, outer, x = content
    unknown = rng.choice("xynk")
    left = unknown if not inner else f"({unknown} + {inner})"
    left = left if factor == 1 else f"{factor} * {left}"
    equation = f"{left} {'+' if outer > 0 else '-'} {abs(outer)} = {factor * (x + inner) + outer}"
    plain = rng.choice(("Solve {} for {}.", "If {}, what is {}?")).format(equation, unknown)
    return _with_distraction(plain, rng, distract)


def _work_equation(content: Content, arithmetic: Arithmetic) -> Work:
    factor, inner, outer, x = content
    value = factor * (x + inner) + outer
    value = arithmetic.apply(value, "-" if outer > 0 else "+", abs(outer))
    if factor != 1:
        value = arithmetic.apply(value, "/", factor)
    if inner:
        value = arithmetic.apply(value, "-", inner)
    return Work(steps=tuple(arithmetic.steps), answer=str(value))


SUM = Family(
    name="sum",
    summary="add and subtract numbers up to 30; difficulty is the number of operations",
    max_difficulty=6,
    default_difficulty=4,
    draw=_draw_sum,
    ask=_ask_sum,
    work=_work_chain,
)
STORY = Family(
    name="story",
    summary="a short story in which things are gained and lost; difficulty is the number of events",
    max_difficulty=6,
    default_difficulty=3,
    draw=_draw_story,
    ask=_ask_story,
    work=_work_chain,
)
EQUATION = Family(
    name="equation",
    summary="a linear equation in one unknown; difficulty is the number of operations to undo",
    max_difficulty=3,
    default_difficulty=3,
    draw=_draw_equation,
    ask=_ask_equation,
    work=_work_equation,
)
