"""What `ask` shows of completions under way: the text as it grows, or how far many have come.

Only a terminal is shown what may still change. Elsewhere, in a pipe or a log, a completion is
printed when it has ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from forethought.cli.console import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status

    from forethought.sampling.pieces import Piece
    from forethought.strategies.driver import Listener
    from forethought.types import Completion, Request

_HALF_TAGS = ["</think>"[:length] for length in range(7, 0, -1)]
_HALF_TAGS += ["<think>"[:length] for length in range(6, 1, -1)]


class GrowingText:
    """Prints one completion as it grows: its reasoning dim, an empty line, and what it says."""

    def __init__(self, screen: Console) -> None:
        self._screen = screen
        self._text = ""
        self._shown = ("", "")  # of reasoning, and of what is said

    def grow(self, piece: Piece) -> None:
        self._text = self._text[: piece.start] + piece.text
        half = next((tag for tag in _HALF_TAGS if self._text.endswith(tag)), "")
        self._print(self._text.removesuffix(half))

    def end(self, text: str) -> None:
        """`text` is all of it."""
        self._print(text)
        if any(self._shown):
            self._screen.print()

    def _print(self, text: str) -> None:
        """Show what is new of the two parts; space at their ends may still go."""
        from forethought.grading.answers import split_think

        reasoning, said = (part.strip() for part in split_think(text))
        if not self._shown[0] and reasoning.startswith(self._shown[1]):
            self._shown = (self._shown[1], "")  # the prompt had opened the think block
        is_again = not (reasoning.startswith(self._shown[0]) and said.startswith(self._shown[1]))
        if is_again:  # the call was made again, and what came of the first is void
            self._screen.print("\n[again]", style="cyan")
            self._shown = ("", "")
        before = self._shown
        self._screen.print(printable(reasoning[len(before[0]) :]), style="dim", end="")
        if said and not before[1] and reasoning:
            self._screen.print("\n")
        self._screen.print(printable(said[len(before[1]) :]), end="")
        self._shown = (reasoning, said)


class LiveTrace:
    """Shows the completions of a strategy, in a `with` block around it. A completion that is asked
    for alone is shown as it grows; of many, the number that have ended, and each when it has."""

    def __init__(self, screen: Console) -> None:
        self._screen = screen
        self._num_shown = 0
        self._num_asked = 0
        self._num_open = 0
        self._letters: dict[tuple[int, int], int] = {}
        self._growing: GrowingText | None = None
        self._status: Status | None = None

    def listener(self) -> Listener:
        from forethought.strategies.driver import Listener

        if not self._screen.is_terminal:
            return Listener(ended=self._ended)
        return Listener(asked=self._asked, grew=self._grew, ended=self._ended)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._status is not None:
            self._status.stop()

    def _asked(self, requests: Sequence[Request]) -> None:
        self._num_asked = self._num_open = sum(request.params.n for request in requests)
        self._letters = {}
        if self._num_asked > 1:
            self._status = self._screen.status("")
            self._status.start()
            self._count()

    def _grew(self, _index: int, request: Request, piece: Piece) -> None:
        if self._num_asked > 1:
            self._letters[piece.request, piece.sibling] = piece.start + len(piece.text)
            self._count()
            return
        if self._growing is None:
            self._screen.print(self._title(request), style="cyan")
            self._growing = GrowingText(self._screen)
        self._growing.grow(piece)

    def _ended(self, _index: int, request: Request, completion: Completion) -> None:
        tokens = f"{completion.usage.sampled_tokens} tokens"
        if self._growing is not None:
            self._growing.end(completion.text)
            self._growing = None
            self._screen.print(tokens, style="cyan")
        else:
            self._screen.print(f"{self._title(request)}, {tokens}", style="cyan")
            self._screen.print(printable(completion.text.strip()), style="dim")
        self._num_shown += 1
        self._num_open -= 1
        self._count()

    def _title(self, request: Request) -> str:
        return f"[{self._num_shown + 1}] {request.purpose.value}"

    def _count(self) -> None:
        """Show how far the many have come."""
        if self._status is None:
            return
        if self._num_open <= 0:
            self._status.stop()
            self._status = None
            return
        done = self._num_asked - self._num_open
        letters = sum(self._letters.values())
        self._status.update(f"{done} of {self._num_asked} done, {letters:,} letters so far")
