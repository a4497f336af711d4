"""The `forethought` command: finds the verb, loads its module alone, and ends with an exit code.

0 done; 1 training had to stop, or a bug; 2 a mistake the user can fix; 130 Ctrl-C. A mistake is one
sentence on stderr, never a traceback. The list of verbs is a table, so that `forethought --help`
answers without importing any of them (nor torch, nor typer).
"""

from __future__ import annotations

import difflib
import errno
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from forethought import __version__
from forethought.errors import EngineError, TrainingStopped, UserError

EXIT_STOPPED = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130

# What the system says of a path or disk that the user can put right.
_USERS_ERRNOS = (
    errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO,
    errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR,
)  # fmt: skip

# How long torch's threads spin for their next piece of work before they sleep (about 50 us). By
# default they spin without end, and a second busy process then slows training tenfold; sleeping at
# once costs more than a third of the speed on an idle machine (docs/performance.md). Set before
# torch loads.
_SPIN_COUNT = "30000"
# How many compiled products oneDNN keeps, each with memory of its own: one for every shape, and the
# shapes of training rarely come again. By default 1,024.
_KEPT_PRODUCTS = "64"


@dataclass(frozen=True, slots=True)
class Verb:
    """A verb: the "module:attribute" of its function or typer app, and one line about it."""

    target: str
    summary: str


VERBS = {
    "quickstart": Verb(
        "forethought.cli.quickstart:quickstart_command",
        "the bundled model learns to reason, then shows what it learned",
    ),
    "train": Verb("forethought.cli.train:train_command", "run a recipe: pretrain, sft or rl"),
    "ask": Verb("forethought.cli.ask:ask_command", "ask a model one question"),
    "eval": Verb("forethought.cli.eval:eval_command", "measure a model on a task"),
    "grade": Verb("forethought.cli.grade:grade_command", "hold answers to their references"),
    "data": Verb("forethought.cli.data:app", "choose training data"),
    "report": Verb("forethought.cli.report:report_command", "turn a run into one HTML file"),
    "model": Verb("forethought.cli.model:app", "get, inspect and list models"),
    "task": Verb("forethought.cli.task:app", "list tasks and show their problems"),
    "doctor": Verb("forethought.cli.doctor:doctor_command", "what this machine has and lacks"),
}


def run() -> None:
    """The console script."""
    sys.exit(main(sys.argv[1:]))


def main(arguments: Sequence[str]) -> int:
    """Run the command line `arguments` (without the program's name) and return its exit code."""
    os.environ.setdefault("GOMP_SPINCOUNT", _SPIN_COUNT)
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", _KEPT_PRODUCTS)
    try:
        code = _dispatch(list(arguments))
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return _fail("interrupted", EXIT_INTERRUPTED)
    except BrokenPipeError:  # the reader of our output left, as `| head` does
        _silence_stdout()
        return 0
    except (UserError, EngineError) as error:
        return _fail(str(error), EXIT_USER_ERROR)
    except TrainingStopped as error:
        # A disk that cannot be written is the user's to fix; numbers that explode are not.
        is_disk = isinstance(error.__cause__, OSError)
        return _fail(str(error), EXIT_USER_ERROR if is_disk else EXIT_STOPPED)
    except OSError as error:
        if error.errno not in _USERS_ERRNOS:
            raise
        where = f" at '{error.filename}'" if error.filename else ""
        reason = os.strerror(error.errno).lower()
        return _fail(f"cannot write{where}: {reason}", EXIT_USER_ERROR)


def _dispatch(arguments: list[str]) -> int:
    name, *rest = arguments or ["--help"]
    if name in ("--help", "-h", "help"):
        print(overview())
        return 0
    if name in ("--version", "-V"):
        print(f"forethought {__version__}")
        return 0
    if name not in VERBS:
        raise UserError(f"'{name}' is not a command{nearest(name, VERBS)}")
    return _run_verb(name, rest)


def overview() -> str:
    """The text of `forethought --help`."""
    width = max(map(len, VERBS)) + 2
    lines = [f"  {name:<{width}}{verb.summary}" for name, verb in VERBS.items()]
    return "\n".join(
        [
            "Usage: forethought COMMAND [OPTIONS]",
            "",
            "Turn a base language model into a reasoning model, and measure when thinking pays.",
            "",
            *lines,
            "",
            "forethought COMMAND --help says more; forethought --version gives the version.",
        ]
    )


def nearest(name: str, known: Sequence[str] | dict[str, Any]) -> str:
    """A hint for a mistyped `name`: "; did you mean 'train'?", or where to find the list."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else "; see forethought --help"


def _run_verb(name: str, arguments: list[str]) -> int:
    import typer

    module, _, attribute = VERBS[name].target.partition(":")
    target = getattr(importlib.import_module(module), attribute)
    if isinstance(target, typer.Typer) and not arguments:
        arguments = ["--help"]  # a group of verbs alone: say which there are
    if not isinstance(target, typer.Typer):
        app = typer.Typer(add_completion=False, rich_markup_mode=None)
        app.command(name)(target)
        target = app
    command = typer.main.get_command(target)
    try:
        code = command.main(arguments, prog_name=f"forethought {name}", standalone_mode=False)
    except typer.Abort as error:  # typer's word for Ctrl-C
        raise KeyboardInterrupt from error
    except typer.Exit as error:
        code = error.exit_code
    except Exception as error:
        sentence = _usage_sentence(error, name)
        if sentence is None:
            raise
        raise UserError(sentence) from error
    if code == EXIT_INTERRUPTED:  # Ctrl-C again, as typer reports it
        raise KeyboardInterrupt
    return code if isinstance(code, int) else 0


def _usage_sentence(error: Exception, name: str) -> str | None:
    """One sentence for a wrong command line; None when `error` is something else.

    Recognised by its method: typer has moved the class between releases.
    """
    format_message = getattr(error, "format_message", None)
    if format_message is None:
        return None
    message = " ".join(str(format_message()).split()).rstrip(".")
    return f"{message} (see forethought {name} --help)"


def _fail(sentence: str, code: int) -> int:
    print(f"error: {sentence}", file=sys.stderr)
    return code


def _silence_stdout() -> None:
    """Let the interpreter's last flush go nowhere instead of failing."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
