"""Grading in a training step: begun while others sample, in the order of rollouts, never silent."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from forethought.cli.app import main
from forethought.evaluation.report import render_report
from forethought.evaluation.report_input import read_run_folder
from forethought.grading.jobs import Job, begin_task_grade
from forethought.grading.math import ALGEBRA, begin_grade
from forethought.grading.rewards import load_reward
from forethought.grading.watch import ENOUGH, GradeWatch
from forethought.grading.workers import Outcome
from forethought.sampling.local import LocalEngine
from forethought.schema import RlRecipe
from forethought.tasks.base import load_task
from forethought.training.rollouts import StepGrades, grade_rollouts, sample_rollouts
from forethought.types import Example, FinishReason, Grade, GradeStatus, Rollout, RolloutGroup
from tiny_runs import rl_tables, save_tiny, tiny_policy, tiny_tokenizer

ACCURACY = (load_reward("accuracy"),)


class Recorder:
    """A task that grades by length and remembers when it was asked."""

    name = "recorder"

    def __init__(self) -> None:
        self.begun: list[str] = []

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Example:
        return example(str(index), "")

    def grade(self, example: Example, completion: str) -> Grade:
        self.begun.append(completion)
        return Grade(score=len(completion) % 2, status=GradeStatus.CORRECT, extracted=completion)


def example(identity: str, answer: str) -> Example:
    return Example(id=identity, messages=({"role": "user", "content": "1 + 1"},), answer=answer)


def test_grading_begins_while_others_still_sample() -> None:
    tokenizer, task = tiny_tokenizer(), Recorder()
    engine = LocalEngine(tiny_policy(tokenizer), tokenizer, max_rows=2)
    recipe = RlRecipe.model_validate(rl_tables(Path("m"), Path("r"), group_size=8))
    examples = [example("a", ""), example("b", "")]
    grades = StepGrades(task, examples)
    groups = sample_rollouts(engine, examples, recipe, 1, grades)
    begun = list(task.begun)
    texts = [rollout.text for group in groups for rollout in group.rollouts]
    assert sorted(begun) == sorted({(i // 8, t): t for i, t in enumerate(texts)}.values())
    graded = grade_rollouts(groups, task, ACCURACY, grades)
    assert task.begun == begun  # nothing was graded twice
    assert [r.grade.extracted for g in graded for r in g.rollouts if r.grade] == texts
    assert graded == grade_rollouts(groups, task, ACCURACY)


def group_of(answer: str, texts: list[str]) -> RolloutGroup:
    rollouts = tuple(
        Rollout(
            example_id="a",
            token_ids=(1, 2),
            sampled_mask=(False, True),
            logprobs=(0.0, -1.0),
            text=text,
            finish_reason=FinishReason.EOS,
        )
        for text in texts
    )
    return RolloutGroup(example=example("a", answer), rollouts=rollouts)


class MathTask(Recorder):
    def begin_grade(self, example: Example, completion: str) -> Grade | Job:
        return begin_grade(example.answer, completion)


def test_grades_from_the_pool_come_in_the_order_of_rollouts() -> None:
    texts = [f"\\boxed{{\\max({n},a)}}" for n in (2, 1, 2, 3)] + ["\\boxed{\\max(a,2)}"]
    (group,) = grade_rollouts([group_of("\\max(a,2)", texts)], MathTask(), ACCURACY)
    assert [rollout.reward for rollout in group.rollouts] == [1.0, 0.0, 1.0, 0.0, 1.0]


def test_a_timeout_scores_0_and_is_counted_apart() -> None:
    bomb = "\\dfrac{5^{5^{5^{5^5}}}-4^{4^{4^{4^4}}}}{16}"

    class Unscreened(Recorder):
        def begin_grade(self, example: Example, completion: str) -> Grade | Job:
            def finish(outcome: Outcome) -> Grade:
                assert outcome.value is None
                return Grade(score=0.0, status=GradeStatus.TIMEOUT, seconds=outcome.seconds)

            arguments = (example.answer, completion)
            function = ALGEBRA.replace("is_same", "verdict")
            return Job(function=function, arguments=arguments, finish=finish, deadline_seconds=0.3)

    (group,) = grade_rollouts([group_of("16", [bomb])], Unscreened(), ACCURACY)
    (rollout,) = group.rollouts
    assert rollout.reward == 0.0
    assert rollout.grade is not None
    assert rollout.grade.status is GradeStatus.TIMEOUT
    assert rollout.grade.seconds < 0.8


def test_an_unreadable_reference_drops_the_problem() -> None:
    (group,) = grade_rollouts([group_of("", ["\\boxed{1}", "1"])], MathTask(), ACCURACY)
    assert [rollout.reward for rollout in group.rollouts] == [None, None]


def test_a_file_task_asks_algebra_and_knows_the_question(tmp_path: Path) -> None:
    file = tmp_path / "task.jsonl"
    rows = [
        {"question": "Simplify $\\sqrt{52}$.", "answer": "2\\sqrt{13}"},
        {"question": "Larger of a and b?", "answer": "\\max(a,b)"},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task = load_task(f"jsonl:{file}")
    root, largest = task[0], task[1]
    assert task.grade(root, "\\boxed{\\sqrt{52}}").status is GradeStatus.WRONG
    assert task.grade(root, "\\boxed{2\\sqrt{13}}").status is GradeStatus.CORRECT
    assert task.grade(largest, "\\boxed{\\max(b,a)}").status is GradeStatus.CORRECT
    assert begin_task_grade(task, largest, "\\boxed{\\max(b,a)}").result().score == 1.0


def grades(status: GradeStatus, score: float | None, count: int) -> list[Grade]:
    return [Grade(score=score, status=status)] * count


def test_warned_once_when_nothing_can_be_learned(caplog: pytest.LogCaptureFixture) -> None:
    watch = GradeWatch("jsonl:bad.jsonl")
    watch.look(grades(GradeStatus.NO_ANSWER, 0.0, ENOUGH - 1))
    assert caplog.messages == []
    watch.look(grades(GradeStatus.WRONG, 0.0, 1))
    (message,) = caplog.messages
    assert message.startswith(f"AllScoresZero: of {ENOUGH} completions of jsonl:bad.jsonl none")
    assert f"({ENOUGH - 1} no_answer, 1 wrong)" in message
    watch.look(grades(GradeStatus.WRONG, 0.0, ENOUGH), is_last=True)
    assert len(caplog.messages) == 1


def test_references_that_cannot_be_read_have_a_warning_of_their_own(
    caplog: pytest.LogCaptureFixture,
) -> None:
    GradeWatch("t").look(grades(GradeStatus.UNPARSABLE_GOLD, None, 3), is_last=True)
    (message,) = caplog.messages
    assert message.startswith("AllGoldsUnparsable: of 3 completions none could be scored")


def test_one_right_answer_is_enough_for_silence(caplog: pytest.LogCaptureFixture) -> None:
    watch = GradeWatch("t")
    watch.look([])
    watch.look(grades(GradeStatus.CORRECT, 1.0, 1))
    watch.look(grades(GradeStatus.WRONG, 0.0, 2 * ENOUGH), is_last=True)
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("answer", "name", "status"),
    [
        ("\\frac{1}{", "AllGoldsUnparsable", "unparsable_gold"),
        ("77", "AllScoresZero", "no_answer"),
    ],
)
def test_a_run_that_can_teach_nothing_says_so(
    answer: str,
    name: str,
    status: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = tmp_path / "bad.jsonl"
    data.write_text(
        "".join(json.dumps({"question": f"{n}?", "answer": answer}) + "\n" for n in range(4)),
        encoding="utf-8",
    )
    recipe = rl_tables(
        save_tiny(tmp_path / "model"), tmp_path / "run", task=f"jsonl:{data}", num_steps=1
    )
    recipe["allow_unsound_task"] = True  # or it is refused before it starts
    file = tmp_path / "recipe.toml"
    file.write_text(as_toml(recipe), encoding="utf-8")
    with caplog.at_level(logging.WARNING, logger="forethought"):
        assert main(["train", str(file)]) == 0
    assert [m.split(":")[0] for m in caplog.messages] == [name]
    run = read_run_folder(tmp_path / "run")
    fracs = {k: v[1] for k, v in run.series.items() if k.startswith("grade/")}
    assert fracs.keys() == {f"grade/{status}_frac" for status in GradeStatus}
    assert sum(fracs.values()) == pytest.approx(1.0)
    assert max(fracs, key=lambda key: fracs[key]) == f"grade/{status}_frac"
    page = render_report(run)
    assert f"{name}:" in page
    assert "grader out of time" in page
    assert "reference unreadable" in page


def as_toml(tables: dict[str, Any]) -> str:
    plain = {k: v for k, v in tables.items() if not isinstance(v, dict)}
    lines = [f"{key} = {json.dumps(value)}" for key, value in plain.items()]
    for key, table in tables.items():
        if isinstance(table, dict):
            lines += [f"[{key}]", *(f"{k} = {json.dumps(v)}" for k, v in table.items())]
    return "\n".join(lines) + "\n"
