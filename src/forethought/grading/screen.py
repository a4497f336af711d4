r"""What may be shown to Math-Verify: short formulas in known notation, nothing left to work out.

It evaluates what it reads, so what is refused here is what would make it work for the model or
without end: integrals, sums, products, limits and derivatives; towers, large exponents, factorials
and binomials; words, lists and hedges. Commands are allowed by name, all others are refused.
"""

from __future__ import annotations

import importlib.util
import re
from functools import lru_cache

MAX_CHARS = 200
MAX_NESTING = 12
MAX_DIGITS = 30
MAX_EXPONENT = 100
MAX_FACTORIAL = 100

_COMMAND = re.compile(
    r"\\(?:frac|sqrt|cdot|times|div|pi|binom|(?:arc)?(?:sin|cos|tan)|cot|sec|csc|sinh|cosh|tanh"
    r"|ln|log|exp|le|ge|ne|[lr]floor|[lr]ceil|overline|min|max|gcd|alpha|beta|gamma|delta|theta"
    r"|(?:var)?epsilon|(?:var)?phi|lambda|mu|nu|rho|sigma|tau|chi|psi|omega|Gamma|Delta|Omega)"
)
_TOKEN = re.compile(r"\\[A-Za-z]+|[A-Za-z]+|[0-9]+|[-+*/^_!()\[\]{}|=<>., ]")
_DERIVATIVE = re.compile(r"\\frac ?\{ ?d[^{}]*\} ?\{ ?d ?[a-zA-Z]")
_BASE = re.compile(r"[0-9] ?_")  # 52_8 is read as 52
_POWER = re.compile(r"\^ ?(?:\{([^{}]*)(\})|([0-9]+|[a-zA-Z]|\\[a-z]+)|(.|\Z))")
_FACTORIAL = re.compile(r"(?<![0-9A-Za-z])([0-9]{1,3}|[A-Za-z])!(?!!)")
_BINOMIAL = re.compile(r"\\binom ?\{([0-9]{1,3}|[a-z])\} ?\{([0-9]{1,3}|[a-z])\}")


@lru_cache(maxsize=1)
def has_algebra() -> bool:
    """True when Math-Verify is installed (the extra `math`); it is not imported here."""
    return importlib.util.find_spec("math_verify") is not None


def is_fit_for_algebra(text: str) -> bool:
    """True for a normalised formula that Math-Verify can be expected to finish soon."""
    if len(text) > MAX_CHARS or _DERIVATIVE.search(text):
        return False
    if _BASE.search(text):
        return False
    tokens = _TOKEN.findall(text)
    if len("".join(tokens)) != len(text):
        return False
    return all(map(_is_known, tokens)) and _is_flat(text) and _is_small(text)


def _is_known(token: str) -> bool:
    if token.startswith("\\"):
        return _COMMAND.fullmatch(token) is not None
    return len(token) <= (MAX_DIGITS if token.isdigit() else 3)  # longer words are no products


def _is_flat(text: str) -> bool:
    return max(text.count(opening) for opening in "([{") <= MAX_NESTING


def _is_small(text: str) -> bool:
    """No power of a power, and every exponent, factorial and binomial within bounds."""
    product = 1
    for match in _POWER.finditer(text):
        exponent = match.group(1) if match.group(2) else match.group(3)
        if exponent is None or "!" in exponent or "binom" in exponent:
            return False  # braces within: a tower, or too deep to tell
        for number in re.findall("[0-9]+", exponent):
            product *= max(1, int(number))
    if product > MAX_EXPONENT**2 or _is_tower(text):
        return False
    small = [int(n) for n in _FACTORIAL.findall(text) if n.isdigit()]
    small += [int(n) for pair in _BINOMIAL.findall(text) for n in pair if n.isdigit()]
    return (
        text.count("!") == len(_FACTORIAL.findall(text))
        and text.count("\\binom") == len(_BINOMIAL.findall(text))
        and max(small, default=0) <= MAX_FACTORIAL
    )


def _is_tower(text: str) -> bool:
    return re.search(r"\^ ?(?:\{[^{}]*\^|[0-9A-Za-z]+ ?\^)", text) is not None
