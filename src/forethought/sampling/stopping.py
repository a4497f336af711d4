"""When a completion is over, other than by its end token."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from forethought.grading.answers import THINK_CLOSE, THINK_OPEN, has_closed_box
from forethought.sampling.token_text import text_reader
from forethought.types import FinishReason, SamplingParams

_LOOP_TOKENS = 64  # a tail of this many tokens ...
_LOOP_PERIOD = 16  # ... that repeats with a period of at most this many is a loop
LOOP_EVERY = 16  # tokens between two looks
_STOP_MARGIN = 16  # tokens without text of their own that a stop string may straddle


def is_looping(token_ids: Sequence[int]) -> bool:
    """True when the last 64 tokens repeat with a period of at most 16."""
    tail = tuple(token_ids[-_LOOP_TOKENS:])
    if len(tail) < _LOOP_TOKENS:
        return False
    return any(tail[p:] == tail[:-p] for p in range(1, _LOOP_PERIOD + 1))


def text_before(prompt_text: str, prefix: str) -> str:
    """What a box needs to know of the text before the first sampled token.

    An open think block, wherever in the prompt it was opened; else the assistant's prefix, which
    may have opened the box. A box that closed in the prefix already is no answer of the model's.
    """
    if prompt_text.rfind(THINK_OPEN) > prompt_text.rfind(THINK_CLOSE):
        return THINK_OPEN
    return "" if has_closed_box(prefix) else prefix


def unopened(prefix: str, prompt_text: str) -> str:
    """The prefix without the think tag that a prompt ends with already."""
    if prefix.startswith(THINK_OPEN) and prompt_text.rstrip().endswith(THINK_OPEN):
        rest = prefix.removeprefix(THINK_OPEN)
        return rest.removeprefix("\n") if prompt_text.endswith("\n") else rest
    return prefix


class StopChecker:
    """Looks at a row's text only when the token just sampled could have ended it. Without strings
    to stop at, that is one of `closing_ids` or of a number that LOOP_EVERY divides."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._text = text_reader(tokenizer)
        tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        self.closing_ids = frozenset(i for i, token in enumerate(tokens) if token and "}" in token)

    def reason(
        self, token_ids: list[int], params: SamplingParams, before: str
    ) -> FinishReason | None:
        """Why the row ends here, or None. `token_ids` is what was sampled so far, `before` what
        `text_before` says of its prompt."""
        if params.stop and self._has_stopped(token_ids, params.stop):
            return FinishReason.STOP
        if (
            params.stop_at_boxed
            and token_ids[-1] in self.closing_ids
            and has_closed_box(before + self._text(token_ids))
        ):
            return FinishReason.BOXED
        if (
            params.detect_loops
            and len(token_ids) % LOOP_EVERY == 0
            and len(token_ids) >= _LOOP_TOKENS
            and is_looping(token_ids)
        ):
            return FinishReason.LOOP
        return None

    def _has_stopped(self, token_ids: list[int], stops: Sequence[str]) -> bool:
        """Whether the newest token completed a stop string. A token with text has at least one
        byte of it, so the end of the row is enough to look at, however long the row."""
        reach = max(len(stop.encode()) for stop in stops) + _STOP_MARGIN
        ending = self._text(token_ids[-reach:])
        return any(stop in ending for stop in stops)
