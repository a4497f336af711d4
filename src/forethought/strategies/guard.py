"""Whether a rewritten question is still the question: its numbers and names against the original's.

A rewrite may leave sentences out. It may not invent a number or a name, lose those of the
question itself (the last sentence that asks) or the question mark, nor lose most of the numbers, as
a rewrite does that was cut short or answered the question instead.
"""

from __future__ import annotations

import re
from collections import Counter

_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_WORD = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*")
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")


def find_damage(original: str, rewritten: str, min_kept: float = 0.5) -> str | None:
    """What is wrong with the rewrite, in words, or None when numbers and names survived."""
    if not rewritten.strip():
        return "it is empty"
    if "?" in original and "?" not in rewritten:
        return "it asks nothing"
    old, new = _numbers(original), _numbers(rewritten)
    if invented := new - old:
        return f"it has a number that the original has not: {min(invented)}"
    old_words = {word.casefold() for word in _WORD.findall(original)}
    if strange := sorted(n for n in names(rewritten) if n.casefold() not in old_words):
        return f"it has a name that the original has not: {strange[0]}"
    question = asking_sentence(original)
    if lost := _numbers(question) - new:
        return f"it lost a number of the question: {min(lost)}"
    kept = {word.casefold() for word in _WORD.findall(rewritten)}
    if missing := sorted(n for n in names(question) if n.casefold() not in kept):
        return f"it lost a name of the question: {missing[0]}"
    if new.total() < min_kept * old.total():
        return f"it kept {new.total()} of {old.total()} numbers"
    return None


def names(text: str) -> set[str]:
    """Words with a capital that stand inside a sentence; single letters are none."""
    inside: set[str] = set()
    for sentence in _SENTENCE.split(text):
        inside |= {word for word in _WORD.findall(sentence)[1:] if word[0].isupper()}
    return {word for word in inside if len(word) > 1}


def asking_sentence(text: str) -> str:
    """The last sentence with a question mark; without any, the last sentence."""
    sentences = [s for s in _SENTENCE.split(text.strip()) if s.strip()]
    asking = [s for s in sentences if s.rstrip().endswith("?")]
    return (asking or sentences or [""])[-1]


def _numbers(text: str) -> Counter[str]:
    return Counter(number.replace(",", "") for number in _NUMBER.findall(text))
