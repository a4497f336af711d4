"""The run folder: whole or absent at every moment, and one sentence for whatever is in its way."""

from __future__ import annotations

import errno
import json
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forethought import durable
from forethought.checkpoints import Keep, outdated
from forethought.errors import RecipeError, TrainingStopped
from forethought.run import Run

RECIPE = 'stage = "rl"\nseed = 7\n'


def start(folder: Path, **options: Any) -> Run:
    return Run.create(
        folder, stage="rl", recipe_text=RECIPE, seed=7, command=["forethought", "train"], **options
    )


def put(text: str) -> Any:
    return lambda folder: (folder / "state.bin").write_text(text)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    with start(tmp_path / "runs" / "one") as run:
        yield run


def test_a_new_run_says_what_it_is(run: Run) -> None:
    info = json.loads((run.folder / "run.json").read_text())
    assert (info["stage"], info["seed"], info["name"]) == ("rl", 7, "one")
    assert info["versions"]["torch"] and info["machine"]["num_cores"] >= 1
    assert (run.folder / "recipe.toml").read_text() == RECIPE == run.recipe_text


def test_create_accepts_an_empty_folder_and_refuses_a_used_one(tmp_path: Path) -> None:
    start(tmp_path).close()
    with pytest.raises(RecipeError, match=r"already holds a run: continue it with --resume"):
        start(tmp_path)


def test_create_leaves_a_folder_of_other_things_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("dear")
    with pytest.raises(RecipeError, match="is not empty and holds no run"):
        start(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_create_in_a_place_that_cannot_hold_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError, match=r"run_dir '.*file/run' cannot be written \(not a dir"):
        start(tmp_path / "file" / "run")


def test_create_on_a_full_disk_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", fail_with(errno.ENOSPC))
    with pytest.raises(RecipeError, match="the disk is full"):
        start(tmp_path / "new" / "deep")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecipeError, match="the disk is full"):
        start(tmp_path / "empty")
    assert list((tmp_path / "empty").iterdir()) == []


def fail_with(number: int) -> Any:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def test_open_refuses_what_is_no_run(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(RecipeError, match="is not a run folder"):
            Run.open(folder)
    (tmp_path / "run.json").write_text('{"format": 1')
    with pytest.raises(RecipeError, match="is damaged"):
        Run.open(tmp_path)
    (tmp_path / "run.json").write_bytes(b'{"format": "\xff"}')
    with pytest.raises(RecipeError, match="is damaged"):
        Run.open(tmp_path)
    (tmp_path / "run.json").write_text('{"format": 99}')
    with pytest.raises(RecipeError, match="has format 99"):
        Run.open(tmp_path)


def test_open_restores_the_recipe_and_sweeps_leftovers(tmp_path: Path) -> None:
    start(tmp_path).close()
    (tmp_path / "recipe.toml").unlink()
    (tmp_path / "checkpoints" / ".tmp-step_000003").mkdir(parents=True)
    (tmp_path / ".tmp-99-metrics.jsonl").write_text("half")
    with Run.open(tmp_path) as run:
        assert run.recipe_text == RECIPE
    assert (tmp_path / "recipe.toml").read_text() == RECIPE
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".tmp-")]


def test_only_one_process_writes_a_run(run: Run) -> None:
    code = "import sys; from forethought.run import Run; Run.open(sys.argv[1])"
    other = subprocess.run(
        [sys.executable, "-c", code, str(run.folder)], capture_output=True, text=True
    )
    assert f"is being written by process {os.getpid()}" in other.stderr
    run.close()
    assert subprocess.run([sys.executable, "-c", code, str(run.folder)]).returncode == 0


def test_metrics_that_are_not_finite_become_null(run: Run) -> None:
    run.log(1, {"reward/mean": 0.5, "optim/loss": math.nan, "policy/kl": math.inf, "note": "a"})
    assert run.metrics() == [
        {"step": 1, "reward/mean": 0.5, "optim/loss": None, "policy/kl": None, "note": "a"}
    ]


