"""One driver for every strategy: many problems at once, their requests in one batch, under budgets.

In rounds: each problem's strategy says what it wants next, every wish is cut to what its budget has
left, all go to the engine in one call, and the completions go back. A problem's draws depend on its
own seed alone, so neither batch nor budget changes a completion: a smaller budget ends it sooner.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from forethought.budget import FREE, Account, Ask, Budget, Hold, Prices, fit, fit_together
from forethought.errors import EngineError
from forethought.sampling.pieces import Piece
from forethought.strategies.base import unsolved
from forethought.types import (
    Call,
    Completion,
    CountsPrompts,
    Engine,
    FinishReason,
    Problem,
    Purpose,
    Request,
    Solution,
    Steps,
    Strategy,
    Usage,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """Who hears of `solve_all` under way; what is None is not told, and costs nothing.

    `asked(requests)`: they go to the engine. `grew(index of the problem, its request, piece)`: the
    text of a completion, where the engine tells it. `ended(index, request, completion)`.
    """

    asked: Callable[[Sequence[Request]], None] | None = None
    grew: Callable[[int, Request, Piece], None] | None = None
    ended: Callable[[int, Request, Completion], None] | None = None


SILENT = Listener()
MAX_RETRIES = 2  # of a completion that the engine gave up on
_MAX_IGNORED = 8  # times a strategy may go on asking when nothing is left
_TEMPLATE_TOKENS = 64  # a chat template's own, a message, where the engine cannot count


def solve_all(
    engine: Engine,
    strategy: Strategy,
    problems: Sequence[Problem],
    *,
    budget: Budget | None = None,
    prices: Prices = FREE,
    parent: Account | None = None,
    listener: Listener = SILENT,
) -> list[Solution]:
    """Solve every problem by `strategy`, each within `budget`, all within the `parent`'s.

    A budget that ends first gives the best answer so far, with finish_reason BUDGET. Raises
    EngineError when the engine lacks what the strategy needs.
    """
    budget = budget or Budget()
    jobs = [_Job(index, strategy, p, budget, prices, parent) for index, p in enumerate(problems)]
    clock = time.perf_counter()
    while any(job.solution is None for job in jobs):
        asked = [part for job in jobs for part in job.plan(engine)]
        groups = _generate(engine, asked, listener)
        for part, completions in zip(asked, groups, strict=True):
            part.job.receive(part, completions)
        clock, before = time.perf_counter(), clock
        open_jobs = [job for job in jobs if job.solution is None]
        for job in open_jobs:
            job.account.spend_seconds(clock - before)
        if parent is not None:
            parent.spend_seconds(clock - before)
        for job in open_jobs:
            job.advance_if_answered()
    return [job.solution for job in jobs if job.solution is not None]


def _generate(engine: Engine, asked: Sequence[_Part], listener: Listener) -> list[list[Completion]]:
    if not asked:
        return []
    requests = [part.request for part in asked]
    if listener.asked is not None:
        listener.asked(requests)
    grew, ended = listener.grew, listener.ended
    if not engine.capabilities.streams:
        groups = engine.generate(requests)
        if ended is not None:
            for part, completions in zip(asked, groups, strict=True):
                for completion in completions:
                    ended(part.job.index, part.request, completion)
        return groups
    callbacks: dict[str, Any] = {}
    if ended is not None:
        callbacks["on_finish"] = lambda index, completion: ended(
            asked[index].job.index, requests[index], completion
        )
    if grew is not None:
        callbacks["on_piece"] = lambda piece: grew(
            asked[piece.request].job.index, requests[piece.request], piece
        )
    streaming: Any = engine
    found: list[list[Completion]] = streaming.generate(requests, **callbacks)
    return found


@dataclass(slots=True)
class _Wish:
    """A request of the strategy's, and the completions that it has so far, by sibling."""

    request: Request
    got: dict[int, Completion] = field(default_factory=dict)
    num_failures: int = 0
    is_closed: bool = False  # the budget does not reach for the rest

    @property
    def missing(self) -> range:
        """The first siblings that are wanted still, in one piece."""
        lacking = [i for i in range(self.request.params.n) if i not in self.got]
        if not lacking or self.is_closed:
            return range(0)
        last = lacking[0]
        while last + 1 < self.request.params.n and last + 1 not in self.got:
            last += 1
        return range(lacking[0], last + 1)


@dataclass(slots=True)
class _Part:
    """What of a wish is asked in this round."""

    job: _Job
    wish: _Wish
    siblings: range
    request: Request
    held: Hold


