"""Measure a model on a task: one engine call, every sample graded, intervals per question."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from forethought.durable import write_atomic
from forethought.errors import EngineError, UserError
from forethought.evaluation.metrics import (
    Interval,
    majority_at_k,
    mean_interval,
    paired_difference,
    pass_at_k,
)
from forethought.grading.jobs import begin_task_grade
from forethought.grading.watch import GradeWatch
from forethought.strategies.base import derived_seed
from forethought.strategies.vote import same_answer
from forethought.types import (
    Completion,
    Engine,
    Example,
    FinishReason,
    Grade,
    GradeStatus,
    Request,
    SamplingParams,
    Task,
    Usage,
)

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemResult:
    """One problem and its samples: every tuple has one entry a sample, in the order drawn.

    `votes` names the class of equal answers each sample votes for; None is no vote.
    """

    example_id: str
    question: str
    answer: str
    scores: tuple[float | None, ...]
    statuses: tuple[GradeStatus, ...]
    extracted: tuple[str | None, ...]
    votes: tuple[str | None, ...]
    texts: tuple[str, ...]
    num_tokens: tuple[int, ...]
    finish_reasons: tuple[FinishReason, ...]

    @property
    def is_graded(self) -> bool:
        """False when the score of any sample is unknown: the problem leaves every accuracy."""
        return None not in self.scores

    @property
    def score(self) -> float:
        """Mean over the samples. ValueError when ungraded."""
        if not self.is_graded:
            raise ValueError(f"problem {self.example_id} has samples without a score")
        return fmean(score for score in self.scores if score is not None)

    @property
    def correct(self) -> tuple[bool, ...]:
        """A sample is correct when its score is 1: half a point does not pass."""
        return tuple(score == 1.0 for score in self.scores)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What an evaluation found. Shares are fractions of 1; lengths are sampled tokens.

    Every accuracy leaves out the problems with an unknown score and `num_ungraded` counts them;
    accuracy and its bounds are NaN when no problem is left. Lengths and shares of samples take
    every problem.
    """

    task: str
    num_samples: int
    params: SamplingParams
    results: tuple[ProblemResult, ...]
    usage: Usage
    seconds: float

    @property
    def graded(self) -> tuple[ProblemResult, ...]:
        return tuple(result for result in self.results if result.is_graded)

    @property
    def num_problems(self) -> int:
        return len(self.results)

    @property
    def num_ungraded(self) -> int:
        return len(self.results) - len(self.graded)

    @property
    def interval(self) -> Interval:
        """Accuracy: mean over samples, then over questions, with its 95% interval in [0, 1]."""
        if not self.graded:
            return Interval(mean=math.nan, low=math.nan, high=math.nan)
        found = mean_interval([result.score for result in self.graded])
        return Interval(mean=found.mean, low=max(0.0, found.low), high=min(1.0, found.high))

    @property
    def accuracy(self) -> float:
        return self.interval.mean

    @property
    def low(self) -> float:
        return self.interval.low

    @property
    def high(self) -> float:
        return self.interval.high

    @property
    def pass_at(self) -> dict[int, float]:
        """k -> mean over questions of `pass_at_k`, for k = 1, 2, 4, ... and num_samples."""
        return self._mean_at(lambda result, k: pass_at_k(self.num_samples, sum(result.correct), k))

    @property
    def majority_at(self) -> dict[int, float]:
        """k -> mean over questions of `majority_at_k`, for k = 1, 2, 4, ... and num_samples."""
        return self._mean_at(lambda result, k: majority_at_k(result.votes, result.correct, k))

    @property
    def tokens(self) -> Interval:
        """Sampled tokens of a completion: mean over samples, then over questions."""
        return mean_interval([fmean(result.num_tokens) for result in self.results])

    @property
    def mean_tokens(self) -> float:
        return self.tokens.mean

    @property
    def truncated_frac(self) -> float:
        """Share of samples that the model did not end by itself."""
        reasons = [reason for result in self.results for reason in result.finish_reasons]
        return fmean(reason.is_truncated for reason in reasons)

    @property
    def status_fracs(self) -> dict[str, float]:
        """Share of samples with each grade status; statuses that did not occur are left out."""
        counts = Counter(status.value for result in self.results for status in result.statuses)
        return {status: count / counts.total() for status, count in sorted(counts.items())}

    def _mean_at(self, measure: Callable[[ProblemResult, int], float]) -> dict[int, float]:
        if not self.graded:
            return {}
        return {
            k: fmean(measure(result, k) for result in self.graded) for k in ks(self.num_samples)
        }

    def summary(self) -> dict[str, Any]:
        """Everything but the samples, ready for JSON (what is not finite becomes None)."""
        accuracy, tokens = self.interval, self.tokens
        return {
            "task": self.task,
            "accuracy": finite(accuracy.mean),
            "low": finite(accuracy.low),
            "high": finite(accuracy.high),
            "num_problems": self.num_problems,
            "num_ungraded": self.num_ungraded,
            "num_samples": self.num_samples,
            "pass_at": {str(k): value for k, value in self.pass_at.items()},
            "majority_at": {str(k): value for k, value in self.majority_at.items()},
            "mean_tokens": tokens.mean,
            "mean_tokens_low": finite(tokens.low),
            "mean_tokens_high": finite(tokens.high),
            "truncated_frac": self.truncated_frac,
            "statuses": self.status_fracs,
            "usage": asdict(self.usage) | {"total_tokens": self.usage.total_tokens},
            "seconds": self.seconds,
            "temperature": self.params.temperature,
            "top_p": self.params.top_p,
            "max_tokens": self.params.max_tokens,
            "seed": self.params.seed,
        }


