"""The command line: exit codes, one sentence for a mistake, and what is printed where."""

from __future__ import annotations

import errno
import importlib
import io
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer

import forethought
from forethought.cli import app
from forethought.cli.ask import describe, read_question
from forethought.cli.console import Progress, format_seconds, printable
from forethought.cli.doctor import examine
from forethought.cli.recipes import find_recipe, recipe_names
from forethought.errors import RecipeError, TrainingStopped, UserError
from forethought.machine import describe_machine, usable_cores
from forethought.models.hardware import DtypeSpeed, fastest_dtype, measure_dtypes, pick_dtype
from forethought.types import Completion, FinishReason, Usage

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., None]], None]:
    """Put a function in the place of `forethought try`."""

    def install(function: Callable[..., None]) -> None:
        monkeypatch.setitem(app.VERBS, "try", app.Verb("test_cli:try_command", "a trial"))
        monkeypatch.setattr(sys.modules[__name__], "try_command", function, raising=False)
        monkeypatch.setitem(sys.modules, "test_cli", sys.modules[__name__])

    return install


def failing(error: BaseException) -> Callable[[], None]:
    def command() -> None:
        raise error

    return command


def stopped_by(cause: Exception | None) -> TrainingStopped:
    error = TrainingStopped("it stopped")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (RecipeError("num_steps=0 must be at least 1"), 2, "num_steps=0 must be at least 1"),
        (stopped_by(None), 1, "it stopped"),
        (stopped_by(OSError(errno.ENOSPC, "full")), 2, "it stopped"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(errno.ENOSPC, "full", "a.bin"), 2, "cannot write at 'a.bin': no space left on"),
        (typer.BadParameter("no such thing"), 2, "no such thing (see forethought try --help)"),
        (typer.Exit(3), 3, ""),
    ],
)
def test_exit_codes(
    verb: Any,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    sentence: str,
) -> None:
    verb(failing(error))
    assert app.main(["try"]) == code
    out, err = capsys.readouterr()
    assert out == "" and sentence in err
    assert err.count("\n") == (1 if sentence else 0) and err.startswith("error: "[: len(err)])


def test_a_bug_of_ours_keeps_its_traceback(verb: Any) -> None:
    verb(failing(ZeroDivisionError("ours")))
    with pytest.raises(ZeroDivisionError):
        app.main(["try"])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["trian"], "error: 'trian' is not a command; did you mean 'train'?\n"),
        (["xyzzy"], "error: 'xyzzy' is not a command; see forethought --help\n"),
        (["try", "--count", "many"], "(see forethought try --help)\n"),
        (["try", "--cuont", "1"], "(see forethought try --help)\n"),
        (["try", "1", "2"], "(see forethought try --help)\n"),
    ],
)
def test_a_wrong_command_line_is_one_sentence(
    verb: Any, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    def command(count: Annotated[int, typer.Option()] = 1) -> None:
        print(count)

    verb(command)
    assert app.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.endswith(sentence) and err.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_help_names_every_verb(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert app.main(arguments) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown and verb.summary in shown for name, verb in app.VERBS.items())


def test_version_is_the_same_everywhere(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["--version"]) == 0
    assert capsys.readouterr().out == f"forethought {forethought.__version__}\n"


@pytest.mark.parametrize("name", app.VERBS)
def test_every_verb_answers_its_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    module, _, attribute = app.VERBS[name].target.partition(":")
    assert getattr(importlib.import_module(module), attribute)
    assert app.main([name, "--help"]) == 0
    assert f"forethought {name}" in capsys.readouterr().out


def test_the_reader_of_our_output_may_leave() -> None:
    code = "import forethought.cli.app as a; a.overview = lambda: 'line\\n' * 100_000; a.run()"
    command = subprocess.Popen(
        [sys.executable, "-c", code, "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert command.stdout and command.stderr
    command.stdout.readline()
    command.stdout.close()
    assert (command.stderr.read(), command.wait()) == (b"", 0)
    command.stderr.close()


def completion(text: str, reason: FinishReason = FinishReason.BOXED) -> Completion:
    return Completion(
        prompt_ids=(1, 2, 3),
        token_ids=(4, 5),
        logprobs=(-0.1, -0.2),
        text=text,
        finish_reason=reason,
        usage=Usage(prompt_tokens=3, sampled_tokens=2, num_calls=1),
    )


def test_ask_describes_answer_reasoning_and_cost() -> None:
    result = describe(completion("<think>\n17 + 25 = 42\n</think> \\boxed{42}"), 0.5)
    assert (result["answer"], result["reasoning"]) == ("42", "17 + 25 = 42")
    assert result["finish_reason"] == "boxed"
    assert result["usage"] == {
        "prompt_tokens": 3,
        "sampled_tokens": 2,
        "total_tokens": 5,
        "seconds": 0.5,
    }
    assert describe(completion("<think>\n17 +", FinishReason.LENGTH), 0.5)["answer"] is None


def test_ask_reads_stdin_and_refuses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("What is 1 + 1?\n"))
    assert read_question("-") == "What is 1 + 1?"
    with pytest.raises(UserError, match="the question is empty"):
        read_question("  ")


def test_ask_names_a_model_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["ask", "What is 1 + 1?", "--model", "bundled:nothing", "--json"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "'nothing' is unknown" in err and err.count("\n") == 1


def test_model_text_cannot_move_the_cursor() -> None:
    assert printable("a\x1b[2Jb\n\tc\x07\r\u202e") == "a[2Jb\n\tc"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.9, "9.9 s"),
        (42.4, "42 s"),
        (59.7, "1:00"),
        (185, "3:05"),
        (3729, "1:02:09"),
    ],
)
def test_seconds_as_a_person_says_them(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_progress_prints_few_plain_lines_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    with Progress("rl", 50, stream=stream) as progress:
        for step in range(1, 51):
            progress.update(step, {"reward": f"{step / 100:.2f}"})
    first, last = stream.getvalue().splitlines()
    assert first.startswith("rl 1/50 | reward 0.01 | ") and first.endswith(" left")
    assert last == "rl 50/50 | reward 0.50"


def test_progress_on_a_terminal_is_a_bar_and_quiet_is_nothing() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    shown, quiet = Terminal(), Terminal()
    for stream in (shown, quiet):
        with Progress("rl", 2, first_step=1, quiet=stream is quiet, stream=stream) as progress:
            progress.update(2, {"text": "[bold]"})
    assert "2/2" in shown.getvalue() and "[bold]" in shown.getvalue()
    assert quiet.getvalue() == ""


def test_progress_of_a_resumed_loop_counts_its_own_pace() -> None:
    progress = Progress("rl", 30, first_step=20, quiet=True)
    assert progress.seconds_left(20) is None
    assert progress.seconds_left(30) == 0.0


def test_doctor_says_what_it_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["num_cores"] == usable_cores() >= 1
    assert facts["compute"]["fastest_sampling"] in facts["compute"]["gflops"]
    assert app.main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "to sample" in shown and describe_machine().cpu in shown


def test_doctor_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (99.0, 0.0, 0.0))
    monkeypatch.setattr("forethought.cli.doctor.SMALLEST_FREE_BYTES", 1 << 62)
    warnings = " ".join(examine()["warnings"])
    assert "load 99.0" in warnings and "little disk space" in warnings


