"""A link of the documents to a heading finds it."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"\]\((?P<file>[\w./-]*)#(?P<anchor>[^)\s]+)\)")


def prose(path: Path) -> str:
    return re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)


def anchors(path: Path) -> set[str]:
    """Those that GitHub makes of a file's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(path), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_heading_that_is_linked_to_exists() -> None:
    links = [
        (document, (document.parent / link["file"] if link["file"] else document), link["anchor"])
        for document in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
        for link in LINK.finditer(prose(document))
    ]
    assert links
    for document, target, anchor in links:
        assert anchor in anchors(target), f"{document.name} links to {target.name}#{anchor}"