class _Job:
    """One problem on its way."""

    def __init__(
        self,
        index: int,
        strategy: Strategy,
        problem: Problem,
        budget: Budget,
        prices: Prices,
        parent: Account | None,
    ) -> None:
        self.index = index
        self.account = Account(budget, prices, parent)
        self.solution: Solution | None = None
        self._calls_each = not problem.capabilities.n
        self._context = problem.capabilities.context
        self._steps: Steps = strategy.solve(problem)
        self._wishes: list[_Wish] = []
        self._trace: list[Call] = []
        self._ran_out = False
        self._num_ignored = 0
        self._advance(None)

    def plan(self, engine: Engine) -> Iterator[_Part]:
        """What to ask now: of every wish, the piece that the budget reaches for."""
        wanted = [(wish, self._ask(engine, wish)) for wish in self._wishes if wish.missing]
        last = [ask for wish, ask in wanted if ask is not None and _is_last(wish.request)]
        # Thinking that was paid for is answered: those answers are shortened alike.
        shared = fit_together(self.account.left, self.account.prices, last) if last else 0
        for wish, ask in wanted:
            if ask is None:
                wish.is_closed = True  # thinking has filled the model's window
                continue
            if shared and _is_last(wish.request):
                ask = replace(ask, max_tokens=min(ask.max_tokens, shared))
            left, params = self.account.left, wish.request.params
            part = fit(left, self.account.prices, ask)
            if part is None:
                wish.is_closed = self._ran_out = True
                continue
            siblings = wish.missing[: part.n]
            sent = replace(
                params,
                n=part.n,
                max_tokens=part.max_tokens,
                first_sibling=params.first_sibling + siblings.start,
                max_seconds=_tighter(params.max_seconds, left.seconds),
            )
            request = replace(wish.request, params=sent)
            yield _Part(self, wish, siblings, request, self.account.hold(part))

    def _ask(self, engine: Engine, wish: _Wish) -> Ask | None:
        """What the rest of a wish can come to; None when its prompt fills the model's window."""
        prompt = self._count_prompt(engine, wish.request, self.account.left)
        if self._context is not None and self._trace and prompt >= self._context:
            return None
        return Ask(
            prompt_tokens=prompt,
            n=len(wish.missing),
            max_tokens=wish.request.params.max_tokens,
            reserve=wish.request.reserve,
            calls_each=self._calls_each,
        )

    def receive(self, part: _Part, completions: Sequence[Completion]) -> None:
        """Book what a part has cost, and keep its completions; one that failed is asked again."""
        if len(completions) != len(part.siblings):
            wanted, came = len(part.siblings), len(completions)
            raise EngineError(f"the engine returned {came} completions where {wanted} were asked")
        usage = sum((completion.usage for completion in completions), start=Usage())
        if part.wish.num_failures:
            usage = replace(usage, num_retries=usage.num_retries + 1)
        if part.request.purpose is Purpose.VERIFY:
            usage = replace(usage, verifier_tokens=usage.total_tokens)
        usage = replace(usage, money=self.account.prices.cost(usage))
        self.account.settle(part.held, usage)
        is_cut = part.request.params.max_tokens < part.wish.request.params.max_tokens
        marked = [_cut_by_budget(c) if is_cut else c for c in completions]
        self._trace.append(Call(request=part.request, completions=tuple(marked), usage=usage))
        has_failed = any(c.finish_reason is FinishReason.ERROR for c in marked)
        part.wish.num_failures += has_failed
        for sibling, completion in zip(part.siblings, marked, strict=True):
            failed = completion.finish_reason is FinishReason.ERROR
            if not failed or part.wish.num_failures > MAX_RETRIES:
                part.wish.got[sibling] = completion
            self._ran_out |= completion.finish_reason is FinishReason.BUDGET

    def advance_if_answered(self) -> None:
        if any(wish.missing for wish in self._wishes):
            return
        answers = [[wish.got[i] for i in sorted(wish.got)] for wish in self._wishes]
        is_ignored = not any(answers)
        self._num_ignored = self._num_ignored + 1 if is_ignored else 0
        if self._num_ignored > _MAX_IGNORED:
            self._steps.close()
            self._finish(unsolved())
        else:
            self._advance(answers)

    def _advance(self, answers: list[list[Completion]] | None) -> None:
        try:
            requests = self._steps.send(answers) if answers is not None else next(self._steps)
        except StopIteration as stop:
            self._finish(stop.value)
        else:
            self._wishes = [_Wish(request) for request in requests]

    def _finish(self, solution: Solution) -> None:
        self._wishes = []
        usage = sum((call.usage for call in self._trace), start=Usage())
        usage = replace(
            usage,
            discarded_tokens=usage.discarded_tokens + solution.discarded_tokens,
            wall_seconds=self.account.spent.wall_seconds,
        )
        self.solution = replace(
            solution,
            trace=tuple(self._trace),
            usage=usage,
            finish_reason=FinishReason.BUDGET if self._ran_out else solution.finish_reason,
        )

    def _count_prompt(self, engine: Engine, request: Request, left: Budget) -> int:
        """Tokens of the prompt, or a bound; 0 where nothing depends on it."""
        may_outgrow = self._context is not None and bool(request.prefix)
        if left.tokens is None and left.money is None and not may_outgrow:
            return 0
        if isinstance(engine, CountsPrompts):
            return engine.count_prompt(request)
        if request.prompt_ids is not None:
            return len(request.prompt_ids)
        messages = request.messages or ()
        texts = [message["content"] for message in messages] + [request.prefix]
        return sum(len(text.encode()) for text in texts) + _TEMPLATE_TOKENS * len(messages)


def _cut_by_budget(completion: Completion) -> Completion:
    """A completion that ended at a limit which the budget had set."""
    if completion.finish_reason is not FinishReason.LENGTH:
        return completion
    return replace(completion, finish_reason=FinishReason.BUDGET)


def _is_last(request: Request) -> bool:
    """Whether it goes on with a turn that was begun, and nothing comes after it."""
    return bool(request.prefix) and not request.reserve and request.params.n == 1


def _tighter(first: float | None, second: float | None) -> float | None:
    known = [value for value in (first, second) if value is not None]
    return min(known) if known else None