def test_the_number_format_is_measured_and_float32_wins_ties() -> None:
    speeds = measure_dtypes("cpu")
    assert all(s.sampling_gflops > 0 and s.training_gflops > 0 for s in speeds.values())
    assert pick_dtype("auto", "training") == fastest_dtype(speeds, "training")
    assert pick_dtype("bfloat16", "sampling") == "bfloat16"
    with pytest.raises(UserError, match="'half' is unknown"):
        pick_dtype("half", "sampling")


@pytest.mark.parametrize(
    ("gain", "chosen"), [(0.05, "float32"), (1.0, "float32"), (1.1, "float32"), (4.0, "bfloat16")]
)
def test_bfloat16_must_be_worth_its_rounding(gain: float, chosen: str) -> None:
    speeds = {
        "float32": DtypeSpeed(sampling_gflops=100.0, training_gflops=50.0),
        "bfloat16": DtypeSpeed(sampling_gflops=100.0 * gain, training_gflops=50.0 * gain),
    }
    assert fastest_dtype(speeds, "sampling") == fastest_dtype(speeds, "training") == chosen
    assert fastest_dtype({"float32": speeds["float32"]}, "sampling") == "float32"


def test_recipes_are_found_by_name() -> None:
    for name in recipe_names():
        assert tomllib.loads(find_recipe(name).read_text())
    with pytest.raises(RecipeError, match="recipe 'nothing' does not come with"):
        find_recipe("nothing")


def test_task_list_and_show(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["task", "list", "--json"]) == 0
    names = [row["task"] for row in json.loads(capsys.readouterr().out)["tasks"]]
    assert len(names) >= 4
    assert app.main(["task", "show", names[0], "--num", "2", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert len(shown["examples"]) == 2 and shown["examples"][0]["answer"]
    for arguments in (["list"], ["show", names[0]]):
        assert app.main(["task", *arguments]) == 0
        assert names[0] in capsys.readouterr().out


def test_task_show_names_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["task", "show", "smu"]) == 2
    assert "did you mean sum?" in capsys.readouterr().err
    assert app.main(["task", "lst"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "lst" in err and err.count("\n") == 1
