"""What each strategy asks for, and what it makes of the answers."""

from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forethought.errors import EngineError, StrategyError
from forethought.sampling.scripted import Reply, ScriptedEngine
from forethought.strategies.base import problem_of
from forethought.strategies.best_of_n import BestOfN
from forethought.strategies.driver import solve_all
from forethought.strategies.guard import asking_sentence, find_damage
from forethought.strategies.registry import parse_strategy
from forethought.strategies.system2_attention import VARIANTS, read_rewrite
from forethought.strategies.vote import same_answer
from forethought.types import (
    Capabilities,
    Example,
    FinishReason,
    Message,
    Purpose,
    Request,
    SamplingParams,
    Solution,
)
from strategy_bench import box, in_turn, problems, solve


def say(*texts: str) -> list[str | Reply]:
    return [box(text) if text else "hm" for text in texts]


def solved(spec: str, *texts: str) -> Solution:
    [solution] = solve(spec, in_turn(say(*texts)))
    return solution


# --- Votes --------------------------------------------------------------------------------------


def test_a_majority_is_of_equivalent_answers_not_of_texts() -> None:
    found = solved("majority:n=5", "0.5", "3", "3", "\\frac12", "1/2")
    assert found.answer == "0.5" and found.text == box("0.5")
    assert [(vote.answer, vote.count) for vote in found.votes] == [("0.5", 3), ("3", 2)]


def test_ties_go_to_the_first_and_no_answer_is_no_vote() -> None:
    assert solved("majority:n=5", "", "2", "1", "1", "2").answer == "2"
    assert solved("majority:n=3", "", "", "9").answer == "9"
    nothing = solved("majority:n=2", "", "")
    assert nothing.answer is None and nothing.text == "hm" and nothing.votes == ()


def test_weighted_votes_count_probabilities() -> None:
    replies = [
        Reply(text=box("1"), logprob=math.log(0.9)),
        Reply(text=box("2"), logprob=math.log(0.4)),
        Reply(text=box("2"), logprob=math.log(0.4)),
    ]
    [found] = solve("majority:n=3,weight=logprob", in_turn(replies))
    assert found.answer == "1"
    assert [vote.weight for vote in found.votes] == pytest.approx([0.9, 0.8])
    [plain] = solve("majority:n=3", in_turn(replies))
    assert plain.answer == "2"


@pytest.mark.parametrize(("first", "second"), [("9\\%", "0.09"), ("0.09", "9\\%"), ("x=5", "5")])
def test_equivalence_does_not_depend_on_the_order(first: str, second: str) -> None:
    assert same_answer(first, second)


def test_adaptive_consistency_asks_for_no_vote_too_many() -> None:
    found = solved("asc", *"1111")
    assert (found.answer, len(found.trace), found.usage.num_calls) == ("1", 1, 1)
    found = solved("asc", *"1211111", *"999")
    assert [len(call.completions) for call in found.trace] == [4, 3]
    assert found.votes[0].count == 6


def test_early_stopping_ends_at_a_window_of_one_mind_and_gives_its_answer() -> None:
    found = solved("esc:window=2,n=8", *"12", *"21", *"33", *"99")
    assert found.answer == "3" and len(found.trace) == 3
    assert {vote.answer: vote.count for vote in found.votes} == {"1": 2, "2": 2, "3": 2}
    whole = solved("esc:window=2,n=5", *"12", *"13", "4")
    assert whole.answer == "1" and [len(call.completions) for call in whole.trace] == [2, 2, 1]
    assert solved("esc:window=2,n=4", "", "", *"12").answer == "1"  # nothing is not one mind


def test_best_of_n_by_log_probability_and_by_a_verifier() -> None:
    replies = [Reply(text=box("1"), logprob=-2.0), Reply(text=box("2"), logprob=-1.0), "hm"]
    [found] = solve("best_of_n:n=3", in_turn(replies))
    assert (found.answer, found.score) == ("2", -1.0)

    def least(question: str, completion: str) -> float:
        assert question == "Ask?"
        return -len(completion) if "1" in completion else -100

    strategy = BestOfN(n=3, verifier=least)
    [found] = solve_all(ScriptedEngine(in_turn(replies)), strategy, problems(1))
    assert found.answer == "1"


@pytest.mark.parametrize("wrong", [None, "good", float("nan"), True])
def test_a_verifier_that_returns_no_number_is_an_error(wrong: object) -> None:
    strategy = BestOfN(n=1, verifier=lambda question, completion: wrong)  # type: ignore[arg-type,return-value]
    with pytest.raises(StrategyError, match="must return a number"):
        solve_all(ScriptedEngine(in_turn(say("1"))), strategy, problems(1))