def evaluate(
    engine: Engine,
    task: Task,
    *,
    num_samples: int = 1,
    temperature: float = 1.0,
    max_tokens: int = 256,
    seed: int = 0,
    limit: int | None = None,
    top_p: float = 1.0,
    stop_at_boxed: bool = True,
    progress: Progress | None = None,
    watch: GradeWatch | None = None,
) -> Evaluation:
    """Sample every problem of the task `num_samples` times in one engine call, and grade.

    The draws of a problem depend on `seed` and its id alone, not on its place or its neighbours.
    `limit` keeps the first problems; `progress(num_graded, num_problems)` is called after each.
    `watch` sees every grade, and warns where none can be right (by default, one of its own).
    Raises UserError when there is nothing to evaluate, EngineError when the engine returns
    another number of completions than asked for.
    """
    params = SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        n=num_samples,
        seed=seed,
        stop_at_boxed=stop_at_boxed,
    )
    if limit is not None and limit < 1:
        raise UserError(f"limit={limit} leaves nothing to evaluate: it must be at least 1")
    size = len(task) if limit is None else min(limit, len(task))
    if size == 0:
        raise UserError(f"task {task.name} has no problems to evaluate")
    examples = [task[index] for index in range(size)]
    start = time.perf_counter()
    sampled = engine.generate([_request(example, params) for example in examples])
    if len(sampled) != size or any(len(siblings) != num_samples for siblings in sampled):
        raise EngineError(f"the engine did not return {num_samples} completions a problem")
    begun = [
        [_begin_grade(task, example, completion) for completion in siblings]
        for example, siblings in zip(examples, sampled, strict=True)
    ]
    watch = watch or GradeWatch(task.name)
    results: list[ProblemResult] = []
    for example, siblings, waiting in zip(examples, sampled, begun, strict=True):
        grades = [grade.result() for grade in waiting]
        results.append(_problem_result(example, siblings, grades))
        watch.look(grades, is_last=len(results) == size)
        if progress is not None:
            progress(len(results), size)
    return Evaluation(
        task=task.name,
        num_samples=num_samples,
        params=params,
        results=tuple(results),
        usage=sum((c.usage for siblings in sampled for c in siblings), start=Usage()),
        seconds=time.perf_counter() - start,
    )


