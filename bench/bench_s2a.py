"""System 2 Attention where irrelevant sentences do harm: against plain, and against the oracle.

    python bench/bench_s2a.py --jobs 2                (parts.py says what else it takes)

The subject is the bundled model, fine-tuned for some minutes on two things apart: working out clean
problems of a family, and rewriting problems with up to four irrelevant sentences without them. It
has not learned to work out a problem past such sentences. It has seen the prompts of the variants
`instructed` and `keep_original`, on clean problems. Part FAMILY-SEED, of seeds 0 to 2, trains a
subject of its own and measures it on 500 held-out problems with three irrelevant sentences, stories
also with one and with two. Part quickstart-SEED is of the model of the quickstart recipe, which has
seen such sentences in pretraining. The oracle answers the problem without them. Writes
docs/results/s2a.json.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from bench_strategies import average, measure, table, trained_model
from forethought.models.load import load_model
from forethought.sampling.local import LocalEngine
from forethought.strategies.system2_attention import PROMPTS
from forethought.tasks.base import FAMILIES, load_task
from forethought.tasks.traces import PERFECT, worked
from forethought.types import Example, Grade, Message, Task
from parts import Raw, run_parts
from record import write_result

PARTS = Path(__file__).resolve().parent.parent / "runs" / "bench-s2a"
SEEDS, PROBLEMS = range(3), 500
STEPS = {"story": 400, "sum": 300, "equation": 200, "rule": 200}
SUBJECTS = (*STEPS, "quickstart")
TOP_DIFFICULTY = {"story": 4, "sum": 4, "equation": 3, "rule": 2}  # of the documents
NUM_SENTENCES = {"story": (1, 2, 3)}
DOCUMENTS_PER_STEP, MAX_SENTENCES = 32, 4
PROMPT = PROMPTS["brief"]
KINDS = {"plain": 0.35, "rewrite": 0.45, "instructed": 0.1, "both": 0.1}
STRATEGIES = {
    "plain": "sample",
    "s2a": "s2a:prompts=brief,variant=relevance",
    "s2a_unguarded": "s2a:prompts=brief,variant=relevance,guard=0",
    "instructed": "s2a:prompts=brief,variant=instructed",
    "keep_original": "s2a:prompts=brief,variant=keep_original",
}


class Oracle:
    """The task with its irrelevant sentences already gone."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self.name = f"{task.name} without the irrelevant sentences"

    def __len__(self) -> int:
        return len(self._task)

    def __getitem__(self, index: int) -> Example:
        example = self._task[index]
        message = Message(role="user", content=example.meta["plain"])
        return replace(example, messages=(message,))

    def grade(self, example: Example, completion: str) -> Grade:
        return self._task.grade(example, completion)


def document(name: str, rng: Random) -> dict[str, str]:
    """One training document of the family; its problem is never a test problem."""
    family = FAMILIES[name]
    content = family.draw_in_split(rng, rng.randint(1, TOP_DIFFICULTY[name]), test=False)
    question, plain = family.ask(content, rng, rng.randint(0, MAX_SENTENCES))
    [kind] = rng.choices(list(KINDS), list(KINDS.values()))
    if kind == "rewrite":
        return {"prompt": PROMPT.relevance.replace("{text}", question), "completion": plain}
    prompts = {
        "plain": plain,
        "instructed": PROMPT.instructed.replace("{text}", plain),
        "both": PROMPT.both.replace("{original}", plain).replace("{question}", plain),
    }
    return {"prompt": prompts[kind], "completion": worked(family, content, rng, PERFECT)}


def trained_subject(family: str, seed: int) -> str:
    """The folder of the subject, trained once."""
    folder = PARTS / f"subject-{family}-{seed}"
    if not (folder / "run" / "model").exists():
        folder.mkdir(parents=True, exist_ok=True)
        rng = Random(f"s2a/{seed}")
        count = STEPS[family] * DOCUMENTS_PER_STEP
        lines = [json.dumps(document(family, rng)) + "\n" for _ in range(count)]
        (folder / "documents.jsonl").write_text("".join(lines), encoding="utf-8")
        (folder / "recipe.toml").write_text(recipe(folder, family, seed), encoding="utf-8")
        command = [sys.executable, "-m", "forethought", "train", str(folder / "recipe.toml")]
        subprocess.run(command, check=True)
    return str(folder / "run" / "model")


def recipe(folder: Path, family: str, seed: int) -> str:
    return f"""
stage = "sft"
run_dir = "{folder / "run"}"
seed = {seed}
model = "bundled:seedling"
data = "{folder / "documents.jsonl"}"
num_steps = {STEPS[family]}
traces_per_step = {DOCUMENTS_PER_STEP}
dtype = "float32"
checkpoint_every = {STEPS[family]}

[optimizer]
learning_rate = 2e-3
muon_learning_rate = 0.01
warmup_steps = 20
schedule = "linear"
"""


def run_part(part: str) -> Raw:
    subject, seed = part.split("-")[0], int(part.split("-")[1])
    is_ours = subject in STEPS
    family = subject if is_ours else "story"
    model = trained_subject(family, seed) if is_ours else trained_model()
    loaded = load_model(model, dtype="float32")
    engine = LocalEngine(loaded.model, loaded.tokenizer)
    found = {}
    for count in NUM_SENTENCES.get(family, (3,)):
        task = load_task(f"{family}:distract={count}", size=PROBLEMS)
        cells = measure(engine, task, STRATEGIES, seed)
        cells |= measure(engine, Oracle(task), {"oracle": "sample"}, seed)
        found[f"distract_{count}"] = table(cells, "plain")
    return found


def write(parts: dict[str, Raw]) -> None:
    summary: dict[str, Any] = {}
    for subject in SUBJECTS:
        group = [raw for part, raw in parts.items() if part.startswith(f"{subject}-")]
        for name in group[0] if group else ():
            rows = average([raw[name] for raw in group])
            below = round(rows["oracle"]["accuracy"] - rows["s2a"]["accuracy"], 2)
            found = rows | {"below_oracle": below, "num_seeds": len(group)}
            summary.setdefault(subject, {})[name] = found
    write_result(
        "s2a",
        command="python bench/bench_s2a.py --jobs 2",
        seeds=list(SEEDS),
        raw=parts,
        summary=summary,
    )


if __name__ == "__main__":
    every = [f"{subject}-{seed}" for subject in SUBJECTS for seed in SEEDS]
    run_parts(__file__, PARTS, every, run_part, write, first=trained_model)
