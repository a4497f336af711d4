"""The report of a run folder: what it shows, what it survives, what it must never do."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from fake_runs import HOSTILE, Row, a_summary, rl_metrics, write_jsonl
from forethought.cli.report import report_command
from forethought.errors import UserError
from forethought.evaluation.report import build_report
from forethought.evaluation.report_traces import MAX_TRACE_CHARS, split_thinking

MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Build a realistic run folder; None leaves a part out."""

    def make(
        metrics: list[Row] | None = None,
        summary: Mapping[str, Any] | None = None,
        stage: str = "rl",
    ) -> Path:
        folder = tmp_path / "run"
        folder.mkdir()
        info = {
            "command": ["forethought", "train", "recipes/quick start.toml"],
            "stage": stage,
            "name": "quickstart",
            "created": "2025-05-04T10:12:13+00:00",
            "versions": {"forethought": "0.1.0", "torch": "2.13.0"},
            "machine": {"cpu": "Some CPU", "num_cores": 2, "cpu_features": ["AVX2", "AMX"]},
            "seed": 7,
        }
        (folder / "run.json").write_text(json.dumps(info))
        (folder / "recipe.toml").write_text('stage = "rl"\n\n[optim]\nlearning_rate = 3e-4\n')
        if metrics is not None:
            write_jsonl(folder / "metrics.jsonl", metrics)
        if summary is not None:
            (folder / "summary.json").write_text(json.dumps(summary))
        return folder

    return make