def compare(before: Evaluation, after: Evaluation) -> Interval:
    """Accuracy of `after` minus that of `before`, paired by problem, with its 95% interval.

    A problem ungraded in either is left out. Raises UserError when the two did not see the same
    problems, or no problem is graded in both.
    """
    old = {result.example_id: result for result in before.results}
    new = {result.example_id: result for result in after.results}
    if old.keys() != new.keys():
        num_odd = len(old.keys() ^ new.keys())
        raise UserError(f"{num_odd} problems are in one evaluation only: compare on the same ones")
    shared = [key for key in old if old[key].is_graded and new[key].is_graded]
    if not shared:
        raise UserError("no problem is graded in both evaluations: check the reference answers")
    return paired_difference([old[k].score for k in shared], [new[k].score for k in shared])


def write_results(evaluation: Evaluation, path: str | Path) -> None:
    """One JSON object a problem; the file appears whole or not at all. Raises OSError."""
    rows = (json.dumps(asdict(result), allow_nan=False) for result in evaluation.results)
    write_atomic(Path(path), "".join(f"{row}\n" for row in rows))


def ks(num_samples: int) -> list[int]:
    """1, 2, 4, ... up to the number of samples, and that number."""
    powers = [2**i for i in range(num_samples.bit_length()) if 2**i < num_samples]
    return [*powers, num_samples]


def finite(value: float) -> float | None:
    """None in place of NaN and infinity, which JSON does not have."""
    return value if math.isfinite(value) else None


def _request(example: Example, params: SamplingParams) -> Request:
    params = replace(params, seed=derived_seed(params.seed, example.id))
    return Request(messages=example.messages, params=params)


def _problem_result(
    example: Example, siblings: Sequence[Completion], grades: Sequence[Grade]
) -> ProblemResult:
    answers = [(grade.extracted, grade.score == 1.0) for grade in grades]
    return ProblemResult(
        example_id=example.id,
        question=example.messages[-1]["content"],
        answer=example.answer,
        scores=tuple(grade.score for grade in grades),
        statuses=tuple(grade.status for grade in grades),
        extracted=tuple(grade.extracted for grade in grades),
        votes=_votes(answers),
        texts=tuple(completion.text for completion in siblings),
        num_tokens=tuple(
            # of a server that gives no token ids, what it gives
            len(completion.token_ids) or len(completion.logprobs) or completion.usage.sampled_tokens
            for completion in siblings
        ),
        finish_reasons=tuple(completion.finish_reason for completion in siblings),
    )


def _begin_grade(task: Task, example: Example, completion: Completion) -> Future[Grade]:
    """A completion that never came says nothing of the model: its score is unknown."""
    if completion.finish_reason is not FinishReason.ERROR:
        return begin_task_grade(task, example, completion.text)
    unknown: Future[Grade] = Future()
    unknown.set_result(Grade(score=None, status=GradeStatus.ERROR))
    return unknown


def _votes(answers: Sequence[tuple[str | None, bool]]) -> tuple[str | None, ...]:
    """Name each answer's class: equal strings first, then equivalent ones.

    A right and a wrong answer never share a class, whatever the equivalence says of them.
    """
    names: dict[tuple[str, bool], str] = {}
    classes: list[tuple[str, bool]] = []
    for answer, is_right in answers:
        if answer is None or (answer, is_right) in names:
            continue
        same = (c for c in classes if c[1] is is_right and same_answer(c[0], answer))
        found = next(same, None)
        if found is None:
            found = (answer, is_right)
            classes.append(found)
        # The mark is part of the name, so that "4" graded both ways makes two classes.
        names[answer, is_right] = f"{'right' if found[1] else 'wrong'}: {found[0]}"
    return tuple(None if answer is None else names[answer, mark] for answer, mark in answers)
