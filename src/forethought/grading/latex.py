r"""Write one thing one way: LaTeX, spacing and punctuation variants of an answer become one text.

Only notation changes here, never value or order. Each pattern looks at one character class at a
time, so the time is linear in the length of the answer.
"""

from __future__ import annotations

import re

# Signs that mean what they say; digits outside ASCII stay what they are, and equal nothing.
_SIGNS = str.maketrans(
    {
        **dict.fromkeys("\u2212\u2013", "-"),
        **dict.fromkeys("\u00a0\u2009\u202f", " "),
        **{"\u00b0": "^\\circ ", "\u221e": "\\infty ", "\u03c0": "\\pi ", "\u221a": "\\sqrt "},
        **{"\u00d7": "\\times ", "\u00b7": "\\cdot ", "\u22c5": "\\cdot ", "\u00f7": "\\div "},
        **{"\u2264": "\\le ", "\u2265": "\\ge ", "\u2260": "\\ne ", "\u00b1": "\\pm "},
        **{"\u2208": "\\in ", "\u222a": "\\cup ", "\u2229": "\\cap ", "\u2205": "\\emptyset "},
        **{"\u00b2": "^2", "\u00b3": "^3", "\u03b8": "\\theta "},
    }
)
_TEXT_COMMAND = re.compile(
    r"\\(?:text|textbf|textit|textrm|textnormal|mathrm|mathbf|mathit|mbox|operatorname) ?"
    r"\{([^{}]*)\}"
)
# Inside \text{} one letter after a value is a unit; elsewhere it is a variable.
_UNIT_LETTERS = {"m": "meter", "g": "gram", "s": "sec", "h": "hr", "L": "liter"}
_UNIT_LETTER = re.compile(r"(?<![A-Za-z.])[mgshL](?![A-Za-z])")
_DIGIT_SEPARATOR = re.compile(r"(?<=[0-9])(?:,\\! ?|\{,\}|\\,|\\!)(?=[0-9]{3}(?![0-9]))")
_COMMAND = re.compile(r"\\\{ *\\\}|\\(?:[a-zA-Z]+|.)|[$~]")
_SIZES = ("big", "Big", "bigg", "Bigg")
_COMMANDS = {
    **dict.fromkeys(["\\left", "\\right", "\\displaystyle", "\\limits", "\\!"], ""),
    **dict.fromkeys(["\\" + size + side for size in _SIZES for side in ("", "l", "r")], ""),
    **dict.fromkeys(["\\(", "\\)", "\\[", "\\]"], ""),
    **dict.fromkeys(["\\,", "\\;", "\\:", "\\ ", "\\quad", "\\qquad", "~"], " "),
    **dict.fromkeys(["\\dfrac", "\\tfrac", "\\cfrac"], "\\frac"),
    **{"$": "", "\\%": "%", "\\leq": "\\le", "\\geq": "\\ge", "\\neq": "\\ne"},
    **{"\\leqslant": "\\le", "\\geqslant": "\\ge", "\\lt": "<", "\\gt": ">"},
    **{"\\lbrace": "\\{", "\\rbrace": "\\}", "\\langle": "(", "\\rangle": ")"},
    **{"\\pounds": "\u00a3", "\\euro": "\u20ac", "\\yen": "\u00a5", "\\{\\}": "\\emptyset"},
    **{"\\varnothing": "\\emptyset", "\\lvert": "|", "\\rvert": "|", "\\vert": "|"},
}
_LONE_DOLLAR = re.compile(r"([+-]?) ?(?<!\\)\$(?= ?[0-9.][^$]*\Z)")  # "$5" is money, "$5$" is LaTeX
_ARRAY = re.compile(r"\\(begin|end) ?\{array\} ?(?:\{[clr| ]*\})?")
_ENVIRONMENT = re.compile(r"\\(begin|end) ?\{ ?([a-zA-Z]+) ?\} ?")
_WRAPPED_MATRIX = re.compile(r"[(\[] ?(\\begin\{matrix\}[^()]*\\end\{matrix\}) ?[)\]]")
_PLAIN_ROOT = re.compile(r"(?<![\\A-Za-z])sqrt ?(?:\(([^()]*)\)|([0-9]+))")
_PLAIN_NAME = re.compile(
    r"(?<![\\A-Za-z])(?:(pi|infinity|infty|inf|oo)(?![A-Za-z])|(sin|cos|tan|ln|log|exp)(?= ?\())"
)
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
_SINGLE = re.compile(r"([_^])\{([0-9A-Za-z])\}(?! ?[0-9])")


def normalise(text: str) -> str:
    r"""Return the one spelling of an answer, "" when nothing is left.

    For instance `$\dfrac 12$`, `\frac1{2}` and `\frac{1} {2}.` all become `\frac{1}{2}`.
    """
    if not text.isascii():
        text = text.translate(_SIGNS)
    text = text.strip().rstrip(".").strip("*`").strip()
    if text.startswith("\\boxed{") and text.endswith("}"):
        text = text[len("\\boxed{") : -1].strip()
    if text.upper() != text.lower():  # there are letters
        text = _PLAIN_ROOT.sub(_latex_root, _PLAIN_NAME.sub(_latex_name, text))
    if "\\" in text or "{" in text or "$" in text or "^" in text or "~" in text:
        text = _normalise_latex(text)
    text = _CONJUNCTION.sub(", ", " ".join(text.split()))
    return _SPACE.sub("", text).rstrip(".,;:\\ ").strip()


def _normalise_latex(text: str) -> str:
    text = _LONE_DOLLAR.sub(r"\1\\$", text)
    text = _ARRAY.sub(r"\\\1{matrix}", text)
    text = _TEXT_COMMAND.sub(_plain_text, text)
    text = _DIGIT_SEPARATOR.sub("", text)
    text = _COMMAND.sub(lambda match: _COMMANDS.get(match.group(), match.group()), text)
    text = _DEGREES.sub(_degrees, text)
    if "\\begin" in text:
        text = _WRAPPED_MATRIX.sub(r"\1", _ENVIRONMENT.sub(r"\\\1{\2}", text))
    if "\\frac" in text:
        text = _SHORT_FRACTION.sub(_braced_fraction, text)
        text = _HALF_FRACTION.sub(r"\1{\2}", text)
    if "\\sqrt" in text:
        text = _SHORT_ROOT.sub(r"\\sqrt{\1}", text)
    return _SINGLE.sub(r"\1\2", text)


def _plain_text(match: re.Match[str]) -> str:
    content = match.group(1)
    before = match.string[: match.start()].rstrip(" \\,;~")
    if before.endswith(("}", ")", "\\pi", *"0123456789")):
        content = _UNIT_LETTER.sub(lambda letter: _UNIT_LETTERS[letter.group()], content)
    return f" {content} "


def _latex_root(match: re.Match[str]) -> str:
    return f"\\sqrt{{{match.group(1) or match.group(2) or ''}}}"


def _latex_name(match: re.Match[str]) -> str:
    constant, function = match.groups()
    return f"\\{function}" if function else ("\\pi " if constant == "pi" else "\\infty ")


def _degrees(match: re.Match[str]) -> str:
    return f" degree{match.group(1) or ''} "


def _braced_fraction(match: re.Match[str]) -> str:
    top, bottom = match.groups()
    return f"\\frac{{{top}}}" + (f"{{{bottom}}}" if bottom else "")
