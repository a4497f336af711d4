"""The checker of quoted figures: what it lets pass, what it names, what it writes."""

from __future__ import annotations

import importlib.util
import json
import sys
from decimal import Decimal
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st


def load_checker() -> ModuleType:
    path = Path(__file__).parent.parent / "bench" / "check_results.py"
    spec = importlib.util.spec_from_file_location("check_results", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["check_results"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


checker = load_checker()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    results = tmp_path / "docs" / "results"
    results.mkdir(parents=True)
    stored = {"gain": 54.149, "seeds": [{"accuracy": 0.5}, {"accuracy": 0.25}], "cpu": "EPYC"}
    (results / "demo.json").write_text(json.dumps(stored | {"tokens": 12345, "none": None}))
    return tmp_path


def mark(path: str, quoted: str, name: str = "demo") -> str:
    return f"<!-- result:{name}#{path} -->{quoted}<!-- /result -->"


def test_right_figures_pass(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quotes = [("gain", "54.1"), ("gain", "54"), ("gain", "+54.15"), ("seeds.1.accuracy", "0.25")]
    quotes += [("cpu", "EPYC"), ("tokens", "12,345"), ("tokens", "12345")]
    (root / "README.md").write_text(" and ".join(mark(*quote) for quote in quotes))
    assert checker.main([], root) == 0
    assert "7 figures quoted, 0 wrong" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (mark("gain", "54.2"), "docs/a.md:2: quotes 54.2, stored is 54.1"),
        (mark("cpu", "Xeon"), "quotes Xeon, stored is EPYC"),
        (mark("tokens", "12,346"), "quotes 12,346, stored is 12,345"),
        (mark("lost", "1"), "docs/results/demo.json has no value at lost"),
        (mark("seeds.7.accuracy", "1"), "has no value at seeds.7.accuracy"),
        (mark("seeds", "1"), "holds no single value at seeds"),
        (mark("none", "0"), "holds no single value at none"),
        (mark("gain", "1", name="other"), "cannot read docs/results/other.json"),
        ("<!-- result:demo#gain -->54.1", "demo#gain is not closed on its line"),
    ],
)
def test_a_wrong_figure_is_named(
    root: Path, capsys: pytest.CaptureFixture[str], text: str, problem: str
) -> None:
    (root / "docs" / "a.md").write_text(f"# Title\nThe gain is {text} points.\n")
    assert checker.main([], root) == 1
    assert problem in capsys.readouterr().out


def test_examples_in_code_are_not_figures(root: Path) -> None:
    (root / "README.md").write_text(f"`{mark('lost', '1')}`\n```\n{mark('lost', '1')}\n```\n")
    assert checker.check(root) == []


def test_write_fills_in_and_changes_nothing_else(root: Path) -> None:
    text = f"\u00e9 {mark('gain', '1.00')}, {mark('cpu', '')}; `{mark('gain', '0')}`\n\n"
    (root / "README.md").write_text(text, encoding="utf-8")
    assert checker.main(["--write"], root) == 0
    expected = f"\u00e9 {mark('gain', '54.15')}, {mark('cpu', 'EPYC')}; `{mark('gain', '0')}`\n\n"
    assert (root / "README.md").read_text(encoding="utf-8") == expected


@given(st.decimals(-1000, 1000, places=4), st.integers(0, 3))
def test_a_rounded_value_is_quoted_right(stored: Decimal, digits: int) -> None:
    quoted = checker.format_like(stored, f"{stored:.{digits}f}")
    assert abs(Decimal(quoted) - stored) <= Decimal(1).scaleb(-digits) / 2
    assert checker.format_like(stored, quoted) == quoted


def test_the_documents_of_this_repository() -> None:
    assert [f"{f.place}: {f.problem}" for f in checker.check(checker.ROOT) if f.problem] == []
