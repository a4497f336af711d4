"""Whole runs of a tiny model: they learn, refuse mistakes early and can be resumed."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from forethought.cli.app import main
from forethought.config import AnyRecipe, parse_recipe
from forethought.errors import ModelError, RecipeError, RewardError, TaskError, UserError
from forethought.evaluation.report import build_report
from forethought.models.load import load_model
from forethought.models.resolve import resolve
from forethought.run import Run
from forethought.toml import to_toml
from forethought.training import pretrain, rl
from forethought.training.stages import run_stage, start_run
from tiny_runs import EVEN_REWARD, pretrain_tables, rl_tables, save_tiny, sft_tables

PATIENCE_SECONDS = 300  # a busy machine is no failure


pytestmark = pytest.mark.usefixtures("one_thread")


def train(tables: dict[str, Any]) -> list[dict[str, Any]]:
    """Run a recipe in this process; returns its metrics."""
    recipe = parse_recipe(tables)
    with start_run(recipe, ["test"]) as run:
        run_stage(recipe, run)
        return run.metrics()


def column(metrics: list[dict[str, Any]], name: str) -> list[float]:
    return [row[name] for row in metrics if name in row]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def is_same_model(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# --- learning ---


def test_sft_learns_a_small_file_by_heart(model: Path, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"What is {i} + {i}?", "completion": f"\\boxed{{{i + i}}}"} for i in range(4)
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    tables = sft_tables(model, tmp_path / "run", data=str(data), num_steps=90)
    metrics = train(tables)
    losses = column(metrics, "loss/mean")
    assert losses[0] > 4 and losses[-1] < 0.1
    assert column(metrics, "loss/perplexity")[0] == pytest.approx(math.exp(losses[0]))
    loaded = load_model(str(tmp_path / "run" / "model"))
    answers = [answer(loaded, row["prompt"]) for row in rows]
    assert answers == [row["completion"] for row in rows]


def answer(loaded: Any, question: str) -> str:
    from forethought.models.load import answer_greedily

    return answer_greedily(loaded, question, max_tokens=12)


def test_pretraining_lowers_the_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain, "_TOKENIZER_DOCUMENTS", 200)
    metrics = train(pretrain_tables(tmp_path / "run", num_steps=25))
    losses = column(metrics, "loss/mean")
    assert losses[0] == pytest.approx(math.log(300), abs=0.3)  # of random weights
    assert losses[-1] < 0.6 * losses[0]
    totals = column(metrics, "total/tokens")
    assert totals == sorted(totals) and totals[-1] >= 25 * 400
    assert all(400 <= b - a < 600 for a, b in pairwise(totals))
    assert load_model(str(tmp_path / "run" / "model")).model.config.hidden_size == 32


def test_rl_learns_what_the_users_reward_pays_for(model: Path, tmp_path: Path) -> None:
    (tmp_path / "pay.py").write_text(
        "def low(completion_ids, **kwargs):\n"
        "    return [float(ids[0] < 150) for ids in completion_ids]\n"
    )
    tables = rl_tables(
        model,
        tmp_path / "run",
        num_steps=16,
        prompts_per_step=8,
        group_size=8,
        max_tokens=2,
        max_rows=64,
        optimizer={"learning_rate": 2e-2},
        reward={"parts": {f"{tmp_path}/pay.py:low": 2.0, "format": 0.0}},
    )
    metrics = train(tables)
    rewards = column(metrics, "reward/mean")
    assert rewards[0] < 1.5 and rewards[-1] > 1.8  # of 2
    assert column(metrics, "reward/low")[-1] == pytest.approx(rewards[-1] / 2)
    assert column(metrics, "reward/format") == [0.0] * 16
    signal_fracs = column(metrics, "rollout/signal_frac")
    assert signal_fracs[0] > 0.9
    for kept, signal_frac in zip(column(metrics, "rollout/kept_frac"), signal_fracs, strict=True):
        assert kept <= signal_frac  # what dead groups hold leaves whole
    assert max(column(metrics, "policy/sampler_gap")) < 1e-3
    assert column(metrics, "total/rollouts")[-1] == 16 * 64
    # groups all alike at the end cost nothing
    learned = column(metrics, "total/learned_tokens")
    assert learned[-1] - learned[-2] < learned[0]


def test_a_reference_is_loaded_for_the_kl_penalty_and_only_then(
    model: Path, tmp_path: Path
) -> None:
    (tmp_path / "even.py").write_text(EVEN_REWARD)
    parts = {"parts": {f"{tmp_path}/even.py:even": 1.0}}
    free = train(rl_tables(model, tmp_path / "free", reward=parts))
    tied = train(rl_tables(model, tmp_path / "tied", reward=parts, kl_coefficient=100.0))
    assert column(free, "policy/kl") == []
    divergences = column(tied, "policy/kl")
    assert divergences[0] == pytest.approx(0.0, abs=1e-6)  # the first step is the reference's own
    assert divergences[1] > 1e-5
    recipe = parse_recipe(rl_tables(model, tmp_path / "x", reward=parts))
    with start_run(recipe, []) as run:
        assert isinstance(recipe, rl.RlRecipe)
        assert rl.build_learner(recipe, run).reference is None


def test_truncated_rollouts_can_be_left_out(model: Path, tmp_path: Path) -> None:
    (tmp_path / "even.py").write_text(EVEN_REWARD)
    parts = {"parts": {f"{tmp_path}/even.py:even": 1.0}}
    tables = rl_tables(model, tmp_path / "run", reward=parts, mask_truncated=True, max_tokens=2)
    metrics = train(tables)
    truncated = column(metrics, "rollout/truncated_frac")
    assert truncated[0] > 0.9  # a model of nothing hardly ever ends by itself
    for kept, cut in zip(column(metrics, "rollout/kept_frac"), truncated, strict=True):
        assert kept <= 1 - cut + 1e-9


def test_rl_measures_on_held_out_problems_and_writes_transcripts(
    model: Path, tmp_path: Path
) -> None:
    tables = rl_tables(
        model, tmp_path / "run", eval_problems=3, eval_samples=2, eval_every=3, num_steps=4
    )
    metrics = train(tables)
    assert [row["step"] for row in metrics if "eval/accuracy" in row] == [0, 3, 4]
    rows = [
        json.loads(r) for r in (tmp_path / "run" / "transcripts.jsonl").read_text().split("\n") if r
    ]
    assert [row["step"] for row in rows] == [s for s in (1, 2, 3, 4) for _ in range(4)]
    assert {"question", "answer", "completion", "reward", "status", "finish_reason"} <= rows[
        0
    ].keys()


def test_rl_measures_by_a_strategy_under_a_budget(model: Path, tmp_path: Path) -> None:
    spec = "asc:n=5,confidence=0.9"
    tables = rl_tables(
        model, tmp_path / "run", eval_problems=3, eval_every=3, eval_strategy=spec,
        eval_budget="tokens=400,calls=2",
    )  # fmt: skip
    metrics = train(tables)
    rows = [row for row in metrics if "eval/accuracy" in row]
    assert [row["step"] for row in rows] == [0, 3, 4]
    for row in rows:
        assert 1 < row["eval/completions"] <= 5
        assert row["eval/sampled_tokens"] < row["eval/total_tokens"] <= 400
        assert "eval/length_mean" not in row
    plain = train(rl_tables(model, tmp_path / "plain", eval_problems=3, eval_every=3))
    assert column(plain, "loss/policy") == column(metrics, "loss/policy")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"eval_strategy": "magic"}, "eval_strategy='magic' is wrong: .*known are greedy, sample"),
        ({"eval_strategy": "asc:k=3"}, "'k=3' is no option of strategy asc; known are n, conf"),
        ({"eval_strategy": "greedy", "eval_budget": "coins=3"}, "known are tokens, calls, seconds"),
        ({"eval_budget": 64}, "eval_budget='64' goes with eval_strategy"),
    ],
)
def test_a_wrong_way_to_measure_is_refused_before_a_model_loads(
    tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(RecipeError, match=sentence):
        train(rl_tables(tmp_path / "no model", tmp_path / "run", **changes))


@pytest.mark.usefixtures("on_cpu")
def test_one_seed_gives_one_run_and_another_seed_another(model: Path, tmp_path: Path) -> None:
    (tmp_path / "even.py").write_text(EVEN_REWARD)
    parts = {"parts": {f"{tmp_path}/even.py:even": 1.0}}
    runs = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(rl_tables(model, tmp_path / name, reward=parts, seed=seed, num_steps=2))
        runs[name] = weights(tmp_path / name)
    assert is_same_model(runs["a"], runs["b"])
    assert not is_same_model(runs["a"], runs["c"])


def test_the_run_folder_explains_itself(model: Path, tmp_path: Path) -> None:
    tables = sft_tables(model, tmp_path / "run")
    train(tables)
    folder = tmp_path / "run"
    recipe = parse_recipe(tomllib.loads((folder / "recipe.toml").read_text()))
    assert recipe == parse_recipe(tables)
    names = {path.name for path in folder.iterdir()}
    assert {"run.json", "recipe.toml", "metrics.jsonl", "checkpoints", "model"} <= names
    assert not [name for name in names if name.startswith(".tmp")]


# --- mistakes ---


class ModelWasLoaded(Exception):
    """A mistake that needs no model was found too late."""


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise ModelWasLoaded

    monkeypatch.setattr("forethought.training.learner.load_model", refuse)
    monkeypatch.setattr("forethought.training.sft.load_model", refuse)


REWARDS = {
    "raises": ("def f(completions, **k):\n    raise KeyError('x')\n", "KeyError"),
    "one short": ("def f(completions, **k):\n    return [1.0]\n", "returned 1 values"),
    "no list": ("def f(completions, **k):\n    return 1.0\n", "returned float"),
    "words": ("def f(completions, **k):\n    return ['a' for c in completions]\n", "'a'"),
    "needs more": ("def f(completions, difficulty_level):\n    return []\n", "difficulty_level"),
    "exits": ("import sys\n\n\ndef f(**k):\n    sys.exit()\n", "SystemExit"),
    "broken file": ("def f(:\n", "SyntaxError"),
    "other name": ("def g(completions):\n    return []\n", "no function 'f'"),
}


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("kind", REWARDS)
def test_a_wrong_reward_function_is_found_before_any_model_loads(kind: str, tmp_path: Path) -> None:
    code, words = REWARDS[kind]
    (tmp_path / "mine.py").write_text(code)
    parts = {"accuracy": 1.0, f"{tmp_path}/mine.py:f": 1.0}
    with pytest.raises(RewardError) as caught:
        train(rl_tables(tmp_path, tmp_path / "run", reward={"parts": parts}))
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("name", ["mean", "std"])
def test_a_reward_cannot_have_the_name_of_a_metric(name: str, tmp_path: Path) -> None:
    code = f"def {name}(completions, **k):\n    return [0] * len(completions)\n"
    (tmp_path / "a.py").write_text(code)
    with pytest.raises(RewardError, match=f"cannot be named {name}"):
        train(
            rl_tables(tmp_path, tmp_path / "run", reward={"parts": {f"{tmp_path}/a.py:{name}": 1}})
        )


@pytest.mark.usefixtures("no_model")
def test_two_rewards_of_one_name_are_found_before_any_model_loads(tmp_path: Path) -> None:
    for name in ("a.py", "b.py"):
        (tmp_path / name).write_text(
            "def f(completions, **k):\n    return [0] * len(completions)\n"
        )
    parts = {f"{tmp_path}/a.py:f": 1.0, f"{tmp_path}/b.py:f": 1.0}
    with pytest.raises(RewardError, match="two rewards are named f"):
        train(rl_tables(tmp_path, tmp_path / "run", reward={"parts": parts}))


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task": "summ"}, "did you mean sum"),
        ({"eval_task": "sum:difficulty=99"}, "difficulty=99"),
        ({"task": "jsonl:nowhere.jsonl"}, "nowhere.jsonl does not exist"),
    ],
)
def test_a_wrong_task_is_found_before_any_model_loads(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(TaskError, match=words):
        train(rl_tables(tmp_path, tmp_path / "run", **changes))


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ('{"prompt": "a", "completion": "b"}\n{"prompt": "a"', "line 2"),
        ('{"prompt": "a", "completion": 3}', "line 1"),
        ('{"prompt": [{"role": "user", "content": "a"}], "completion": "b"}', "line 1"),
        ('\n["a", "b"]', "line 2"),
        ('{"prompt": "a", "completion": "b"}\n' + "[" * 5000, "line 2"),
    ],
)
def test_a_broken_line_of_data_is_named_by_number(text: str, words: str, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text(text)
    with pytest.raises(RecipeError) as caught:
        train(sft_tables(tmp_path, tmp_path / "run", data=str(data)))
    assert words in str(caught.value) and "data.jsonl" in str(caught.value)


@pytest.mark.parametrize(
    ("mixture", "words"),
    [
        ({"families": {"poetry": 1}}, "mixture.families.poetry"),
        ({"families": {"sum": 1}, "writers": {"song": 1}}, "mixture.writers.song"),
        ({"families": {"sum": 1}, "max_difficulty": {"sum": 9}}, "max_difficulty.sum=9"),
        ({"families": {"sum": 1}, "max_difficulty": {"rule": 1}}, "add mixture.families.rule"),
    ],
)
def test_a_wrong_mixture_is_named(mixture: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=words):
        train(pretrain_tables(tmp_path / "run", mixture=mixture))


def test_documents_that_cannot_fit_the_model_are_left_out_or_refused(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrain, "_TOKENIZER_DOCUMENTS", 200)
    small = pretrain_tables(tmp_path / "a")["architecture"] | {"max_context": 8}
    with pytest.raises(RecipeError, match=r"at least \d+ tokens .* context is 8; lower"):
        train(pretrain_tables(tmp_path / "a", architecture=small))
    data = tmp_path / "data.jsonl"
    rows = [{"prompt": "a", "completion": c} for c in ("b", "7 " * 400)]
    data.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(RecipeError, match=r"\d+ tokens in document 2 .* context is 256; shorten"):
        train(sft_tables(model, tmp_path / "b", data=str(data)))


def test_completions_that_cannot_fit_the_model_are_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"max_tokens=250 .* context of 256; lower max_tokens"):
        train(rl_tables(model, tmp_path / "run", max_tokens=250))


# --- the command ---


def command(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["train", *arguments])
    out, err = capfd.readouterr()
    return code, out, err


def recipe_file(folder: Path, tables: dict[str, Any]) -> str:
    path = folder / "recipe.toml"
    path.write_text(to_toml(tables))
    return str(path)


def test_train_prints_one_object_and_a_finished_run_resumes_to_itself(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = recipe_file(tmp_path, sft_tables(model, tmp_path / "unused"))
    run_dir = tmp_path / "run"
    code, out, _ = command(capfd, path, "--set", f"run_dir={run_dir}", "--json")
    assert code == 0
    report = json.loads(out)
    assert report["run"] == str(run_dir) and report["model"] == str(run_dir / "model")
    assert report["seconds"] > 0 and report["total/documents"] == 16
    assert not (tmp_path / "unused").exists()

    before = weights(run_dir), (run_dir / "metrics.jsonl").read_bytes()
    code, out, err = command(capfd, "--resume", str(run_dir), "--json")
    assert code == 0 and "all 4 steps of this run are done" in err
    assert json.loads(out)["total/documents"] == 16
    assert is_same_model(weights(run_dir), before[0])
    assert (run_dir / "metrics.jsonl").read_bytes() == before[1]


def test_a_run_can_be_moved_and_resumed(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = recipe_file(tmp_path, sft_tables(model, tmp_path / "old"))
    assert command(capfd, path)[0] == 0
    moved = tmp_path / "it's new"
    (tmp_path / "old").rename(moved)
    code, out, _ = command(capfd, "--resume", str(moved), "--json")
    assert code == 0 and json.loads(out)["model"] == str(moved / "model")
    assert not (tmp_path / "old").exists()


def test_a_pipeline_hands_its_model_on_and_resumes(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shared = ("run_dir", "model")
    tables = {
        "stage": "pipeline",
        "run_dir": str(tmp_path / "run"),
        "model": str(model),
        "order": ["sft", "rl"],
        "sft": {k: v for k, v in sft_tables(model, tmp_path).items() if k not in shared},
        "rl": {k: v for k, v in rl_tables(model, tmp_path).items() if k not in shared},
    }
    path = recipe_file(tmp_path, tables)
    code, out, err = command(capfd, path, "--json")
    assert code == 0, err
    assert json.loads(out)["model"] == str(tmp_path / "run" / "2-rl" / "model")
    with Run.open(tmp_path / "run" / "2-rl") as inner:
        assert str(tmp_path / "run" / "1-sft" / "model") in inner.recipe_text
    assert resolve(str(tmp_path / "run")) == tmp_path / "run" / "2-rl" / "model"
    page = build_report(tmp_path / "run").read_text(encoding="utf-8")
    assert "reward" in page and (tmp_path / "run" / "report.html").exists()
    code, out, err = command(capfd, "--resume", str(tmp_path / "run"), "--json")
    assert code == 0 and "all 8 steps of this run are done" in err

    bad = tables | {"run_dir": str(tmp_path / "bad"), "rl": tables["rl"] | {"task": "summ"}}  # type: ignore[operator]
    code, _, err = command(capfd, recipe_file(tmp_path, bad))
    assert code == 2 and "did you mean sum?" in err  # before the first stage spends its time
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task": "summ"}, "did you mean sum?"),
        ({"model": "{folder}/nowhere"}, "nowhere"),
        ({"model": "{folder}"}, "config.json"),
        ({"reward": {"parts": {"{folder}/no.py:f": 1.0}}}, "no.py"),
    ],
)
def test_a_users_mistake_exits_2_with_one_line_and_leaves_nothing(
    changes: dict[str, Any],
    words: str,
    model: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    text = to_toml(rl_tables(model, tmp_path / "run") | changes)
    path = tmp_path / "recipe.toml"
    path.write_text(text.replace("{folder}", str(tmp_path)))
    code, out, err = command(capfd, str(path))
    assert code == 2 and out == ""
    assert err.startswith("error: ") and err.count("\n") == 1 and words in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give a recipe file, or --resume"),
        (["quickstart", "--resume", "x"], "but not both"),
        (["--resume", "{folder}"], "is not a run folder"),
        (["--resume", "{folder}/nowhere"], "is not a run folder"),
        (["--resume", "{folder}", "--set", "seed=1"], "cannot change a run that is resumed"),
        (["{folder}/my/quickstart.toml"], "cannot be read"),
        (["quickstart", "--set", "num_step=3"], "did you mean num_steps?"),
        (["nothing"], "nothing"),
    ],
)
def test_a_wrong_command_exits_2_with_one_line(
    arguments: list[str], words: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, out, err = command(capfd, *[a.replace("{folder}", str(tmp_path)) for a in arguments])
    assert code == 2 and out == ""
    assert err.startswith("error: ") and err.count("\n") == 1 and words in err


def test_a_run_dir_that_cannot_be_used_exits_2(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("a file, not a folder")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    path = recipe_file(tmp_path, sft_tables(model, tmp_path / "run"))
    for run_dir, words in (("file/run", "file/run"), ("full", "is not empty")):
        code, _, err = command(capfd, path, "--set", f"run_dir={tmp_path / run_dir}")
        assert code == 2 and words in err and err.count("\n") == 1
    assert (tmp_path / "full" / "thesis.txt").read_text() == "mine"
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["thesis.txt"]


def test_a_run_dir_without_permission_exits_2(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    if os.access(locked, os.W_OK):  # root may write anywhere but there
        locked = Path("/proc/self")
    path = recipe_file(tmp_path, sft_tables(model, locked / "run"))
    code, _, err = command(capfd, path)
    assert code == 2 and "cannot be written" in err


def test_a_reward_that_fails_later_keeps_the_run_to_resume(model: Path, tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text(
        "calls = []\n"
        "def f(completions, **k):\n"
        "    calls.append(1)\n"
        "    return [0.0] * (len(completions) - (len(calls) == 4))\n"
    )
    parts = {"parts": {f"{tmp_path}/late.py:f": 1.0}}
    with pytest.raises(RewardError, match="returned 15 values"):
        train(rl_tables(model, tmp_path / "run", reward=parts))
    with Run.open(tmp_path / "run") as run:
        recipe: AnyRecipe = parse_recipe(tomllib.loads(run.recipe_text))
        run_stage(recipe, run)
        assert [row["step"] for row in run.metrics()] == [1, 2, 3, 4]


def test_a_model_folder_without_weights_is_a_users_mistake(model: Path, tmp_path: Path) -> None:
    empty = save_tiny(tmp_path / "empty")
    (empty / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="has no weights"):
        train(rl_tables(empty, tmp_path / "run"))
    assert issubclass(ModelError, UserError)


def test_the_real_command_is_killed_and_resumed(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As a user does it: `python -m forethought train` dies, `--resume` ends what it began."""
    run_dir = tmp_path / "run"
    path = recipe_file(tmp_path, sft_tables(model, run_dir, num_steps=150))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    begin = [sys.executable, "-m", "forethought", "train", path, "--json"]
    with subprocess.Popen(begin, env=environment, stderr=subprocess.PIPE) as process:
        try:
            wait_for_step(run_dir, 3, process)
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL
    code, out, err = command(capfd, "--resume", str(run_dir), "--json")
    assert code == 0, err
    assert json.loads(out)["total/documents"] == 150 * 4
    with Run.open(run_dir) as run:
        assert [row["step"] for row in run.metrics()] == list(range(1, 151))


def last_step(run_dir: Path) -> int:
    path = run_dir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for_step(run_dir: Path, step: int, process: subprocess.Popen[Any]) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while last_step(run_dir) < step:
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < end, f"step {step} never came"
        time.sleep(0.01)
