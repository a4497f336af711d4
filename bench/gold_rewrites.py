r"""Other ways to write an answer that say the same: what a grader must forgive.

Text in, text out, and no knowledge of the grader: the rules are those of LaTeX and of plain prose.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_FRACTION = re.compile(r"\\[dt]?frac\{(-?[0-9]+)\}\{([0-9]+)\}")
_INTEGER = re.compile(r"-?[0-9]+")
_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_OPERATOR = re.compile(r"(?<=[0-9A-Za-z)}]) ?([-+]) ?(?=[0-9A-Za-z\\(])")
_DEGREES = re.compile(r"\^\{?\\circ\}?$")


def rewrites(gold: str) -> dict[str, str]:
    """Name of the rule -> the answer rewritten, for the rules that change this answer."""
    found = {name: rule(gold) for name, rule in _RULES.items()}
    return {name: text for name, text in found.items() if text is not None and text != gold}


def _dfrac(gold: str) -> str:
    return re.sub(r"\\[dt]?frac", r"\\dfrac", gold)


def _slash(gold: str) -> str | None:
    match = _FRACTION.fullmatch(gold)
    return f"{match.group(1)}/{match.group(2)}" if match else None


def _decimal(gold: str) -> str | None:
    return f"{gold}.0" if _INTEGER.fullmatch(gold) else None


def _as_fraction(gold: str) -> str | None:
    return f"\\frac{{{gold}}}{{1}}" if _INTEGER.fullmatch(gold) else None


def _degrees(gold: str) -> str | None:
    if _DEGREES.search(gold):
        return _DEGREES.sub(r" \\text{ degrees}", gold)
    return f"{gold}^\\circ" if _INTEGER.fullmatch(gold) else None


def _unit(gold: str) -> str | None:
    return f"{gold} \\text{{ units}}" if _INTEGER.fullmatch(gold) or _slash(gold) else None


def _without_text(gold: str) -> str | None:
    return _TEXT.sub(r"\1", gold) if _TEXT.fullmatch(gold) else None


_RULES: dict[str, Callable[[str], str | None]] = {
    "dollars": lambda gold: f"${gold}$",
    "parentheses": lambda gold: f"\\({gold}\\)",
    "full stop": lambda gold: f"{gold}.",
    "spaces": lambda gold: f"  {gold}  ",
    "sized brackets": lambda gold: (
        re.sub(r"(?<![A-Za-z\\])([(\[])", r"\\left\1", gold).replace(")", "\\right)")
        if gold.startswith("(") and gold.endswith(")") and "\\left" not in gold and "[" not in gold
        else None
    ),
    "plain brackets": lambda gold: gold.replace("\\left", "").replace("\\right", ""),
    "after commas": lambda gold: re.sub(r", ?(?![0-9]{3}|\\!)", ",\\\\, ", gold),
    "around signs": lambda gold: _OPERATOR.sub(r" \1 ", gold) if "text" not in gold else None,
    "display": lambda gold: f"\\displaystyle {gold}",
    "dfrac": _dfrac,
    "slash": _slash,
    "decimal": _decimal,
    "fraction": _as_fraction,
    "degrees": _degrees,
    "units": _unit,
    "without text": _without_text,
}
