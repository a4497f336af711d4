"""Several tokens a row without a word from the host, for devices that would wait for it.

A row's next token needs its last one, its uniforms and the cache, and all of these are on the
device. So a stretch of tokens is sampled in one go and read back once; what a row sampled past its
end is thrown away, and costs what a device computes while it would have waited. On CUDA a step is
captured as a graph, once for each number of rows and width, both rounded up, and replayed. The
fused step (`sampling/fused.py`) has one width.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from forethought.sampling.cache import SlotCache, decode_at, round_up
from forethought.sampling.draw import Kinds, draw_tokens
from forethought.sampling.fused import FusedModel
from forethought.sampling.rows import Row

logger = logging.getLogger("forethought")

TOKENS = 8  # in a stretch; rows end within one, so half of it is wasted a row
_ROWS = 8  # rows are rounded up to a multiple of it
Key = tuple[int, int, Kinds]  # rows, width, and what kinds of draws there are


@dataclass(frozen=True, slots=True)
class Stretch:
    """What every row sampled: TOKENS ids and log-probabilities, not all of them before its end."""

    token_ids: Sequence[Sequence[int]]
    logprobs: Sequence[Sequence[float]]


class Stretches:
    """Stretches of one model over one cache, whose tensors it keeps the addresses of; by the fused
    step where there is one."""

    def __init__(
        self, model: PreTrainedModel, cache: SlotCache, fused: FusedModel | None = None
    ) -> None:
        self._model, self.cache, self._fused = model, cache, fused
        count, device = cache.max_rows, model.device
        self._last_ids = torch.zeros(count, dtype=torch.int64, device=device)
        self._lengths = torch.zeros(count, dtype=torch.int64, device=device)
        self._limits = torch.zeros(count, dtype=torch.int64, device=device)
        self._temperature = torch.ones(count, device=device)
        self._top_p = torch.ones(count, device=device)
        self._uniforms = torch.zeros(TOKENS, count, device=device)
        self._token_ids = torch.zeros(TOKENS, count, dtype=torch.int64, device=device)
        self._logprobs = torch.zeros(TOKENS, count, device=device)
        self._number = torch.zeros(1, dtype=torch.int64, device=device)  # of the token
        self._captures = device.type == "cuda"
        self._graphs: dict[Key, torch.cuda.CUDAGraph] = {}
        self._addresses = _addresses(model)

    def is_of(self, cache: SlotCache) -> bool:
        """Whether it can go on with this cache, and with the model as it is now."""
        return cache is self.cache and self._addresses == _addresses(self._model)

    def run(self, rows: Sequence[Row]) -> Stretch:
        """Sample TOKENS more for each of the live rows, which stand in the cache in this order."""
        count = min(-(-len(rows) // _ROWS) * _ROWS, self.cache.max_rows)
        kinds = Kinds.of([row.params for row in rows])
        step = self._step_of((count, self._width(rows), kinds))
        self._load(rows)
        for _ in range(TOKENS):
            step()
        token_ids, logprobs = (
            table[:, : len(rows)].T.tolist() for table in (self._token_ids, self._logprobs)
        )
        return Stretch(token_ids, logprobs)

    def _width(self, rows: Sequence[Row]) -> int:
        """Columns of the cache that a step looks at; the fused one sees for itself."""
        if self._fused is not None:
            return self.cache.max_columns
        return min(round_up(max(row.length for row in rows) + TOKENS), self.cache.max_columns)

    def _load(self, rows: Sequence[Row]) -> None:
        """Where every row stands, and the chances of its next tokens."""

        def put(target: Tensor, values: Sequence[float]) -> None:
            target[: len(rows)] = torch.tensor(values, dtype=target.dtype)

        self._lengths.zero_()  # of rows that only fill up the count
        put(self._last_ids, [row.token_ids[-1] for row in rows])
        put(self._lengths, [row.length for row in rows])
        # a row that is over writes to its last column again and again
        put(self._limits, [len(row.prompt_ids) + row.max_tokens - 1 for row in rows])
        put(self._temperature, [row.params.temperature for row in rows])
        put(self._top_p, [row.params.top_p for row in rows])
        chances = [row.uniforms[len(row.token_ids) :][:TOKENS] for row in rows]
        padded = [[*some, *[0.5] * (TOKENS - len(some))] for some in chances]
        self._uniforms[:, : len(rows)] = torch.tensor(padded).T.to(self._uniforms.device)
        self._number.zero_()

    def _token(self, key: Key) -> None:
        """One more token for each row, without a look at any value."""
        count, width, kinds = key
        last_ids, lengths = self._last_ids[:count], self._lengths[:count]
        if self._fused is not None:
            logits = self._fused.decode(self.cache, last_ids, lengths)
        else:
            logits = decode_at(self._model, self.cache, last_ids, lengths, width)
        drawn = draw_tokens(
            logits.float(),
            self._temperature[:count],
            self._top_p[:count],
            self._uniforms.index_select(0, self._number)[0, :count],
            kinds=kinds,
        )
        self._token_ids[:, :count].index_copy_(0, self._number, drawn.token_ids[None])
        self._logprobs[:, :count].index_copy_(0, self._number, drawn.logprobs[None])
        last_ids.copy_(drawn.token_ids)
        torch.minimum(lengths + 1, self._limits[:count], out=lengths)
        self._number.add_(1)

    def _step_of(self, key: Key) -> Callable[[], None]:
        if self._captures and key not in self._graphs:
            try:
                self._graphs[key] = self._capture(key)
            except RuntimeError as error:  # a model may do what a graph cannot hold
                logger.warning("decoding without a CUDA graph, which is slower: %s", error)
                self._captures = False
        return self._graphs[key].replay if self._captures else lambda: self._token(key)

    def _capture(self, key: Key) -> torch.cuda.CUDAGraph:
        """The step as a graph. It runs once before, as CUDA asks for, and writes to a column that
        no row has reached."""
        self._lengths.fill_(key[1] - 1)
        self._number.zero_()
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            self._token(key)
        torch.cuda.current_stream().wait_stream(aside)
        self._lengths.fill_(key[1] - 1)
        self._number.zero_()
        graph = torch.cuda.CUDAGraph()
        # one pool for all: they never run at once, and what they return lies outside it
        pool = next((other.pool() for other in self._graphs.values()), None)
        with torch.cuda.graph(graph, pool=pool):
            self._token(key)
        return graph


def _addresses(model: PreTrainedModel) -> list[int]:
    return [parameter.data_ptr() for parameter in model.parameters()]
