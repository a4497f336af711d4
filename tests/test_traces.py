"""Training text: the shape of documents, flaws of the wanted kinds, and no test problem in it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from forethought.config import load_recipe
from forethought.grading.answers import extract_answer
from forethought.schema import PretrainRecipe
from forethought.tasks.base import FAMILIES
from forethought.tasks.problems import Arithmetic, is_test_key
from forethought.tasks.traces import (
    PERFECT,
    WRITERS,
    Document,
    Mixture,
    TraceQuality,
    direct,
    draw_document,
    worked,
)
from forethought.training.text import build_mixture
from question_reader import read

SEEDLING = Path(__file__).resolve().parent.parent / "recipes" / "seedling-pretrain.toml"
REWRITE = "Rewrite without what is irrelevant: "


def everything(quality: TraceQuality = PERFECT, **writers: float) -> Mixture:
    return Mixture(
        families=dict.fromkeys(FAMILIES, 1.0),
        writers=writers or dict.fromkeys(WRITERS, 1.0),
        max_difficulty={},
        quality=quality,
    )


def documents(mixture: Mixture, count: int) -> list[Document]:
    rng = Random("documents")
    return [draw_document(mixture, FAMILIES, rng) for _ in range(count)]


def test_no_test_problem_is_in_the_text_that_the_bundled_model_learns_from() -> None:
    """Read back from the text itself, 20 000 documents of the real mixture."""
    recipe = load_recipe(SEEDLING)
    assert isinstance(recipe, PretrainRecipe)
    families = set()
    for document in documents(build_mixture(recipe.mixture), 20_000):
        problem = read(document.prompt.removeprefix(REWRITE))
        assert not is_test_key(problem.key), document.prompt
        families.add(problem.family)
        if document.prompt.startswith(REWRITE):
            assert read(document.completion) == problem
    assert families == set(recipe.mixture.families) and len(families) >= 4


def test_a_document_is_a_pure_function_of_the_random_stream() -> None:
    assert documents(everything(), 50) == documents(everything(), 50)


def test_flawless_text_is_right() -> None:
    for document in documents(everything(trace=1.0, direct=1.0, distracted=1.0), 600):
        problem = read(document.prompt)
        answer = extract_answer(document.completion).answer
        assert answer is not None
        check = FAMILIES[problem.family].check
        assert check(problem.content, answer) if check else answer == str(problem.answer)


def test_a_trace_is_one_right_step_a_line_inside_the_think_block() -> None:
    for name in ("sum", "story", "equation", "rule"):
        family = FAMILIES[name]
        content = family.draw(Random(3), family.max_difficulty)
        lines = worked(family, content, Random(0), PERFECT).split("\n")
        assert lines[0] == "<think>" and lines[-2] == "</think>"
        assert lines[-1] == direct(family, content, Random(0), PERFECT)
        for line in lines[1:-2]:
            found = re.fullmatch(r"(\d+) ([-+*/]) (\d+) = (\d+)", line)
            assert found is not None
            a, b, c = int(found[1]), int(found[3]), int(found[4])
            assert {"+": a + b == c, "-": a - b == c, "*": a * b == c, "/": b * c == a}[found[2]]


def test_countdown_traces_write_their_misses_down_before_the_hit() -> None:
    family = FAMILIES["countdown"]
    missed = 0
    for seed in range(50):
        content = family.draw(Random(seed), 3)
        steps = family.work(content, Arithmetic()).steps
        for step in steps:
            expression, _, result = step.partition(" = ")
            value = sum(int(t.replace(" ", "")) for t in re.findall(r"(?:[-+] )?\d+", expression))
            assert result == f"{value} " + ("yes" if value == content[0] else "no")
        assert [s.endswith("yes") for s in steps] == [False] * (len(steps) - 1) + [True]
        missed += len(steps) > 1
    assert missed > 25


def share_right(quality: TraceQuality, family_name: str = "sum", count: int = 400) -> float:
    family = FAMILIES[family_name]
    right = 0
    for seed in range(count):
        content = family.draw(Random(seed), 4)
        answer = extract_answer(worked(family, content, Random(seed), quality)).answer
        right += answer == family.work(content, Arithmetic()).answer
    return right / count


def quality(**flaws: float) -> TraceQuality:
    return replace(PERFECT, **flaws)


@pytest.mark.parametrize(
    ("flaws", "low", "high"),
    [
        (quality(), 1.0, 1.0),
        (quality(skip_steps=1.0), 1.0, 1.0),  # a line is left out, the answer stays
        (quality(verbose=1.0), 1.0, 1.0),
        (quality(slip_rate=0.12), 0.5, 0.75),  # 0.88 ** 4 = 0.6
        (quality(slip_rate=1.0), 0.0, 0.4),
        (quality(early_stop=1.0), 0.0, 0.1),
        (quality(early_stop=0.5), 0.4, 0.6),
    ],
)
def test_each_flaw_spoils_as_many_answers_as_it_says(
    flaws: TraceQuality, low: float, high: float
) -> None:
    assert low <= share_right(flaws) <= high


def test_hasty_answers_leave_the_last_step_out() -> None:
    family = FAMILIES["sum"]
    hasty = 0
    for seed in range(400):
        content = family.draw(Random(seed), 3)
        answer = extract_answer(direct(family, content, Random(seed), quality(hasty=0.7))).answer
        assert answer in (str(sum(content)), str(sum(content[:-1])))
        hasty += answer == str(sum(content[:-1]))
    assert 0.64 < hasty / 400 < 0.76


def test_skipped_steps_and_wordy_traces_differ_in_length_only() -> None:
    family = FAMILIES["sum"]
    content = family.draw(Random(1), 4)
    lines = {
        name: worked(family, content, Random(0), q).count("\n")
        for name, q in (
            ("plain", quality()),
            ("skipped", quality(skip_steps=1.0)),
            ("wordy", quality(verbose=1.0)),
        )
    }
    assert lines["skipped"] == lines["plain"] - 1
    assert lines["wordy"] == lines["plain"] + 1


def test_arithmetic_slips_never_write_a_negative_number() -> None:
    arithmetic = Arithmetic(Random(0), slip_rate=1.0)
    results = [arithmetic.apply(a, "+", 1) for a in range(300)]
    assert min(results) >= 0
    assert all(result != a + 1 for a, result in enumerate(results) if a > 10)


def test_weights_choose_families_and_writers() -> None:
    mixture = Mixture(
        families={"sum": 3.0, "rule": 1.0},
        writers={"direct": 1.0},
        max_difficulty={"sum": 1},
        quality=PERFECT,
    )
    found = documents(mixture, 1000)
    problems = [read(d.prompt) for d in found]
    assert 0.68 < sum(p.family == "sum" for p in problems) / 1000 < 0.82
    assert all(len(p.content) == 2 for p in problems if p.family == "sum")
    assert all(d.completion.startswith("\\boxed{") for d in found)
