"""The text of completions under way, a piece at a time, for whoever wants to watch.

An engine that nobody watches does none of this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from forethought.sampling.rows import Row

_UNFINISHED = "\ufffd"  # the end of a letter whose bytes are not all there
Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True, slots=True)
class Piece:
    """What a completion has grown by: its text is now the first `start` letters of what was told
    of it, and then `text`. A lower `start` than before takes back: a call was made again."""

    request: int
    sibling: int
    start: int
    text: str


OnPiece = Callable[[Piece], None]


class Growth:
    """What was told of one completion, so that only what is new is told."""

    def __init__(self, request: int, sibling: int, tell: OnPiece) -> None:
        self._request = request
        self._sibling = sibling
        self._tell = tell
        self._told = ""

    def add(self, text: str) -> None:
        """The text has grown by `text`."""
        if text:
            self._tell(Piece(self._request, self._sibling, len(self._told), text))
            self._told += text

    def become(self, text: str) -> None:
        """All of the text is `text` now."""
        if text.startswith(self._told):
            self.add(text[len(self._told) :])
            return
        letters = zip(self._told, text, strict=False)
        start = next((i for i, (old, new) in enumerate(letters) if old != new), len(text))
        self._tell(Piece(self._request, self._sibling, start, text[start:]))
        self._told = text


class _Reader:
    """Reads a growing row of tokens: of each, the text that it adds.

    What a token says may depend on its neighbours, so the tokens of the last piece are decoded
    along, however long the row; and a letter may need several tokens, and is told with the last.
    """

    def __init__(self, growth: Growth) -> None:
        self.growth = growth
        self._context = 0  # tokens before this one are not looked at any more
        self._read = 0  # tokens whose text was told

    def read(self, token_ids: Sequence[int], decode: Decode) -> None:
        known = decode(token_ids[self._context : self._read])
        text = decode(token_ids[self._context :])
        if len(text) > len(known) and not text.endswith(_UNFINISHED):
            self.growth.add(text[len(known) :])
            self._context, self._read = self._read, len(token_ids)


class Pieces:
    """Tells of the rows of one call as they grow."""

    def __init__(self, decode: Decode, tell: OnPiece) -> None:
        self._decode = decode
        self._tell = tell
        self._readers: dict[tuple[int, int], _Reader] = {}

    def grew(self, row: Row) -> None:
        """The row has new tokens."""
        self._reader(row).read(row.token_ids, self._decode)

    def ended(self, row: Row, text: str) -> None:
        """The row is over, and `text` is all of it."""
        self._reader(row).growth.become(text)

    def _reader(self, row: Row) -> _Reader:
        key = (row.request, row.sibling)
        if key not in self._readers:
            self._readers[key] = _Reader(Growth(*key, self._tell))
        return self._readers[key]