def test_truncate_takes_back_later_steps_and_a_torn_line(run: Run) -> None:
    for step in (1, 2, 3):
        run.log(step, {"x": 0.1 * step})
        run.transcript(step, [{"text": "a\nb", "parts": {"format": math.nan}}])
        run.examples(step, {"a": 0.25, "b": None})
        run.save_checkpoint(step, put(str(step)))
    before = (run.folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "x"')
    assert [row["step"] for row in run.metrics()] == [1, 2, 3]
    run.truncate_metrics(2)
    assert (run.folder / "metrics.jsonl").read_bytes() == b"".join(before[:2])
    transcripts = durable.read_lines(run.folder / "transcripts.jsonl")
    examples = durable.read_lines(run.folder / "examples.jsonl")
    assert examples[-1] == {"step": 2, "ids": ["a", "b"], "accuracies": [0.25, None]}
    assert transcripts[-1] == {"step": 2, "text": "a\nb", "parts": {"format": None}}
    assert (run.latest_checkpoint() or (0,))[0] == 2


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 9), st.floats(allow_nan=False, allow_infinity=False))))
def test_rows_come_back_exactly(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, float]]
) -> None:
    path = tmp_path_factory.mktemp("rows") / "metrics.jsonl"
    written = [{"step": step, "value": value} for step, value in rows]
    durable.append_lines(path, written)
    assert durable.read_lines(path) == written
    durable.keep_lines_until(path, 4)
    assert durable.read_lines(path) == [row for row in written if row["step"] <= 4]


def test_a_failed_append_leaves_no_half_line(run: Run) -> None:
    run.log(1, {"x": 1})
    before = (run.folder / "metrics.jsonl").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, limits[1]))  # as a disk fills up
    try:
        with pytest.raises(TrainingStopped, match="continue with --resume"):
            run.log(2, {"x": "y" * 100})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (run.folder / "metrics.jsonl").read_bytes() == before


def test_checkpoints_keep_the_last_two(run: Run) -> None:
    assert run.latest_checkpoint() is None
    for step in (5, 10, 15):
        path = run.save_checkpoint(step, put(f"state {step}"))
    assert path == run.folder / "checkpoints" / "step_000015"
    assert (path / "state.bin").read_text() == "state 15"
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["step_000010", "step_000015"]
    assert run.latest_checkpoint() == (15, path)


@pytest.mark.parametrize(("keep", "kept"), [
    ("keep_checkpoints = 1", [20]),
    ("keep_checkpoints = 3", [12, 16, 20]),
    ("keep_every = 8", [8, 16, 20]),
    ("keep_checkpoints = 1\nkeep_every = 12", [12, 20]),
])  # fmt: skip
def test_a_recipe_says_which_checkpoints_stay(tmp_path: Path, keep: str, kept: list[int]) -> None:
    with Run.create(tmp_path, stage="rl", recipe_text=keep, seed=7, command=[]) as run:
        for step in (4, 8, 12):
            run.save_checkpoint(step, put("state"))
    with Run.open(tmp_path) as run:  # a resumed run has not forgotten it
        for step in (16, 20):
            run.save_checkpoint(step, put("state"))
    names = sorted(entry.name for entry in (tmp_path / "checkpoints").iterdir())
    assert names == [f"step_{step:06d}" for step in kept]


@given(
    st.lists(st.integers(1, 60), unique=True, min_size=1).map(sorted),
    st.builds(Keep, st.integers(1, 4), st.none() | st.integers(1, 9)),
)
def test_what_is_outdated_is_old_and_no_milestone(steps: list[int], keep: Keep) -> None:
    gone = outdated(steps, keep)
    stay = [step for step in steps if step not in gone]
    assert steps[-1] in stay
    assert stay[-keep.newest :] == steps[-keep.newest :]
    assert all(step % keep.every for step in gone if keep.every)
    assert all(step % keep.every == 0 for step in stay[: -keep.newest] if keep.every)
    assert keep.every or len(stay) <= keep.newest


def test_what_a_death_kept_from_going_goes_when_the_run_is_resumed(run: Run) -> None:
    for step in (1, 2):
        run.save_checkpoint(step, put("good"))
    shutil.copytree(run.folder / "checkpoints" / "step_000001", run.folder / "extra")
    run.save_checkpoint(3, put("good"))
    (run.folder / "extra").rename(run.folder / "checkpoints" / "step_000001")
    run.truncate_metrics(3)
    names = sorted(entry.name for entry in (run.folder / "checkpoints").iterdir())
    assert names == ["step_000002", "step_000003"]


def damage_checkpoint(folder: Path, damage: str) -> None:
    state, manifest = folder / "state.bin", folder / "manifest.json"
    match damage:
        case "shorten":
            state.write_text("goo")
        case "empty":
            state.write_text("")
        case "flip":
            state.write_text("goof")
        case "remove":
            state.unlink()
        case "file is a folder":
            state.unlink()
            state.mkdir()
        case "no manifest":
            manifest.unlink()
        case "torn manifest":
            manifest.write_text('{"files"')
        case "empty manifest":
            manifest.write_text("")
        case "odd manifest":
            manifest.write_text('{"files": {"state.bin": 4}}')
        case "nothing in it":
            shutil.rmtree(folder)
            folder.mkdir()
        case "not renamed":
            folder.rename(folder.with_name(".tmp-" + folder.name))
        case "is a file":
            shutil.rmtree(folder)
            folder.write_text("")


