"""The text of tokens, as their tokenizer has it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast


def text_reader(
    tokenizer: PreTrainedTokenizerBase, *, is_whole: bool = False
) -> Callable[[Sequence[int]], str]:
    """What `decode` of the tokenizer says, of special tokens too where it `is_whole`. Most do no
    more there than ask their backend, after a look at every id that takes longer than the answer:
    these are asked directly."""
    kind, own = type(tokenizer), PreTrainedTokenizerFast
    is_plain = isinstance(tokenizer, own) and not tokenizer.clean_up_tokenization_spaces
    if is_plain and kind.decode is own.decode and kind._decode is own._decode:
        backend = tokenizer.backend_tokenizer
        return lambda ids: str(backend.decode(ids, skip_special_tokens=not is_whole))
    return lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=not is_whole))
