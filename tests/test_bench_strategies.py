"""What the benches of strategies rest on: sampling nothing twice changes nothing; arithmetic."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from forethought.sampling.scripted import ABLE, Reply, ScriptedEngine
from forethought.strategies.driver import solve_all
from forethought.strategies.registry import parse_strategy
from forethought.types import Request, Usage
from strategy_bench import box, problems

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "bench"))

from bench_s2a import KINDS, MAX_SENTENCES, PROMPT, document
from bench_strategies import VOTING, Remembering, at_equal_tokens


def say(_request: Request, rng: Random) -> Reply:
    words = "hm " * rng.randint(0, 5)
    return Reply(text=words + box(str(rng.choice("1123"))), confidence=rng.random())


def test_a_completion_that_was_sampled_before_is_the_one_that_would_be_sampled() -> None:
    once = Remembering(ScriptedEngine(say))  # type: ignore[arg-type]
    engine = once._engine
    for spec in VOTING.values():
        mine = solve_all(once, parse_strategy(spec), problems(6))
        alone = solve_all(ScriptedEngine(say), parse_strategy(spec), problems(6))
        for found, expected in zip(mine, alone, strict=True):
            assert (found.answer, found.text, found.votes) == (
                expected.answer, expected.text, expected.votes,
            )  # fmt: skip
            assert _cost(found.usage) == _cost(expected.usage)
    num_sampled = sum(len(call) for call in engine.calls)  # type: ignore[attr-defined]
    assert num_sampled <= 6 * 32, "sixteen plain ones, and at most as many that may be aborted"


def _cost(usage: Usage) -> Usage:
    """What does not depend on the clock or on who shares a prompt."""
    return replace(usage, wall_seconds=0.0, cached_tokens=0)


def test_accuracy_at_equal_tokens_lies_between_two_majorities() -> None:
    names = ("sample", "majority_2", "majority_4", "majority_8", "majority_12", "majority")
    points = zip(names, (10, 20, 40, 80, 120, 160), (50, 60, 70, 80, 84, 86), strict=True)
    rows = {n: {"total_tokens": float(t), "accuracy": float(a)} for n, t, a in points}
    rows["other"] = {"total_tokens": 60.0, "accuracy": 77.0}
    assert at_equal_tokens(rows, "other") == 2.0
    assert at_equal_tokens(rows, "majority") == at_equal_tokens(rows, "sample") == 0.0
    rows["other"]["total_tokens"] = 170.0
    with pytest.raises(ValueError, match="no majority"):
        at_equal_tokens(rows, "other")


def test_the_subject_of_s2a_works_out_clean_stories_and_rewrites_others() -> None:
    rng = Random(1)
    found = [document("story", rng) for _ in range(400)]
    rewrites = [d for d in found if d["prompt"].startswith(PROMPT.relevance.split("{")[0])]
    assert abs(len(rewrites) / len(found) - KINDS["rewrite"]) < 0.1
    extra = [d["prompt"].count(".") - d["completion"].count(".") for d in rewrites]
    assert set(extra) == set(range(MAX_SENTENCES + 1))
    for each in found:
        if each not in rewrites:
            *steps, _close, _answer = each["completion"].splitlines()[1:]
            sentences = each["prompt"].replace("Leave out what is irrelevant. ", "").count(".")
            assert sentences in (len(steps) + 1, 2 * (len(steps) + 1))


def test_confidences_are_there_for_whoever_asks_second() -> None:
    once = Remembering(ScriptedEngine(say, ABLE))  # type: ignore[arg-type]
    [problem] = problems(1)
    once.generate([Request(messages=problem.messages, params=problem.params)])
    params = replace(problem.params, top_logprobs=20, n=2)
    [group] = once.generate([Request(messages=problem.messages, params=params)])
    assert all(completion.confidences for completion in group)
    assert [completion.usage.num_calls for completion in group] == [1, 0]