@pytest.mark.parametrize("damage", [
    "shorten", "empty", "flip", "remove", "file is a folder", "no manifest", "torn manifest",
    "empty manifest", "odd manifest", "nothing in it", "not renamed", "is a file",
])  # fmt: skip
def test_a_damaged_checkpoint_is_passed_over(
    run: Run, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = run.save_checkpoint(1, put("good")), run.save_checkpoint(2, put("good"))
    damage_checkpoint(second, damage)
    assert run.latest_checkpoint() == (1, first)
    run.truncate_metrics(1)
    if damage != "not renamed":
        assert caplog.messages == ["the checkpoint of step 2 is damaged: it is left out"]
    run.save_checkpoint(2, put("again"))
    assert run.latest_checkpoint() == (2, second)
    assert sorted((run.folder / "checkpoints").iterdir()) == [first, second]


@settings(max_examples=150)
@given(data=st.data())
def test_no_flipped_bit_goes_unnoticed(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("sealed")
    (folder / "deep").mkdir()
    (folder / "deep" / "a.bin").write_bytes(b"weights")
    (folder / "b.json").write_text('{"step": 3}')
    durable.seal(folder)
    assert durable.is_sealed(folder)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    path = data.draw(st.sampled_from(files))
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    assert not durable.is_sealed(folder)


def test_a_checkpoint_that_cannot_be_read_is_not_thrown_away(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = run.save_checkpoint(1, put("good"))
    for number in (errno.EACCES, errno.EIO):
        with monkeypatch.context() as m, pytest.raises(RecipeError) as caught:
            m.setattr(durable, "_matches", fail_with(number))
            run.latest_checkpoint()
        assert "cannot be read" in str(caught.value) and "restore access" in str(caught.value)
    assert run.latest_checkpoint() == (1, kept)


def test_a_checkpoint_that_fails_leaves_the_last_one(run: Run) -> None:
    kept = run.save_checkpoint(1, put("good"))

    def fill_the_disk(folder: Path) -> None:
        (folder / "half.bin").write_text("half")
        fail_with(errno.ENOSPC)()

    with pytest.raises(TrainingStopped, match=r"checkpoint of step 2 .*\(the disk is full\)"):
        run.save_checkpoint(2, fill_the_disk)
    assert list((run.folder / "checkpoints").iterdir()) == [kept]

    def fail_in_a_library(folder: Path) -> None:
        raise RuntimeError("I/O error: No space left on device (os error 28)")

    with pytest.raises(TrainingStopped, match="the disk is full") as caught:
        run.save_checkpoint(2, fail_in_a_library)
    assert isinstance(caught.value.__cause__, OSError)
    with pytest.raises(ZeroDivisionError):
        run.save_checkpoint(2, lambda folder: print(1 / 0))
    assert list((run.folder / "checkpoints").iterdir()) == [kept]


def test_write_json_is_atomic(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    path = run.write_json("result.json", {"accuracy": 0.5})
    with pytest.raises(TrainingStopped), monkeypatch.context() as m:
        m.setattr(os, "fsync", fail_with(errno.ENOSPC))
        run.write_json("result.json", {"accuracy": 0.9})
    assert json.loads(path.read_text()) == {"accuracy": 0.5}
    assert not list(run.folder.glob(".tmp-*"))


WRITER = """
import sys
from pathlib import Path
from forethought.run import Run

run = Run.open(sys.argv[1])
found = run.latest_checkpoint()
step = found[0] if found else 0
if found:
    assert (found[1] / "a.bin").read_text() == (found[1] / "b.bin").read_text() == str(step) * 9999
run.truncate_metrics(step)
assert [row["step"] for row in run.metrics()] == list(range(1, step + 1))
print("ready", step, flush=True)

def write(folder):
    for name in ("a.bin", "b.bin"):
        (folder / name).write_text(str(step) * 9999)

while True:
    step += 1
    run.log(step, {"x": step})
    run.save_checkpoint(step, write)
"""


def test_kill_9_at_any_moment_leaves_a_run_that_resumes(tmp_path: Path) -> None:
    start(tmp_path).close()
    reached = []
    for strike in range(6):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        word, step = (writer.stdout.readline() or "failed -1").split()
        time.sleep(random.uniform(0.0, 0.15) + 0.05 * (strike == 0))
        os.kill(writer.pid, signal.SIGKILL)
        writer.communicate()
        assert word == "ready", f"strike {strike} left a run that does not resume"
        reached.append(int(step))
    assert reached == sorted(reached) and reached[-1] > 0
