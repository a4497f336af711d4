"""Evaluation with an engine that says what it is told: what is asked, graded, counted, written."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import typer
from typer.testing import CliRunner

from forethought.cli.eval import eval_command
from forethought.errors import EngineError, UserError
from forethought.evaluation.evaluate import Evaluation, compare, evaluate, ks, write_results
from forethought.types import (
    Capabilities,
    Completion,
    Example,
    FinishReason,
    Grade,
    GradeStatus,
    Request,
    Usage,
)


@dataclass
class ScriptedEngine:
    """Answers each question with its script, sample by sample; "!" at the end is cut off."""

    script: dict[str, list[str]]
    calls: list[Sequence[Request]] = field(default_factory=list)

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(prefix=True, logprobs=True, n=True, seed=True)

    def generate(
        self,
        requests: Sequence[Request],
        on_finish: Callable[[int, Completion], None] = lambda *_: None,
    ) -> list[list[Completion]]:
        self.calls.append(requests)
        found = [[self._say(text) for text in self._texts(request)] for request in requests]
        for index, siblings in enumerate(found):
            for completion in siblings:
                on_finish(index, completion)
        return found

    def _texts(self, request: Request) -> list[str]:
        assert request.messages is not None
        return self.script[request.messages[-1]["content"]][: request.params.n]

    def _say(self, text: str) -> Completion:
        cut = text.endswith("!")
        return Completion(
            prompt_ids=(1, 2),
            token_ids=tuple(range(len(text))),
            logprobs=(0.0,) * len(text),
            text=text,
            finish_reason=FinishReason.LENGTH if cut else FinishReason.EOS,
            usage=Usage(prompt_tokens=2, sampled_tokens=len(text), num_calls=1),
        )


@dataclass(frozen=True)
class EchoTask:
    """The whole completion is the answer; "?" as reference answer cannot be graded."""

    answers: dict[str, str]
    name: str = "echo"

    def __len__(self) -> int:
        return len(self.answers)

    def __getitem__(self, index: int) -> Example:
        question = list(self.answers)[index]
        message = {"role": "user", "content": question}
        return Example(id=f"id-{question}", messages=(message,), answer=self.answers[question])  # type: ignore[arg-type]

    def grade(self, example: Example, completion: str) -> Grade:
        if example.answer == "?":
            return Grade(score=None, status=GradeStatus.UNPARSABLE_GOLD)
        if not completion:
            return Grade(score=0.0, status=GradeStatus.NO_ANSWER)
        right = float(completion) == float(example.answer)
        status = GradeStatus.CORRECT if right else GradeStatus.WRONG
        return Grade(score=float(right), status=status, extracted=completion)


TASK = EchoTask({"a": "1", "b": "2"})
SCRIPT = {"a": ["1", "1.0", "7", ""], "b": ["3", "3.0", "2", "4"]}


def run(script: dict[str, list[str]], task: EchoTask = TASK, num_samples: int = 4) -> Evaluation:
    return evaluate(ScriptedEngine(script), task, num_samples=num_samples)


def test_everything_is_counted() -> None:
    found = run(SCRIPT)
    assert found.accuracy == pytest.approx((2 / 4 + 1 / 4) / 2)
    assert 0 <= found.low <= found.accuracy <= found.high <= 1
    assert found.pass_at == pytest.approx({1: 0.375, 2: (5 / 6 + 1 / 2) / 2, 4: 1.0})
    assert found.status_fracs == {"correct": 3 / 8, "no_answer": 1 / 8, "wrong": 4 / 8}
    assert found.mean_tokens == pytest.approx((5 / 4 + 6 / 4) / 2)
    assert found.usage == Usage(prompt_tokens=16, sampled_tokens=11, num_calls=8)
    assert found.results[0].extracted == ("1", "1.0", "7", None)


def test_equal_values_written_differently_vote_together() -> None:
    # a: 1 and 1.0 outvote 7. b: 3 and 3.0 outvote the right 2.
    assert run(SCRIPT).majority_at[4] == pytest.approx(0.5)
    assert run(SCRIPT).majority_at[1] == pytest.approx(run(SCRIPT).accuracy)


def test_right_and_wrong_answers_never_vote_together() -> None:
    class Moody(EchoTask):
        def grade(self, example: Example, completion: str) -> Grade:
            grade = super().grade(example, completion)
            is_first = completion == "1"
            status = GradeStatus.CORRECT if is_first else GradeStatus.WRONG
            return Grade(score=float(is_first), status=status, extracted=grade.extracted)

    found = run({"a": ["1", "1.0"]}, Moody({"a": "1"}), 2)
    assert found.majority_at[2] == 0.5


def test_one_call_and_seeds_that_depend_on_the_example_alone() -> None:
    engine = ScriptedEngine(SCRIPT)
    evaluate(engine, TASK, num_samples=4, temperature=0.5, top_p=0.9, max_tokens=7, seed=3)
    (requests,) = engine.calls
    params = requests[0].params
    assert (params.n, params.temperature, params.top_p, params.max_tokens) == (4, 0.5, 0.9, 7)
    seeds = {r.messages[-1]["content"]: r.params.seed for r in requests if r.messages}
    assert seeds["a"] != seeds["b"]
    swapped = ScriptedEngine(SCRIPT)
    evaluate(swapped, EchoTask({"b": "2", "a": "1"}), num_samples=4, seed=3)
    assert {
        r.messages[-1]["content"]: r.params.seed for r in swapped.calls[0] if r.messages
    } == seeds
    other = ScriptedEngine(SCRIPT)
    evaluate(other, TASK, num_samples=4, seed=4)
    assert other.calls[0][0].params.seed != seeds["a"]


def test_an_ungraded_problem_leaves_the_accuracy_and_is_counted() -> None:
    found = run({"a": ["1"], "b": ["2"]}, EchoTask({"a": "1", "b": "?"}), 1)
    assert (found.accuracy, found.num_problems, found.num_ungraded) == (1.0, 2, 1)
    assert found.mean_tokens == 1.0
    with pytest.raises(ValueError, match="without a score"):
        _ = found.results[1].score


def test_when_nothing_can_be_graded_the_accuracy_is_unknown() -> None:
    found = run({"a": ["1"]}, EchoTask({"a": "?"}), 1)
    assert math.isnan(found.accuracy)
    summary = found.summary()
    assert (summary["accuracy"], summary["low"], summary["pass_at"]) == (None, None, {})
    json.dumps(summary, allow_nan=False)


def test_limit_and_progress() -> None:
    seen: list[tuple[int, int]] = []
    engine = ScriptedEngine(SCRIPT)
    evaluate(engine, TASK, limit=1, progress=lambda done, total: seen.append((done, total)))
    assert len(engine.calls[0]) == 1
    assert seen == [(1, 1)]


def test_truncated_samples_are_counted() -> None:
    found = run({"a": ["?!", ""]}, EchoTask({"a": "?"}), 2)
    assert found.truncated_frac == 0.5


def test_nothing_to_evaluate_is_said() -> None:
    with pytest.raises(UserError, match="limit=0"):
        evaluate(ScriptedEngine({}), TASK, limit=0)
    with pytest.raises(UserError, match="no problems"):
        evaluate(ScriptedEngine({}), EchoTask({}))


def test_an_engine_that_returns_too_few_is_an_error() -> None:
    with pytest.raises(EngineError, match="4 completions"):
        run({"a": ["1"], "b": ["2"]})


def test_compare_pairs_by_problem_and_not_by_place() -> None:
    before = run({"a": ["1"], "b": ["3"]}, num_samples=1)
    after = run({"a": ["1"], "b": ["2"]}, EchoTask({"b": "2", "a": "1"}), 1)
    found = compare(before, after)
    assert found.mean == 0.5
    assert compare(after, before).mean == -0.5
    assert found.low < found.mean < found.high


def test_compare_needs_the_same_problems() -> None:
    one = run({"a": ["1"]}, EchoTask({"a": "1"}), 1)
    with pytest.raises(UserError, match="1 problems are in one evaluation only"):
        compare(run(SCRIPT), one)
    unknown = run({"a": ["1"]}, EchoTask({"a": "?"}), 1)
    with pytest.raises(UserError, match="no problem is graded in both"):
        compare(one, unknown)


def test_results_are_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    write_results(run(SCRIPT), path)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [row["example_id"] for row in rows] == ["id-a", "id-b"]
    assert rows[0]["statuses"] == ["correct", "correct", "wrong", "no_answer"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["results.jsonl"]
    with pytest.raises(OSError, match="missing"):
        write_results(run(SCRIPT), tmp_path / "missing" / "results.jsonl")


def test_ks_are_powers_of_two_and_the_number_itself() -> None:
    assert [ks(n) for n in (1, 2, 6, 8)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]


# --- The command --------------------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> typer.Typer:
    """The command on TASK, where the model "good" is right and every other model is wrong."""

    def fake_module(name: str, **members: object) -> None:
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)

    def engine(model: str, tokenizer: object) -> ScriptedEngine:
        answers = {"a": ["1"] * 4, "b": ["2"] * 4}
        return ScriptedEngine(answers if model == "good" else {"a": ["9"] * 4, "b": ["9"] * 4})

    fake_module("forethought.tasks.base", load_task=lambda spec, split, size: TASK)
    fake_module(
        "forethought.models.load",
        load_model=lambda spec: SimpleNamespace(model=spec, tokenizer=None),
    )
    fake_module("forethought.models.resolve", resolve=lambda spec: spec)
    fake_module("forethought.sampling.local", LocalEngine=engine)
    app = typer.Typer()
    app.command()(eval_command)
    return app


def call(app: typer.Typer, *arguments: str) -> str:
    result = CliRunner().invoke(
        app, ["--model", "good", "--task", "echo", *arguments], catch_exceptions=False
    )
    assert result.exit_code == 0
    return result.stdout


def test_json_is_one_object_with_every_figure(command: typer.Typer) -> None:
    found = json.loads(call(command, "--json", "--samples", "4"))
    assert (found["model"], found["task"], found["split"]) == ("good", "echo", "test")
    assert (found["accuracy"], found["high"], found["num_problems"]) == (1.0, 1.0, 2)
    assert 0 < found["low"] < 1
    assert found["mean_tokens"] == 1.0
    assert found["pass_at"] == found["majority_at"] == {"1": 1.0, "2": 1.0, "4": 1.0}
    assert found["temperature"] == 1.0


def test_one_sample_is_greedy(command: typer.Typer) -> None:
    assert json.loads(call(command, "--json"))["temperature"] == 0.0


def test_against_is_paired(command: typer.Typer) -> None:
    found = json.loads(call(command, "--json", "--against", "poor"))
    assert found["against"]["accuracy"] == 0.0
    assert found["difference"]["mean"] == 1.0


def test_the_table_is_readable(command: typer.Typer) -> None:
    shown = call(command, "--against", "poor", "--samples", "4")
    for text in ("accuracy", "100.0%", "majority@4", "poor", "+100.0 points"):
        assert text in shown


def test_progress_counts_completions(command: typer.Typer) -> None:
    result = CliRunner().invoke(command, ["--model", "good", "--task", "echo", "--samples", "4"])
    assert "eval good 8/8" in result.stderr


def test_out_holds_the_results_and_is_not_overwritten(command: typer.Typer, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    call(command, "--json", "--against", "poor", "--out", str(out))
    assert json.loads((out / "summary.json").read_text())["accuracy"] == 1.0
    assert len((out / "results.jsonl").read_text().splitlines()) == 2
    assert len((out / "against-results.jsonl").read_text().splitlines()) == 2
    with pytest.raises(UserError, match=r"already holds results.jsonl"):
        call(command, "--out", str(out))
    call(command, "--out", str(out), "--force")
    assert {entry.name for entry in out.iterdir()} == {"results.jsonl", "summary.json"}


def test_a_model_that_fails_leaves_no_folder(
    command: typer.Typer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise EngineError("its logits are not finite")

    monkeypatch.setattr("forethought.cli.eval._evaluate", fail)
    with pytest.raises(EngineError):
        call(command, "--out", str(tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_mistakes_are_said_before_any_sampling(command: typer.Typer, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        call(command, "--out", str(tmp_path / "file" / "sub"))
    with pytest.raises(UserError, match="--temperature 0 would draw one answer 4 times"):
        call(command, "--samples", "4", "--temperature", "0")
    with pytest.raises(UserError, match="--top-p"):
        call(command, "--top-p", "0")