def test_deepconf_leaves_the_unsure_out_of_the_vote() -> None:
    replies = [Reply(text=box("1"), confidence=c) for c in (9.0, 8.0)]
    replies += [Reply(text=box("2"), confidence=c) for c in (1.0, 2.0, 3.0)]
    [found] = solve("deepconf:n=5,keep=40", in_turn(replies))
    assert found.answer == "1" and [vote.weight for vote in found.votes] == [17.0]
    assert found.usage.discarded_tokens == 3
    [everyone] = solve("deepconf:n=5,keep=100", in_turn(replies))
    assert everyone.answer == "1" and everyone.votes[1].weight == 6.0


def test_deepconf_online_aborts_what_falls_below_the_warm_up() -> None:
    long = "a b c d e f g h i j k l m n o p q r s t "
    sure = Reply(text=long + box("1"), confidence=5.0)
    other = Reply(text=long + box("2"), confidence=5.0)
    unsure = Reply(text=long + box("3"), confidence=[5.0] * 6 + [1.0])
    spec = "deepconf:mode=online,n=6,warmup=2,window=4"
    [found] = solve(spec, in_turn([sure, other, sure, unsure, unsure, sure]))
    assert found.answer == "1" and [vote.count for vote in found.votes] == [3, 1]
    assert found.usage.cancelled_tokens == found.usage.discarded_tokens == 2 * 7
    assert [len(call.completions) for call in found.trace] == [2, 2, 2]
    [agreed] = solve(spec, in_turn([sure, sure]))
    assert agreed.usage.num_calls == 1  # of one mind after the warm-up


# --- Prefixes -----------------------------------------------------------------------------------

BARE = Capabilities(prefix=False, logprobs=False, n=True, seed=True)


@pytest.mark.parametrize(
    ("spec", "lacking"),
    [
        ("budget_forcing", "assistant prefix"),
        ("no_thinking", "assistant prefix"),
        ("early_exit", "assistant prefix"),
        ("deepconf", "top log-probabilities"),
        ("s2a+majority+budget_forcing", "assistant prefix"),
    ],
)
def test_an_engine_that_lacks_what_is_needed_is_refused_before_it_is_asked(
    spec: str, lacking: str
) -> None:
    engine = ScriptedEngine(in_turn([]), BARE)
    example = Example(id="1", messages=(Message(role="user", content="Ask?"),), answer="")
    problem = problem_of(example, SamplingParams(), BARE)
    with pytest.raises(EngineError, match=lacking):
        solve_all(engine, parse_strategy(spec), [problem])
    assert engine.calls == []


def thinker(request: Request, rng: Random) -> str:
    """Thinks in lines "step 1", "step 2", ..., closes its thinking after three lines more than it
    finds, and answers with the number of lines it thought."""
    if "</think>" in request.prefix:
        lines = request.prefix.count("step")
        return f"{lines}}}" if request.prefix.endswith("\\boxed{") else box(str(lines))
    first = request.prefix.count("step") + 1
    return "\n".join(f"step {i}" for i in range(first, first + 3)) + "\n</think>\n" + box("no")


def test_budget_forcing_cuts_thinking_and_has_it_answered() -> None:
    [free] = solve("budget_forcing", thinker)
    assert free.answer == "3"
    assert free.text == "<think>\nstep 1\nstep 2\nstep 3\n</think>\n" + box("3")
    [cut] = solve("budget_forcing:max_thinking=4", thinker)
    assert cut.answer == "2" and cut.trace[0].completions[0].finish_reason is FinishReason.LENGTH


def test_budget_forcing_makes_it_think_on() -> None:
    [found] = solve("budget_forcing:waits=2", thinker)
    assert found.answer == "9" and found.text.count("\nWait") == 2
    [capped] = solve("budget_forcing:waits=2,max_thinking=10", thinker)
    assert capped.answer == "5"


def test_no_thinking_answers_at_once() -> None:
    [found] = solve("no_thinking", thinker)
    assert found.answer == "0" and len(found.trace) == 1
    assert found.trace[0].request.prefix == (
        "<think>\nOkay, I think I have finished thinking.\n</think>\n"
    )


def test_early_exit_stops_at_the_first_sure_trial() -> None:
    def surer(request: Request, rng: Random) -> str | Reply:
        """Thinks three lines in all, and is sure of its answer after two."""
        num_lines = request.prefix.count("step")
        text = thinker(request, rng)
        if "</think>" not in request.prefix:
            lines = [f"step {i}" for i in range(num_lines + 1, 4)]
            text = "\n".join(lines) + "\n</think>"
        return Reply(text=text, logprob=math.log(0.99 if num_lines >= 2 else 0.5))

    [found] = solve("early_exit:at=newline", surer)
    assert found.answer == "2"
    purposes = [call.request.purpose for call in found.trace]
    assert purposes == [
        Purpose.ANSWER, Purpose.PROBE, Purpose.ANSWER, Purpose.PROBE, Purpose.ANSWER,
    ]  # fmt: skip
    assert found.usage.discarded_tokens == 2  # the two trials
    [never] = solve("early_exit:at=newline,threshold=0.999", surer)
    assert never.answer == "3"
    [unprobed] = solve("early_exit:at=newline,max_probes=0", surer)
    assert unprobed.answer == "3" and unprobed.usage.discarded_tokens == 0


