r"""The conformance test of a task: does its grader give the right answer 1 and all else 0?

Shown to the grader are the reference answer, nothing, junk, the question itself, and answers made
to be run as code, which would each leave a marker file. Training and test split are compared.
"""

from __future__ import annotations

import re
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from forethought.errors import TaskError
from forethought.tasks.base import FAMILIES, load_task
from forethought.tasks.files import BOXED_INSTRUCTION
from forethought.types import Example, Grade, GradeStatus, Task

NUM_PROBLEMS = 10
_NUM_OF_CODE = 3  # problems that are tried before training, where each answer is a program run
_MAX_QUOTED = 40  # lines of a question
_MAX_QUOTED_FRAC = 0.25  # of problems a line of which scores: below, it is right by chance
_NUM_ATTACKED = 3  # problems whose grader is shown every payload
_JUNK = ("junk", "I do not know", "?!", "[[]]", "nan", "yes no 0 1 A B", "junk\njunk\njunk")
_EMPTY = ("", " ", "\\boxed{}", "\\boxed{ }", "<think>\\boxed{1}</think>")

_LABEL = re.compile(r"^\s*\w{1,3}[.:)]\s")  # "1. ", "A: "

# Each would make the file MARKER, if an answer were run as Python, by sympy, YAML or a shell. GOLD
# is the reference answer, for graders that look for it first.
PAYLOADS = (
    "__import__('os').system('touch MARKER')",
    "open('MARKER', 'w')",
    "[open('MARKER', 'w') for _ in [0]]",
    "(lambda: open('MARKER', 'w'))()",
    "exec(\"open('MARKER', 'w')\")",
    "[c for c in ().__class__.__base__.__subclasses__() if c.__name__ == 'FileIO'][0]"
    "('MARKER', 'w')",
    "().__class__.__base__.__subclasses__()[-1].__init__.__globals__['sys'].modules['os']"
    ".system('touch MARKER')",
    "f\"{open('MARKER', 'w')}\"",
    "GOLD if open('MARKER', 'w') else GOLD",
    "[GOLD, open('MARKER', 'w')][0]",
    "Function('f')(__import__('os').system('touch MARKER'))",
    "S(\"__import__('os').system('touch MARKER')\")",
    "sympify(\"open('MARKER', 'w')\")",
    "x**2 + lambdify(x, \"open('MARKER', 'w')\")(0)",
    "Symbol('x').__class__.__init__.__globals__['__builtins__']['open']('MARKER', 'w')",
    '!!python/object/apply:os.system ["touch MARKER"]',
    "`touch MARKER`; $(touch MARKER)",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskCheck:
    """What was found. `faults` says why a task is unsound, one sentence each; empty when sound.

    `notes` are what is worth knowing and no fault. Seconds are wall-clock time of one grade.
    """

    task: str
    num_problems: int
    num_grades: int
    num_timeouts: int
    num_errors: int
    median_seconds: float
    max_seconds: float
    faults: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def is_sound(self) -> bool:
        return not self.faults


class _Prober:
    """Grades, counts and times; a grader that raises is a fault found."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self.is_code = hasattr(task, "gold_completion")
        self.seconds: list[float] = []
        self.statuses: list[GradeStatus] = []
        self.raised: dict[str, int] = {}

    def gold_completion(self, example: Example) -> str:
        """A right completion: the boxed reference, where the task knows no better."""
        make = getattr(self._task, "gold_completion", None)
        return str(make(example)) if make is not None else _boxed(example.answer)

    def shown(self, text: str) -> list[str]:
        """An answer as a completion: boxed, and where answers are code as a block of it too."""
        fenced = [f"```python\n{text}\n```"] if self.is_code else []
        return [_boxed(text), *fenced]

    def score(self, example: Example, completion: str) -> float | None:
        """The score, None when it is unknown or the grader raises."""
        began = time.perf_counter()
        try:
            grade: Grade = self._task.grade(example, completion)
        except Exception as error:
            name = type(error).__name__
            self.raised[name] = self.raised.get(name, 0) + 1
            return None
        finally:
            self.seconds.append(time.perf_counter() - began)
        self.statuses.append(grade.status)
        return grade.score


def check_task(spec: str, *, num_problems: int = NUM_PROBLEMS, seed: int = 0) -> TaskCheck:
    """Check both splits of the task that `spec` names; a path of a data file will do.

    Raises TaskError when there is no such task.
    """
    spec = as_spec(spec)
    test = load_task(spec, split="test", size=num_problems, seed=seed)
    prober = _Prober(test)
    examples = [test[index] for index in range(len(test))]
    faults, notes = _look(prober, examples)
    if _is_whole_file(spec):
        notes.append("the file has no test split: every split is all of it, unless given holdout")
    else:
        try:
            train = load_task(spec, split="train", size=num_problems, seed=seed)
        except TaskError as error:
            notes.append(f"there is no training split: {error}")
        else:
            faults += _overlap(train, examples)
    faults += _attack(prober, examples[:_NUM_ATTACKED])
    faults += _raised(prober)
    return TaskCheck(
        task=test.name,
        num_problems=len(examples),
        num_grades=len(prober.seconds),
        num_timeouts=prober.statuses.count(GradeStatus.TIMEOUT),
        num_errors=prober.statuses.count(GradeStatus.ERROR),
        median_seconds=statistics.median(prober.seconds),
        max_seconds=max(prober.seconds),
        faults=tuple(faults),
        notes=tuple(notes),
    )


def find_faults(task: Task) -> list[str]:
    """Why the first problems of a task are not graded soundly; no payload is shown."""
    prober = _Prober(task)
    num_problems = _NUM_OF_CODE if prober.is_code else NUM_PROBLEMS
    faults, _ = _look(prober, [task[index] for index in range(min(num_problems, len(task)))])
    return faults + _raised(prober)


def refuse_unsound(task: Task, name: str) -> None:
    """Raise TaskError for a task whose rewards would teach something else than to solve it."""
    if faults := find_faults(task):
        raise TaskError(
            f"task={name} is unsound: {faults[0]}; choose another, or set allow_unsound_task = true"
        )


def all_specs() -> list[str]:
    """Every family of ours, then every family of reasoning-gym. TaskError without that package."""
    from forethought.tasks.gym import gym_families

    return [*FAMILIES, *(f"gym:{name}" for name in gym_families())]


def as_spec(text: str) -> str:
    """`data.jsonl` -> `jsonl:data.jsonl`, and so for Parquet; a spec stays as it is."""
    for kind in ("jsonl", "parquet"):
        if text.endswith(f".{kind}") and not text.startswith(("jsonl:", "parquet:")):
            return f"{kind}:{text}"
    return text


def _is_whole_file(spec: str) -> bool:
    return spec.startswith(("jsonl:", "parquet:", "code:")) and "holdout=" not in spec


def _overlap(train: Task, test: Sequence[Example]) -> list[str]:
    asked = {_question(train[index]) for index in range(len(train))}
    shared = sum(_question(example) in asked for example in test)
    text = f"{shared} of {len(test)} test problems are training problems too"
    return [text] if shared else []


def _look(prober: _Prober, examples: Sequence[Example]) -> tuple[list[str], list[str]]:
    """(faults, notes) of what the reference answers, nothing, junk and the questions score."""
    faults: list[str] = []
    notes: list[str] = []
    with_gold = [example for example in examples if example.answer]
    golds = [prober.score(example, prober.gold_completion(example)) for example in with_gold]
    if not with_gold:
        faults.append("there is no reference answer, so nothing shows that a right one scores 1")
    if wrong := [score for score in golds if score is not None and score != 1.0]:
        faults.append(
            f"the reference answer scores {wrong[0]:g} on {len(wrong)} of {len(golds)} problems"
        )
    if golds and (unknown := golds.count(None)):
        text = f"the reference answer cannot be graded on {unknown} of {len(golds)} problems"
        (faults if unknown == len(golds) else notes).append(text)
    for what, completions in (
        ("an empty answer", lambda example: _EMPTY),
        ("junk", lambda example: [c for text in _JUNK for c in prober.shown(text)]),
        ("the question itself", _restated),
    ):
        text, _ = _above_zero(prober, examples, what, completions)
        faults += [text] if text else []
    if not prober.is_code:
        text, share = _above_zero(prober, examples, "a line of the question", _quoted)
        if text:
            (faults if share > _MAX_QUOTED_FRAC else notes).append(text)
    return faults, notes


def _above_zero(
    prober: _Prober,
    examples: Sequence[Example],
    what: str,
    completions: Callable[[Example], Sequence[str]],
) -> tuple[str, float]:
    """What to say of the completions that score, "" when none does, and the share of problems."""
    highest, problems = 0.0, set()
    for example in examples:
        for completion in completions(example):
            score = prober.score(example, completion) or 0.0
            if score > 0:
                highest = max(highest, score)
                problems.add(example.id)
    text = f"{what} scores up to {highest:g} on {len(problems)} of {len(examples)} problems"
    return (text, len(problems) / len(examples)) if problems else ("", 0.0)


def _attack(prober: _Prober, examples: Sequence[Example]) -> list[str]:
    """Faults when an answer that holds code is run, or scores."""
    executed: dict[str, None] = {}
    scores: list[float] = []
    with tempfile.TemporaryDirectory(prefix="forethought-check-") as folder:
        for place, example in enumerate(examples):
            for number, payload in enumerate(PAYLOADS):
                marker = Path(folder) / f"{place}-{number}"
                text = payload.replace("MARKER", str(marker))
                text = text.replace("GOLD", example.answer or "1")
                found = [prober.score(example, shown) or 0.0 for shown in prober.shown(text)]
                if "GOLD" not in payload:  # with it, a lenient reader may find the right answer
                    scores += found
                if marker.exists():
                    executed[payload] = None
    faults = [f"the text of an answer is run: {payload}" for payload in executed]
    if count := sum(score > 0 for score in scores):
        faults.append(f"an answer made of code scores up to {max(scores):g}, {count} times")
    return faults


def _raised(prober: _Prober) -> list[str]:
    return [f"grading raises {name} ({count} times)" for name, count in prober.raised.items()]


def _restated(example: Example) -> list[str]:
    question = _question(example)
    return [question, _boxed(question)]


def _quoted(example: Example) -> list[str]:
    """Lines of the question, without their number or name, that do not hold the reference."""
    lines = _question(example).splitlines()[:_MAX_QUOTED]
    texts = {text.strip() for line in lines for text in (line, _LABEL.sub("", line))}
    return [_boxed(t) for t in sorted(texts) if t and (example.answer or t + "x") not in t]


def _question(example: Example) -> str:
    return example.messages[-1]["content"].removesuffix(BOXED_INSTRUCTION).strip()


def _boxed(text: str) -> str:
    return f"\\boxed{{{text}}}"