class _Page(HTMLParser):
    """Collects what a browser would find: tags, attributes, headings and visible text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text: list[str] = []
        self._inside_style = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._inside_style = tag == "style"
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        if not self._inside_style:
            self.text += data.split()

    def says(self, words: str) -> bool:
        return words in " ".join(self.text)


def page_of(folder: Path) -> _Page:
    return _Page(build_report(folder).read_text(encoding="utf-8"))


def charts_in(folder: Path) -> dict[str, ElementTree.Element]:
    """Every line chart of the report by its title; each must be well-formed XML."""
    html = build_report(folder).read_text(encoding="utf-8")
    found = re.findall(r'<svg class="chart".*?</svg>', html, flags=re.DOTALL)
    roots = [ElementTree.fromstring(svg) for svg in found]
    return {root.findtext("title") or "": root for root in roots}


def test_a_full_run_shows_every_section_in_order(make_run: MakeRun) -> None:
    page = page_of(make_run(rl_metrics(120), a_summary()))
    text = " ".join(page.text)
    order = (
        "Samples right (mean of 8)",
        "Strategies",
        "Accuracy on held-out problems",
        "Reward and its parts",
        "What carries signal",
        "Where the seconds went",
        "What the grader found",
        "Reference answer: 111",
        "Recipe",
        "Versions and machine",
        "All metrics",
    )
    places = [text.index(words) for words in order]
    assert places == sorted(places)


def test_headline_gives_difference_and_interval(make_run: MakeRun) -> None:
    page = page_of(make_run(rl_metrics(20), a_summary()))
    assert page.says("31.2% 86.1% +54.9 points +51.8 to +58.0")
    assert page.says("+0.7 points \u22121.3 to +2.7, includes 0")
    assert page.says("31.2 44.1 +12.9 +11.6 to +14.2")


def test_without_a_summary_the_headline_is_first_against_last_evaluation(
    make_run: MakeRun,
) -> None:
    rows = [{"step": 0, "eval/accuracy": 0.25}, {"step": 9, "eval/accuracy": 0.75}]
    assert page_of(make_run(rows)).says("25.0% 75.0% +50.0 points")


def test_page_is_self_contained(make_run: MakeRun) -> None:
    html = build_report(make_run(rl_metrics(20), a_summary())).read_text(encoding="utf-8")
    page = _Page(html)
    assert not {"script", "link", "iframe", "img", "object", "embed", "base"} & set(page.tags)
    loading = {"src", "href", "xlink:href", "srcset", "poster", "data", "action"}
    assert not loading & {name for name, _ in page.attributes}
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "url(" not in html and "@import" not in html
    assert "prefers-color-scheme: dark" in html


def test_untrusted_text_is_shown_and_never_markup(make_run: MakeRun) -> None:
    summary = a_summary()
    summary["title"] = summary["note"] = summary["table"][0]["name"] = HOSTILE
    summary["strategies"][0]["name"] = summary["traces"][0]["question"] = HOSTILE
    summary["traces"][0]["after_status"] = '" onclick="x'
    summary["seconds"][HOSTILE] = 3.0
    metrics = rl_metrics(5)
    metrics[2][HOSTILE] = 1.0
    page = page_of(make_run(metrics, summary))
    assert "script" not in page.tags and "img" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert " ".join(page.text).count("<script>alert(1)</script>") >= 7


def test_text_that_cannot_be_encoded_or_would_mislead_is_replaced(make_run: MakeRun) -> None:
    summary = a_summary()
    summary["traces"][0]["after"] = "nul\x00 surrogate\ud800 turned\u202earound fine\u00a0\u00e9"
    summary["title"] = "lone \udfff"
    html = build_report(make_run(None, summary)).read_text(encoding="utf-8")
    assert "nul\ufffd surrogate\ufffd turned\ufffdaround fine\u00a0\u00e9" in html


def test_a_long_completion_is_cut_and_says_so(make_run: MakeRun) -> None:
    summary = a_summary()
    summary["traces"][0]["after"] = "x" * (MAX_TRACE_CHARS + 1234)
    assert page_of(make_run(None, summary)).says("[1,234 more characters]")


def test_killed_run_with_half_a_line_is_reported_with_what_is_there(make_run: MakeRun) -> None:
    folder = make_run(rl_metrics(10))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "reward/me')
    page = page_of(folder)
    assert page.says("metrics.jsonl: 1 line is not a whole JSON object")
    assert page.says("Reward and its parts")


@pytest.mark.parametrize("metrics", [None, []])
def test_empty_metrics_say_so(make_run: MakeRun, metrics: list[Row] | None) -> None:
    page = page_of(make_run(metrics))
    assert page.says("No metrics yet")
    assert "table" in page.tags  # versions are still shown
    assert "svg" not in page.tags


@pytest.mark.parametrize("damage", ["[1, 2]", "{", '{"table": 3, "traces": [1], "seconds": []}'])
def test_a_damaged_summary_does_not_stop_the_report(make_run: MakeRun, damage: str) -> None:
    folder = make_run(rl_metrics(10))
    (folder / "summary.json").write_text(damage)
    assert page_of(folder).says("Reward and its parts")


def test_values_that_are_not_finite_numbers_are_left_out(make_run: MakeRun) -> None:
    rows: list[Row] = [
        {"step": 1, "reward/mean": math.nan, "loss/mean": 2.0},
        {"step": 2, "reward/mean": math.inf, "loss/mean": "2.5"},
        {"step": 3, "reward/mean": True, "loss/mean": 10**400},
        {"step": 4, "reward/mean": None, "loss/mean": 1.0},
        {"step": "x", "loss/mean": 9.0},
        {"loss/mean": 9.0},
    ]
    drawn = charts_in(make_run(rows, stage="pretrain"))
    assert list(drawn) == ["Loss"]
    assert drawn["Loss"].findtext("desc") == "training: 2.00 at step 1, 1.00 at step 4."


def test_steps_logged_again_after_a_resume_count_once(make_run: MakeRun) -> None:
    rows: list[Row] = [
        {"step": step, "time/sample_seconds": 10.0, "time/update_seconds": 10.0}
        for step in (1, 2, 2, 3)
    ]
    page = page_of(make_run(rows))
    assert page.says("Training, step by step: 60.0 s")
    assert page.says("sampling 30.0 s 50%")


def test_time_of_a_step_that_no_part_explains_is_shown(make_run: MakeRun) -> None:
    rows: list[Row] = [{"step": 1, "time/sample_seconds": 30.0, "time/step_seconds": 40.0}]
    assert page_of(make_run(rows)).says("everything else 10.0 s 25%")


def test_pretraining_shows_its_loss(make_run: MakeRun) -> None:
    rows: list[Row] = [
        {"step": s, "loss/mean": 4 - s / 1000, "total/tokens": 4096 * s} for s in range(3000)
    ]
    folder = make_run(rows, stage="pretrain")
    drawn = charts_in(folder)
    assert set(drawn) == {"Loss", "Tokens seen"}
    assert page_of(folder).says("Loss on training text 4.00 1.00")
    lines = drawn["Loss"].findall("polyline")
    assert sorted(len(line.attrib["points"].split()) for line in lines) == [400]


def test_transcripts_pair_the_first_and_the_last_look_at_a_problem(make_run: MakeRun) -> None:
    folder = make_run(rl_metrics(3))
    rows: list[Row] = [
        {"step": step, "example_id": name, "question": f"Q {name}", "answer": "5"}
        | {"completion": f"{name} tried at {step}", "status": "wrong", "reward": 0.0}
        for step, name in ((1, "once"), (1, "twice"), (2, "twice"), (9, "twice"))
    ]
    write_jsonl(folder / "transcripts.jsonl", rows)
    page = page_of(folder)
    assert page.says("step 1 wrong twice tried at 1 step 9 wrong twice tried at 9")
    assert not page.says("twice tried at 2")
    assert page.says("once tried at 1")


def test_folder_of_an_evaluation(tmp_path: Path) -> None:
    summary = {
        "task": "sums:terms=3",
        **{"accuracy": 0.613, "low": 0.58, "high": 0.645, "num_problems": 200},
        **{"pass_at": {"1": 0.613, "8": 0.9}, "mean_tokens": 41.25, "seconds": 12.5},
    }
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    rows: list[Row] = [
        {
            **{"example_id": f"sums-{i}", "question": f"{i} + 1?", "answer": str(i + 1)},
            **{"scores": [0.0, None], "statuses": ["wrong", "correct"]},
            **{"texts": [f"\\boxed{{{i}}}", f"\\boxed{{{i + 1}}}"]},
        }
        for i in range(60)
    ]
    write_jsonl(tmp_path / "results.jsonl", rows)
    page = page_of(tmp_path)
    assert page.says("accuracy 61.3%") and page.says("pass at 8 90.0%")
    assert page.says("mean tokens 41.2") and page.says("seconds 12.5")
    assert page.says("Results 50 of 60")
    assert page.says("sums-49") and not page.says("sums-50")
    assert page.says("sample correct \\boxed{1} sample wrong \\boxed{0}")


def test_what_is_no_run_folder_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match=r"is not a run folder: it holds none of run\.json"):
        build_report(tmp_path)
    with pytest.raises(UserError, match="is not a folder"):
        build_report(tmp_path / "absent")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_out_is_a_file_or_a_folder_and_replaces_what_was_there(
    make_run: MakeRun, tmp_path: Path
) -> None:
    run = make_run(rl_metrics(3))
    there = tmp_path / "page.html"
    there.write_text("old")
    assert build_report(run, out=there) == there
    assert there.read_text().startswith("<!doctype html>")
    assert build_report(run, out=tmp_path) == tmp_path / "report.html"
    assert build_report(run) == run / "report.html"
    with pytest.raises(UserError, match=r"cannot write the report to .*name another file"):
        build_report(run, out=tmp_path / "absent" / "page.html")


def test_a_failed_write_leaves_the_old_page(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(rl_metrics(3))
    before = build_report(run).read_bytes()
    write_jsonl(run / "metrics.jsonl", rl_metrics(5))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        build_report(run)
    assert (run / "report.html").read_bytes() == before
    assert not [path for path in run.iterdir() if "report.html" in path.name[1:]][1:]


def test_command_prints_the_path(make_run: MakeRun) -> None:
    app = typer.Typer()
    app.command()(report_command)
    run = make_run(rl_metrics(3))
    plain = CliRunner().invoke(app, [str(run)])
    assert plain.output.strip() == str(run / "report.html")
    as_json = CliRunner().invoke(app, [str(run), "--json", "--out", str(run / "x.html")])
    assert json.loads(as_json.output) == {"report": str(run / "x.html")}


def test_charts_are_accessible_and_labelled(make_run: MakeRun) -> None:
    drawn = charts_in(make_run(rl_metrics(40)))
    ids = [
        node.attrib["id"] for root in drawn.values() for node in root.iter() if "id" in node.attrib
    ]
    assert len(ids) == len(set(ids)) == 2 * len(drawn)
    for root in drawn.values():
        assert root.attrib["role"] == "img" and root.findtext("title") and root.findtext("desc")
        assert root.attrib["aria-labelledby"].split() == [
            node.attrib["id"] for node in (root[0], root[1])
        ]
    labels = ["".join(n.itertext()) for n in drawn["What carries signal"].iter("text")]
    assert any(label.startswith("groups ") for label in labels)


@given(st.text("<>/think ab\n"), st.text("ab\\boxed{}1 "))
def test_thought_and_answer_are_the_whole_text(thought: str, answer: str) -> None:
    for text in (thought, f"<think>{thought}</think>{answer}", answer):
        assert "".join(split_thinking(text)) == text
    assert split_thinking(f"<think>{thought}</think>{answer}")[1] == answer
    assert split_thinking(f"<think>{answer}") == (f"<think>{answer}", "")
