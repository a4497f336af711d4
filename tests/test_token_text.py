"""The text of tokens is what their tokenizer says, asked directly or not."""

from __future__ import annotations

from functools import cache
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from forethought.models.tiny import train_tokenizer
from forethought.sampling.token_text import text_reader


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(["the answer is 12 , so <stop> here"] * 9, 300)


@given(st.lists(st.integers(0, 299), max_size=40))
def test_it_is_what_decode_says(ids: list[int]) -> None:
    known = [i for i in ids if i < len(tokenizer())]
    wanted = tokenizer().decode(known, skip_special_tokens=True)
    assert text_reader(tokenizer())(known) == wanted
    assert text_reader(tokenizer())(tuple(known)) == wanted
    whole = tokenizer().decode(known, skip_special_tokens=False)
    assert text_reader(tokenizer(), is_whole=True)(known) == whole


def test_a_tokenizer_that_does_more_is_asked_itself() -> None:
    class Loud(PreTrainedTokenizerFast):
        def _decode(self, *arguments: Any, **named: Any) -> str:
            return str(super()._decode(*arguments, **named)).upper()

    loud = Loud(tokenizer_object=tokenizer().backend_tokenizer)
    ids = loud("the answer").input_ids
    assert text_reader(loud)(ids) == loud.decode(ids, skip_special_tokens=True)
    assert "ANSWER" in text_reader(loud)(ids)
