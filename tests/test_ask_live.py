"""What `ask` shows while a completion grows, on a terminal and elsewhere."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fault_server import Body, Dialect, Fault, FaultServer
from forethought.cli import app, ask, ask_live, ask_strategy
from forethought.cli.ask_live import GrowingText, LiveTrace
from forethought.sampling.pieces import Growth, Piece
from forethought.sampling.scripted import ABLE, ScriptedEngine
from forethought.strategies.driver import solve_all
from forethought.strategies.registry import parse_strategy
from forethought.types import Completion, Request
from strategy_bench import box, in_turn, problems
from tiny_models import make_folder

VLLM = Dialect(token_ids=True, continues=True, live_usage=True, context=512)


def screen(is_terminal: bool = True) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(
        file=file, force_terminal=is_terminal, color_system=None, width=200, soft_wrap=True,
        legacy_windows=False, markup=False, emoji=False, highlight=False,
    ), file  # fmt: skip


class Telling(ScriptedEngine):
    """A scripted engine that tells its texts a word at a time, siblings in turn."""

    def generate(  # type: ignore[override]
        self, requests: Sequence[Request], on_finish: Any = None, on_piece: Any = None
    ) -> list[list[Completion]]:
        groups = super().generate(requests)
        for index, group in enumerate(groups):
            for sibling, completion in enumerate(group):
                growth = Growth(index, sibling, on_piece)
                for word in completion.text.split(" "):
                    growth.add(word + " ")
                growth.become(completion.text)
                on_finish(index, completion)
        return groups


def shown_by(spec: str, *texts: str, is_terminal: bool = True) -> str:
    console, file = screen(is_terminal)
    engine = Telling(in_turn(texts), replace(ABLE, streams=is_terminal))
    if not is_terminal:
        engine = ScriptedEngine(in_turn(texts))  # type: ignore[assignment]
    with LiveTrace(console) as trace:
        solve_all(engine, parse_strategy(spec), problems(1), listener=trace.listener())
    return file.getvalue()


def test_a_completion_alone_is_shown_once_as_it_grows() -> None:
    shown = shown_by("sample", "<think>one two</think> so \\boxed{3}")
    assert shown == "[1] answer\none two\n\nso \\boxed{3}\n4 tokens\n"


def test_requests_one_after_the_other_are_shown_one_after_the_other() -> None:
    shown = shown_by("budget_forcing:max_thinking=9", "hm hm</think>", box("1"))
    assert shown == "[1] answer\nhm hm\n2 tokens\n[2] answer\n\\boxed{1}\n1 tokens\n"


def test_many_are_counted_and_shown_as_they_end() -> None:
    shown = shown_by("majority:n=3", "a " + box("1"), "b " + box("1"), "c " + box("2"))
    assert "2 of 3 done" in shown
    for place, letter in enumerate("abc", start=1):
        assert f"[{place}] answer, 2 tokens" in shown
        assert shown.count(f"{letter} \\boxed") == 1


def test_elsewhere_there_are_plain_lines() -> None:
    shown = shown_by("majority:n=2", "a " + box("1"), "b " + box("1"), is_terminal=False)
    assert shown == ("[1] answer, 2 tokens\na \\boxed{1}\n[2] answer, 2 tokens\nb \\boxed{1}\n")


@given(st.text("<>/think \nab", max_size=60), st.randoms(use_true_random=False))
def test_whatever_the_pieces_the_same_is_shown(text: str, rng: Random) -> None:
    def shown(sizes: Sequence[int]) -> str:
        console, file = screen()
        growing, start = GrowingText(console), 0
        for size in sizes:
            growing.grow(Piece(0, 0, start, text[start : start + size]))
            start += size
        growing.end(text)
        return file.getvalue()

    at_once, cut_up = shown([]), shown([rng.randint(1, 9) for _ in range(30)])
    if "[again]" not in cut_up:  # a second think block makes text of what was said reasoning
        assert cut_up == at_once
    else:
        assert text.count("<think>") + text.count("</think>") > 1 or "</think>" in text


def test_a_call_made_again_is_shown_again() -> None:
    console, file = screen()
    growing = GrowingText(console)
    growing.grow(Piece(0, 0, 0, "one two"))
    growing.grow(Piece(0, 0, 0, "three"))
    growing.end("three four")
    assert file.getvalue() == "one two\n[again]\nthree four\n"


# --- The command --------------------------------------------------------------------------------


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    console, file = screen()
    for module in (ask, ask_strategy):
        monkeypatch.setattr(module, "console", lambda: console)
    return file


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_folder(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.mark.parametrize("strategy", [[], ["--strategy", "greedy"]])
def test_ask_shows_on_a_terminal_what_it_prints_elsewhere(
    tiny: str, terminal: io.StringIO, capsys: pytest.CaptureFixture[str], strategy: list[str]
) -> None:
    command = ["ask", "1+1?", "--model", tiny, "--max-tokens", "9", "--temperature", "0", *strategy]
    assert app.main(command) == 0
    assert app.main([*command, "--json"]) == 0
    text = json.loads(capsys.readouterr().out)["text"]
    assert ask_live.printable(text.strip()) in terminal.getvalue()
    assert "no answer to be read" in terminal.getvalue()


def test_ask_shows_the_stream_of_a_server(terminal: io.StringIO) -> None:
    def say(_body: Body, _index: int) -> list[str]:
        return ["<think>", "two and", " three", "</think>", "It is", " \\boxed{5}"]

    def cut_once(call: int, body: Body) -> Fault:
        is_first = body.get("stream") and body["messages"][-1]["content"] != "Hello"
        return Fault.CUT if is_first and not seen.append(call) and len(seen) == 1 else Fault.NONE

    seen: list[int] = []
    with FaultServer(cut_once, say=say, dialect=VLLM) as server:
        command = ["ask", "2 + 3?", "--backend", server.url, "--model", "fake"]
        assert app.main(command) == 0
    shown = terminal.getvalue()
    assert "two and three" in shown and "It is \\boxed{5}" in shown and "answer: 5" in shown