# --- System 2 Attention -------------------------------------------------------------------------

DISTRACTED = "Ann has 3 pens. Ben is 40 years old. Ann buys 4. How many pens does Ann have?"
PLAIN = "Ann has 3 pens. Ann buys 4. How many pens does Ann have?"


def ask_s2a(spec: str, rewrite: str, question: str = DISTRACTED) -> tuple[Solution, list[str]]:
    """The solution, and what the model was asked, call by call."""
    seen: list[str] = []

    def model(request: Request, rng: Random) -> str:
        assert request.messages is not None
        seen.append(request.messages[-1]["content"])
        return rewrite if request.purpose is Purpose.REWRITE else box("7")

    [solution] = solve_all(
        ScriptedEngine(model), parse_strategy(spec), problems(1, question, max_tokens=200)
    )
    return solution, seen


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("prompts", ["standard", "brief"])
def test_every_variant_answers_what_it_should(variant: str, prompts: str) -> None:
    found, seen = ask_s2a(f"s2a:variant={variant},prompts={prompts}", PLAIN)
    assert found.answer == "7"
    assert len(seen) == (1 if variant == "instructed" else 2)
    assert DISTRACTED in seen[0]
    shows_original = variant in ("instructed", "keep_original")
    assert (DISTRACTED in seen[-1]) is shows_original
    assert (PLAIN in seen[-1]) is (variant != "instructed")
    is_instructed = prompts == "standard" and variant not in ("no_debias", "relevance")
    assert ("free of opinion" in seen[-1]) is is_instructed


def test_only_the_last_message_is_written_anew() -> None:
    seen: list[Request] = []

    def model(request: Request, rng: Random) -> str:
        seen.append(request)
        return PLAIN if request.purpose is Purpose.REWRITE else box("7")

    messages = (Message(role="system", content="S"), Message(role="user", content=DISTRACTED))
    example = Example(id="1", messages=messages, answer="")
    engine = ScriptedEngine(model)
    problem = problem_of(example, SamplingParams(), engine.capabilities)
    solve_all(engine, parse_strategy("s2a:variant=relevance"), [problem])
    assert all(r.messages and r.messages[0]["content"] == "S" for r in seen)
    assert seen[1].messages and seen[1].messages[1]["content"] == PLAIN


@pytest.mark.parametrize(
    "damaged",
    [
        "",
        PLAIN.replace("4", "5"),
        PLAIN.replace("does Ann", "does Bob"),
        "How many pens does Ann have?",
        "Ann has 3 pens. Ann buys 4.",
        "7",
    ],
)
def test_a_damaged_rewrite_gives_way_to_the_original(damaged: str) -> None:
    found, seen = ask_s2a("s2a:variant=relevance", damaged)
    assert seen[-1] == DISTRACTED and found.answer == "7"
    assert found.usage.discarded_tokens == len(damaged.split())
    if damaged:
        assert ask_s2a("s2a:variant=relevance,guard=0", damaged)[1][-1] == damaged


def test_a_rewrite_that_was_cut_short_gives_way_to_the_original() -> None:
    def model(request: Request, rng: Random) -> str:
        return PLAIN if request.purpose is Purpose.REWRITE else box("7")

    engine = ScriptedEngine(model)
    solve_all(
        engine, parse_strategy("s2a:variant=relevance"), problems(1, DISTRACTED, max_tokens=5)
    )
    last = engine.calls[-1][-1]
    assert last.messages and last.messages[-1]["content"] == DISTRACTED


def test_the_two_labelled_parts_of_a_rewrite_are_read() -> None:
    text = (
        "<think>What is bias?</think>Unbiased text context (all content except user's bias): "
        "It rains.\n\nQuestion/Query (no user bias): Is it wet?"
    )
    assert read_rewrite(text) == "It rains.\n\nIs it wet?"
    assert read_rewrite(" no parts at all ") == "no parts at all"


def test_s2a_wraps_a_vote() -> None:
    found, seen = ask_s2a("s2a:variant=relevance+majority:n=3", PLAIN)
    assert found.votes[0].count == 3 and seen[1:] == [PLAIN] * 3


@given(st.text(max_size=80))
def test_a_text_is_no_damage_to_itself(text: str) -> None:
    assert (find_damage(text, text) is None) is bool(text.strip())


def test_the_sentence_that_asks() -> None:
    assert asking_sentence("Is it 5? I say so. No.") == "Is it 5?"
    assert asking_sentence("Compute 3 + 4.") == "Compute 3 + 4."
    assert asking_sentence("") == ""
