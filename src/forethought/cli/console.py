"""What a command shows: results on stdout, progress and notes on stderr.

On a terminal progress is one bar that moves; elsewhere (a pipe, a log file) it is plain lines, at
most one every few seconds. Model output passes through `printable` before it is shown, so that it
cannot move the cursor or change the terminal.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress

SECONDS_BETWEEN_LINES = 5.0


def print_json(content: object) -> None:
    """Print one JSON object as one line on stdout: what `--json` promises."""
    print(json.dumps(content, allow_nan=False), flush=True)


def note(text: str) -> None:
    """Print a line for the person at the keyboard (stderr), out of the way of results."""
    print(text, file=sys.stderr, flush=True)


def console(stream: TextIO | None = None) -> Console:
    """A rich console on `stream` (stdout by default) that reads no markup in what it prints."""
    from rich.console import Console

    return Console(file=stream, markup=False, emoji=False, highlight=False, soft_wrap=True)


class _Yellow(logging.Handler):
    """A warning of the library, on stderr as it is at that moment: a bar may stand in its way."""

    def emit(self, record: logging.LogRecord) -> None:
        text = printable(f"warning: {record.getMessage()}")
        console(sys.stderr).print(text, style="yellow")


@contextmanager
def show_warnings() -> Iterator[None]:
    """While inside, what the library warns of is one yellow line."""
    logger, handler = logging.getLogger("forethought"), _Yellow(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def printable(text: str) -> str:
    """`text` without control characters other than newline and tab."""
    return "".join(letter for letter in text if letter in "\n\t" or letter.isprintable())


def format_seconds(seconds: float) -> str:
    """Seconds as a person says them: "0.4 s", "42 s", "3:05", "1:02:09"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Progress:
    """Progress through `total` steps, for a `with` block around the loop.

    >>> with Progress("rl", total=60) as progress:
    ...     progress.update(1, {"reward": "0.41", "signal": "62%", "length": "38"})

    prints, where there is no terminal:

        rl 1/60 | reward 0.41 | signal 62% | length 38 | 2:06 left

    `first_step` is the step a resumed loop starts after. `quiet` shows nothing.
    """

    def __init__(
        self,
        title: str,
        total: int,
        *,
        first_step: int = 0,
        quiet: bool = False,
        stream: TextIO | None = None,
    ) -> None:
        self._title = title
        self._total = total
        self._first_step = first_step
        self._quiet = quiet
        self._stream = stream or sys.stderr
        self._started = time.monotonic()
        self._last_line = -SECONDS_BETWEEN_LINES
        self._bar: RichProgress | None = None

    def update(self, step: int, fields: Mapping[str, str]) -> None:
        """Show that `step` is done, with `fields` (name to formatted value) in their order."""
        if self._quiet:
            return
        parts = [f"{name} {value}" for name, value in fields.items()]
        left = self.seconds_left(step)
        if left is not None and step < self._total:
            parts.append(f"{format_seconds(left)} left")
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, fields=" | ".join(parts))
        elif step >= self._total or self._is_line_due():
            line = " | ".join([f"{self._title} {step}/{self._total}", *parts])
            print(line, file=self._stream, flush=True)

    def seconds_left(self, step: int) -> float | None:
        """Time the remaining steps take at the pace so far; None before the first is done."""
        done = step - self._first_step
        if done <= 0:
            return None
        return (time.monotonic() - self._started) / done * max(self._total - step, 0)

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        if not self._quiet and self._stream.isatty():
            self._bar = _bar(self._stream, self._total)
            self._bar.add_task(
                self._title, total=self._total, completed=self._first_step, fields=""
            )
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _is_line_due(self) -> bool:
        now = time.monotonic() - self._started
        if now - self._last_line < SECONDS_BETWEEN_LINES:
            return False
        self._last_line = now
        return True


def _bar(stream: TextIO, total: int) -> RichProgress:
    """On a narrow terminal the fields are cut, never the count of steps."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as RichProgress
    from rich.table import Column

    return RichProgress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=2 * len(str(total)) + 1)),
        TextColumn("{task.fields[fields]}", markup=False),
        console=Console(file=stream),
    )
