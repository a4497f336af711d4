"""Continuous batching over any Hugging Face causal LM, in this process.

Each distinct prompt is prefilled once and its keys and values are handed to all its siblings; a
row leaves the batch the moment it ends and a waiting row takes its place; log-probabilities come
from the sampling pass itself. Every draw of a row is fixed by (seed, sibling), whoever else is in
the batch. What is left out: sliding windows shorter than the text, and models without attention.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from forethought.errors import BrokenModel
from forethought.models.load import context_of
from forethought.models.lora import plain_parameters
from forethought.models.threads import fit_threads
from forethought.sampling.admission import Limits, admit
from forethought.sampling.cache import (
    Prefill,
    SlotCache,
    require_supported,
    sliding_window,
)
from forethought.sampling.decoder import Decoder
from forethought.sampling.draw import Kinds, draw_tokens, row_uniforms
from forethought.sampling.pieces import OnPiece, Pieces
from forethought.sampling.products import Weights
from forethought.sampling.prompts import encode_prompt, encode_prompts
from forethought.sampling.rows import Batch, Prompt, Row
from forethought.sampling.stopping import StopChecker, text_before
from forethought.sampling.stretch import Stretch
from forethought.sampling.token_text import text_reader
from forethought.types import (
    Capabilities,
    Completion,
    FinishReason,
    Request,
)

if TYPE_CHECKING:  # needs numba, an extra
    from forethought.sampling.shared_cache import Read, SharedCache

Finished = Callable[[int, Completion], None]


class LocalEngine:
    """Samples from `model` in eval mode. `max_rows` rows decode at once, memory permitting.

    `weights` is the format of packed matrices, where the model has a lean step. What prompts the
    model itself reads it reads under autocast to `prefill_dtype`; float32 is its own format.

    An engine belongs to one model; its weights, dtype and device may change between calls. A
    completion that would outgrow the model's context ends at its edge, by length. Raises
    EngineError for a model it cannot sample from.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_rows: int = 512,
        max_cache_bytes: int = 3 << 30,
        max_prefill_tokens: int = 8192,
        weights: Weights = "float32",
        prefill_dtype: torch.dtype = torch.float32,
    ) -> None:
        self.model = model
        model.eval()  # type: ignore[no-untyped-call]
        self.tokenizer = tokenizer
        self.policy_version = 0
        require_supported(model)
        self._max_rows = max_rows
        self._max_prefill_tokens = max_prefill_tokens
        self._prefill_dtype = prefill_dtype
        self._decoder = Decoder(model, weights, max_cache_bytes)
        self._checker = StopChecker(tokenizer)
        self._text, self._whole_text = text_reader(tokenizer), text_reader(tokenizer, is_whole=True)
        self._end_ids = _end_token_ids(model, tokenizer)
        self._ending_ids = self._end_ids | self._checker.closing_ids
        self._limits = _limits(model)

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities.all(self._limits.context)

    def release(self) -> None:
        """Give back what sampling holds: its cache and packed copies of weights. The next call
        makes them anew. Once the weights have been updated, so that what an update takes is known,
        a GPU with room for both keeps them."""
        self._decoder.release(can_keep=self.policy_version > 0)

    @torch.no_grad()
    def update_weights(self, source: PreTrainedModel, policy_version: int) -> None:
        """Copy the weights of `source`, its adapter merged in, into this engine's model, in place,
        whatever the dtypes."""
        pairs = zip(self.model.parameters(), plain_parameters(source), strict=True)
        for mine, theirs in pairs:
            if mine is not theirs:
                mine.copy_(theirs)
        self._decoder.drop_copies()
        self.policy_version = policy_version

    def prompt_ids(self, request: Request) -> Prompt:
        """The prompt's token ids: see `encode_prompt`."""
        return encode_prompt(self.tokenizer, request)

    def count_prompt(self, request: Request) -> int:
        return len(self.prompt_ids(request))

    @torch.inference_mode()
    def generate(
        self,
        requests: Sequence[Request],
        on_finish: Finished | None = None,
        on_piece: OnPiece | None = None,
    ) -> list[list[Completion]]:
        """`params.n` completions for each request. `on_finish(request_index, completion)` hears of
        each completion as it ends, so that grading can overlap with sampling, and `on_piece` of
        its text, a token at a time.

        Raises EngineError, before anything is sampled, for a request that cannot be (see `admit`),
        and BrokenModel later when the model's logits are not finite.
        """
        began = time.perf_counter()
        found: list[list[Completion | None]] = [[None] * r.params.n for r in requests]
        pieces = None if on_piece is None else Pieces(self._text, on_piece)
        for row, completion in self._run(self._waiting_rows(requests), began, pieces):
            found[row.request][row.sibling] = completion
            if on_finish is not None:
                on_finish(row.request, completion)
        return [[c for c in siblings if c is not None] for siblings in found]

    def _waiting_rows(self, requests: Sequence[Request]) -> deque[Row]:
        """Every row of the call. Rows of one prompt stand together, whichever request they are
        of: its prefill is shared by all of them and then dropped."""
        by_prompt: dict[Prompt, list[Row]] = {}
        prompts = encode_prompts(self.tokenizer, requests)
        for index, (request, prompt) in enumerate(zip(requests, prompts, strict=True)):
            max_tokens = admit(index, request, prompt, self._limits)
            before = text_before(self._whole_text(prompt), request.prefix)
            rows = by_prompt.setdefault(prompt, [])
            for sibling in range(request.params.n):
                row = Row(
                    request=index,
                    sibling=sibling,
                    prompt_ids=prompt,
                    before=before,
                    params=request.params,
                    max_tokens=max_tokens,
                    shares_prefill=bool(rows),
                )
                rows.append(row)
        return deque(chain.from_iterable(by_prompt.values()))

    def _run(
        self, waiting: deque[Row], began: float, pieces: Pieces | None
    ) -> Iterator[tuple[Row, Completion]]:
        """Decode until nothing is live and nothing waits; yields rows as they end."""
        if not waiting:
            return
        batch = Batch(self._open_cache(waiting), waiting, began=began, pieces=pieces)
        live = batch.live
        while waiting or live:
            yield from self._give_up(batch)
            if waiting and self._worth_refilling(batch):
                joined = self._join(batch)
                yield from self._retire(batch, joined)
            fit_threads()
            if live:
                start = time.perf_counter()
                further = self._advance(batch)
                batch.step_seconds = batch.spend(start)
                yield from self._retire(batch, range(len(live)), further)

    def _advance(self, batch: Batch) -> Stretch | None:
        """One more token for every live row; or a stretch of them, which no row has taken yet."""
        live = batch.live
        stretch = self._decoder.stretch(batch.cache, live)
        if stretch is None:
            last_ids = [row.token_ids[-1] for row in live]
            lengths = [len(row.prompt_ids) + len(row.token_ids) - 1 for row in live]
            self._draw(self._decoder.step(batch.cache, last_ids, lengths), live)
        return stretch

    def _give_up(self, batch: Batch) -> Iterator[tuple[Row, Completion]]:
        """The waiting rows whose time is over: their prompts are not read any more."""
        for row in batch.pop_late() if batch.has_deadline else ():
            yield row, row.never_begun(self.policy_version)

    def _open_cache(self, rows: Sequence[Row]) -> SlotCache | SharedCache:
        return self._decoder.open(
            min(self._max_rows, len(rows)),
            prompt=max(len(row.prompt_ids) for row in rows),
            own=max(row.max_tokens for row in rows),
            columns=max(len(row.prompt_ids) + row.max_tokens for row in rows),
        )

    def _worth_refilling(self, batch: Batch) -> bool:
        """Refill in lots: a prefill of one prompt costs nearly as much as one of eight."""
        free = batch.cache.max_rows - len(batch.live)
        return not batch.live or free * 8 >= batch.cache.max_rows

    def _join(self, batch: Batch) -> range:
        """Move waiting rows into free slots and draw their first token; returns their slots."""
        began = time.perf_counter()
        first = len(batch.live)
        count = min(batch.cache.max_rows - first, len(batch.waiting))
        coming = [batch.waiting.popleft() for _ in range(count)]
        missing = {row.prompt_ids for row in coming} - batch.ready.keys()
        self._prefill(sorted(missing, key=len), batch.ready)
        cache: Any = batch.cache  # whose kind what was read is of
        for slot, row in enumerate(coming, start=first):
            cache.join(slot, row.prompt_ids, batch.ready[row.prompt_ids])
            sibling = row.params.first_sibling + row.sibling
            row.uniforms = row_uniforms(row.params.seed, sibling, row.max_tokens).tolist()
            row.started = batch.share_seconds
            batch.live.append(row)
        self._draw(torch.stack([batch.ready[row.prompt_ids].logits for row in coming]), coming)
        following = batch.waiting[0].prompt_ids if batch.waiting else None
        for prompt in [p for p in batch.ready if p != following]:
            del batch.ready[prompt]
        batch.spend(began)
        return range(first, first + count)

    def _prefill(self, prompts: Sequence[Prompt], ready: dict[Prompt, Prefill | Read]) -> None:
        """Run each distinct prompt once, in right-padded batches of similar length."""
        start = 0
        while start < len(prompts):
            end = start + 1
            while end < len(prompts) and (
                (end + 1 - start) * len(prompts[end]) <= self._max_prefill_tokens
            ):
                end += 1
            lot = prompts[start:end]
            found = self._decoder.prefill(lot, self._prefill_dtype)
            ready.update(zip(lot, found, strict=True))
            start = end

    def _draw(self, logits: Tensor, rows: Sequence[Row]) -> None:
        """Draw each row's next token from logits (n, V) and write it down."""
        wants = [row.wants for row in rows]
        temperatures, cuts, num_top = zip(*wants, strict=True)
        of_rows = temperatures, cuts, [row.uniforms[len(row.token_ids)] for row in rows]
        temperature, top_p, uniforms = (
            torch.from_numpy(np.array(x, np.float32)).to(logits.device) for x in of_rows
        )  # numpy reads sequences several times faster than torch
        kinds = Kinds.of(set(wants))
        drawn = draw_tokens(logits.float(), temperature, top_p, uniforms, num_top, kinds=kinds)
        logprobs = drawn.logprobs.tolist()
        self._require_finite(logprobs)
        for row, token_id, logprob in zip(rows, drawn.token_ids.tolist(), logprobs, strict=True):
            row.token_ids.append(token_id)
            row.logprobs.append(logprob)
        for row, confidence in zip(rows, drawn.confidences, strict=False):
            if row.wants.top_logprobs:
                row.add_confidence(confidence)

    def _require_finite(self, logprobs: Sequence[float]) -> None:
        if not math.isfinite(sum(logprobs)):
            self._decoder.clear()  # what the cache holds would spoil later calls
            raise BrokenModel(
                "the model's logits are not finite: its weights are broken, or need a wider dtype"
            )

    def _retire(
        self, batch: Batch, slots: range, further: Stretch | None = None
    ) -> Iterator[tuple[Row, Completion]]:
        """Take the rows that ended out of the batch; the last live row fills each gap. With
        `further` tokens a row takes them until it ends.

        From the back, so that a row which moves has been looked at already.
        """
        for slot in reversed(slots):
            row = batch.live[slot]
            if further is None and batch.pieces is None and not row.may_end(self._ending_ids):
                continue
            reason = None if further else self._look(row, batch)
            if further is not None:
                tokens = zip(further.token_ids[slot], further.logprobs[slot], strict=True)
                while reason is None and (token := next(tokens, None)) is not None:
                    self._require_finite(token[1:])
                    row.token_ids.append(token[0])
                    row.logprobs.append(token[1])
                    reason = self._look(row, batch)
            if reason is None:
                continue
            last = batch.live.pop()
            batch.cache.leave(slot, last.length)
            if last is not row:
                batch.live[slot] = last
            seconds = batch.share_seconds - row.started
            completion = row.completion(reason, seconds, self._text, self.policy_version)
            if batch.pieces is not None:
                batch.pieces.ended(row, completion.text)
            yield row, completion

    def _look(self, row: Row, batch: Batch) -> FinishReason | None:
        """Why the row ends with its newest token, None when it does not."""
        if batch.pieces is not None:
            batch.pieces.grew(row)
        if row.token_ids[-1] in self._end_ids:
            return FinishReason.EOS
        reason = self._checker.reason(row.token_ids, row.params, row.before)
        if reason is not None:
            return reason
        if row.is_unsure():
            return FinishReason.ABORTED
        if len(row.token_ids) >= row.max_tokens:
            return FinishReason.LENGTH
        return FinishReason.BUDGET if batch.is_late(row.params) else None


def _limits(model: PreTrainedModel) -> Limits:
    embeddings: Any = model.get_input_embeddings()
    return Limits(
        num_ids=int(embeddings.weight.shape[0]),
        context=context_of(model),
        window=sliding_window(model),
    )


def _end_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every id that ends a completion, from the tokenizer and the generation config."""
    configured = model.generation_config.eos_token_id if model.generation_config else None
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(i for i in [*ids, tokenizer.eos_token_id] if i is not None)
