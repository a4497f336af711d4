"""What a completion's length and its repetitions are worth: three formulas on plain numbers.

Lengths are in tokens, the end token included.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from forethought.schema_tables import CosineLength


def cosine_length(score: float, length: int, max_length: int, values: CosineLength) -> float:
    """A correct answer earns more the shorter it is, a wrong one loses less the longer it is.

    Along a cosine from `*_short` at length 0 to `*_long` at `max_length` and beyond
    (Demystifying long CoT, arXiv 2502.03373, equation 1):
    long + (short - long) * (1 + cos(pi * length / max_length)) / 2. From `max_length` on it is
    `exceeded`, where that is given. A `score` between 0 and 1 lies between wrong and correct.
    """
    if length >= max_length and values.exceeded is not None:
        return values.exceeded
    left = (1.0 + math.cos(math.pi * min(1.0, length / max_length))) / 2.0
    correct = values.correct_long + (values.correct_short - values.correct_long) * left
    wrong = values.wrong_long + (values.wrong_short - values.wrong_long) * left
    return wrong + (correct - wrong) * score


def soft_overlong(length: int, max_length: int, buffer: int) -> float:
    """0 up to `max_length - buffer`, from there down in a line to -1 at `max_length`.

    DAPO, arXiv 2503.14476, equation 13.
    """
    return max(-1.0, min(0.0, (max_length - buffer - length) / buffer))


def repetition(token_ids: Sequence[int], ngram_size: int) -> float:
    """-(1 - distinct n-grams / n-grams): 0 when none comes twice, near -1 when one is all there is.

    The measure of arXiv 2502.03373, appendix C.2, as TRL 1.16 has it, on tokens.
    """
    count = len(token_ids) - ngram_size + 1
    if count < 1:
        return 0.0
    ngrams = {tuple(token_ids[start : start + ngram_size]) for start in range(count)}
    return len(ngrams) / count - 1.0
