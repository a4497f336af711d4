r"""Write one thing one way: LaTeX, spacing and punctuation variants of an answer become one text.

Only notation changes here, never value or order. Each pattern looks at one character class at a
time, so the time is linear in the length of the answer.
"""

from __future__ import annotations

import re

# A minus, degree, infinity or pi sign means what it says; digits outside ASCII stay what they are.
_SIGNS = str.maketrans(
    {"\u2212": "-", "\u00b0": "^\\circ ", "\u221e": "\\infty ", "\u03c0": "\\pi ", "\u00a0": " "}
)
_TEXT_COMMAND = re.compile(
    r"\\(?:text|textbf|textit|textrm|textnormal|mathrm|mathbf|mathit|mbox|operatorname) ?"
    r"\{([^{}]*)\}"
)
# Inside \text{} one letter after a value is a unit; elsewhere it is a variable.
_UNIT_LETTERS = {"m": "meter", "g": "gram", "s": "sec", "h": "hr", "L": "liter"}
_UNIT_LETTER = re.compile(r"(?<![A-Za-z])[mgshL](?![A-Za-z])")
_DIGIT_SEPARATOR = re.compile(r"(?<=[0-9])(?:,\\! ?|\{,\}|\\,|\\!)(?=[0-9]{3}(?![0-9]))")
_COMMAND = re.compile(r"\\(?:[a-zA-Z]+|.)|[$~]")
_COMMANDS = {
    **dict.fromkeys(["\\left", "\\right", "\\big", "\\Big", "\\bigl", "\\bigr", "\\bigg"], ""),
    **dict.fromkeys(["\\displaystyle", "\\limits", "\\(", "\\)", "\\[", "\\]", "\\!", "\\$"], ""),
    **dict.fromkeys(["\\,", "\\;", "\\:", "\\ ", "\\quad", "\\qquad", "~"], " "),
    **dict.fromkeys(["\\dfrac", "\\tfrac", "\\cfrac"], "\\frac"),
    **{"$": "", "\\%": "%", "\\leq": "\\le", "\\geq": "\\ge", "\\neq": "\\ne"},
}
_DEGREES = re.compile(
    r"(?:\^ ?(?:\{ ?\\circ ?\}|\\circ(?![a-z]))|\\degrees?(?![a-z]))(?: *([CF])(?![A-Za-z]))?"
)
_CONJUNCTION = re.compile(r" ?,? (?:and|or) ")
# A space counts between letters or digits ("3 1/2", "north east"), after a comma ("1, 234" is no
# number) and between a value and its unit.
_SPACE = re.compile(r"(?<![0-9A-Za-z,})]) +| +(?![0-9A-Za-z])")
_SHORT_FRACTION = re.compile(r"\\frac ?([0-9]) ?(?:([0-9])|(?=\{))")
_HALF_FRACTION = re.compile(r"(\\frac\{[^{}]*\}) ?([0-9])")
_SHORT_ROOT = re.compile(r"\\sqrt ?([0-9a-zA-Z])")
_SINGLE = re.compile(r"([_^])\{([0-9A-Za-z])\}")


def normalise(text: str) -> str:
    r"""Return the one spelling of an answer, "" when nothing is left.

    For instance `$\dfrac 12$`, `\frac1{2}` and `\frac{1} {2}.` all become `\frac{1}{2}`.
    """
    if not text.isascii():
        text = text.translate(_SIGNS)
    text = text.strip().strip("*")
    if text.startswith("\\boxed{") and text.endswith("}"):
        text = text[len("\\boxed{") : -1]
    if "\\" in text or "{" in text or "$" in text or "^" in text or "~" in text:
        text = _normalise_latex(text)
    text = _CONJUNCTION.sub(", ", " ".join(text.split()))
    return _SPACE.sub("", text).rstrip(".,;: ").strip()


def _normalise_latex(text: str) -> str:
    text = _TEXT_COMMAND.sub(_plain_text, text)
    text = _DIGIT_SEPARATOR.sub("", text)
    text = _COMMAND.sub(lambda match: _COMMANDS.get(match.group(), match.group()), text)
    text = _DEGREES.sub(_degrees, text)
    if "\\frac" in text:
        text = _SHORT_FRACTION.sub(_braced_fraction, text)
        text = _HALF_FRACTION.sub(r"\1{\2}", text)
    if "\\sqrt" in text:
        text = _SHORT_ROOT.sub(r"\\sqrt{\1}", text)
    return _SINGLE.sub(r"\1\2", text)


def _plain_text(match: re.Match[str]) -> str:
    content = match.group(1)
    before = match.string[: match.start()].rstrip(" \\,;~")
    if before.endswith(("}", ")", *"0123456789")):
        content = _UNIT_LETTER.sub(lambda letter: _UNIT_LETTERS[letter.group()], content)
    return f" {content} "


def _degrees(match: re.Match[str]) -> str:
    return f" degree{match.group(1) or ''} "


def _braced_fraction(match: re.Match[str]) -> str:
    top, bottom = match.groups()
    return f"\\frac{{{top}}}" + (f"{{{bottom}}}" if bottom else "")
