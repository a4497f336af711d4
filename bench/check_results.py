"""Hold every figure quoted in README.md and docs/ to the measurement it came from.

A figure is quoted between comments that name a stored result, here to one digit:

    <!-- result:quickstart#summary.seed_0.gain_percent -->54.1<!-- /result -->

means the value at summary.seed_0.gain_percent in docs/results/quickstart.json. Numbers in a path
index lists. The check compares at the digits quoted; a value that is text must be quoted whole.

    python bench/check_results.py            fails naming file:line, the quoted and the stored value
    python bench/check_results.py --write    writes the stored values into the documents
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MARKER = re.compile(
    r"<!--\s*result:(?P<name>[\w-]+)#(?P<path>[\w.@-]+)\s*-->"
    r"(?P<quoted>.*?)(?P<close><!--\s*/result\s*-->|$)",
    re.MULTILINE,
)
DEFAULT_DIGITS = 1


class ResultError(Exception):
    """A marker that names no stored value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One marker: where it is, what it quotes and what it should; `problem` is "" when right."""

    place: str
    quoted: str
    expected: str
    problem: str


def check(root: Path) -> list[Finding]:
    """Every marker under `root`, in the order of files and lines."""
    return [finding for document in documents(root) for finding in check_document(document, root)]


def documents(root: Path) -> list[Path]:
    """README.md, every Markdown file under docs/, and the cards of the bundled models."""
    readme = [path for path in (root / "README.md",) if path.exists()]
    cards = sorted((root / "src").rglob("README.md"))
    return [*readme, *sorted((root / "docs").rglob("*.md")), *cards]


def check_document(document: Path, root: Path) -> Iterator[Finding]:
    """The markers of one document, outside code fences and code spans."""
    for number, line in enumerate(_prose_lines(document.read_text(encoding="utf-8")), start=1):
        place = f"{document.relative_to(root)}:{number}"
        for marker in MARKER.finditer(line):
            quoted = marker["quoted"].strip()
            try:
                expected = expected_text(marker, root)
                problem = "" if quoted == expected else f"quotes {quoted}, stored is {expected}"
            except ResultError as error:
                expected, problem = quoted, str(error)
            yield Finding(place=place, quoted=quoted, expected=expected, problem=problem)


def write(root: Path) -> int:
    """Write the stored values into the documents; returns the number of figures that changed."""
    num_changed = 0
    for document in documents(root):
        text = document.read_text(encoding="utf-8")
        shown = _prose_lines(text)
        lines = text.split("\n")
        for index, line in enumerate(shown):
            if "result:" in line:
                # Back to front, so that earlier positions stay right.
                for marker in reversed(list(MARKER.finditer(line))):
                    expected = expected_text(marker, root)
                    num_changed += marker["quoted"].strip() != expected
                    start, end = marker.span("quoted")
                    lines[index] = lines[index][:start] + expected + lines[index][end:]
        document.write_text("\n".join(lines), encoding="utf-8")
    return num_changed


def expected_text(marker: re.Match[str], root: Path) -> str:
    """What `marker` should quote. Raises ResultError when it names nothing that is stored."""
    if not marker["close"]:
        raise ResultError(f"marker {marker['name']}#{marker['path']} is not closed on its line")
    stored = look_up(root / "docs" / "results" / f"{marker['name']}.json", marker["path"])
    return format_like(stored, marker["quoted"].strip())


def look_up(file: Path, path: str) -> Any:
    """The value at the dotted `path` of a JSON file; numbers index lists."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"), parse_float=Decimal)
    except (OSError, json.JSONDecodeError) as error:
        raise ResultError(f"cannot read docs/results/{file.name}: {error}") from error
    for key in path.split("."):
        try:
            value = value[int(key)] if isinstance(value, list) else value[key]
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise ResultError(f"docs/results/{file.name} has no value at {path}") from error
    if value is None or isinstance(value, dict | list):
        raise ResultError(f"docs/results/{file.name} holds no single value at {path}")
    return value


def format_like(stored: Any, quoted: str) -> str:
    """`stored` with the digits, thousands separators and plus sign that `quoted` has."""
    if isinstance(stored, bool | str):
        return str(stored)
    number = Decimal(stored)
    try:
        digits = max(0, -int(Decimal(quoted.replace(",", "")).as_tuple().exponent))
    except InvalidOperation:  # nothing quoted yet
        digits = 0 if number == int(number) else DEFAULT_DIGITS
    rounded = number.quantize(Decimal(1).scaleb(-digits), rounding=ROUND_HALF_EVEN)
    if rounded == 0:
        rounded = abs(rounded)  # never "-0.0"
    separator = "," if "," in quoted else ""
    return f"{rounded:{'+' if quoted.startswith('+') else ''}{separator}f}"


def _prose_lines(text: str) -> list[str]:
    """The lines of `text`, code blanked out with spaces so that positions stay."""
    lines, fenced = [], False
    for line in text.split("\n"):
        is_fence = line.lstrip().startswith(("```", "~~~"))
        code = is_fence or fenced
        fenced ^= is_fence
        blank = " " * len(line)
        lines.append(blank if code else re.sub(r"`[^`]*`", lambda m: " " * len(m[0]), line))
    return lines


def main(arguments: list[str], root: Path = ROOT) -> int:
    """Check (or write) and return the exit code."""
    parser = argparse.ArgumentParser(description="Hold quoted figures to the stored results.")
    parser.add_argument("--write", action="store_true", help="write the stored values in")
    if parser.parse_args(arguments).write:
        try:
            print(f"{write(root)} figures changed")
        except ResultError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    findings = check(root)
    wrong = [finding for finding in findings if finding.problem]
    for finding in wrong:
        print(f"{finding.place}: {finding.problem}")
    print(f"{len(findings)} figures quoted, {len(wrong)} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
