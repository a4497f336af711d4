"""The benches of arms: what is kept, what is made again, and the figures over seeds."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from forethought.evaluation.metrics import mean_interval, paired_difference

BENCH = Path(__file__).resolve().parent.parent / "bench"


@pytest.fixture
def arms(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.syspath_prepend(str(BENCH))
    import arms

    monkeypatch.setattr(arms, "ROOT", tmp_path)
    return arms


def bench_of(arms: Any, made: list[str], setting: int = 1) -> Any:
    def train(arm: str, seed: int, steps: int, folder: Path) -> dict[str, Any]:
        folder.mkdir()
        (folder / "weights").write_text("many")
        made.append(f"{arm}-{seed}")
        return {"exam": {}, "steps": steps}

    return arms.Bench(
        name="demo",
        arms=("a", "b"),
        base="bundled:seedling",
        exam=arms.Exam(families=("sum",), problems=1, samples=1),
        settings_of=lambda arm, seed, steps: [setting, arm, seed, steps],
        train=train,
        summarize=dict,
    )


def test_a_result_is_kept_until_its_settings_change(arms: Any) -> None:
    made: list[str] = []
    bench = bench_of(arms, made)
    bench.folder.mkdir(parents=True)
    assert bench.read(("a", 0), 5) is None
    bench.make(("a", 0), 5)
    assert bench.read(("a", 0), 5)["steps"] == 5
    assert bench.read(("a", 1), 5) is None
    assert bench.read(("a", 0), 6) is None
    assert bench_of(arms, made, setting=2).read(("a", 0), 5) is None
    assert [path.name for path in bench.folder.iterdir()] == ["a-0.json"]  # no weights are left


def exam(greedy: list[float], sampled: list[float]) -> dict[str, Any]:
    shares = {"format": 1.0, "think": 0.5, "tokens": 10.0, "greedy_tokens": 4.0}
    return {"greedy": greedy, "sampled": sampled} | shares


def test_scores_of_a_problem_are_averaged_over_seeds_first(arms: Any) -> None:
    exams = [exam([1, 0, 1, 0], [0.5, 0, 1, 0]), exam([1, 1, 0, 0], [1.0, 0.5, 0, 0])]
    found = arms.over_seeds(exams)
    expected = mean_interval([1.0, 0.5, 0.5, 0.0])
    assert found["greedy"] == 50.0
    assert found["greedy_low"] == round(100 * max(0.0, expected.low), 1)
    assert found["greedy_seeds"] == [50.0, 50.0]
    assert found["sampled_seeds"] == [37.5, 37.5]
    assert (found["think"], found["tokens"]) == (50.0, 10.0)


def test_families_are_pooled_problem_by_problem(arms: Any) -> None:
    whole = {"sum": exam([1.0], [0.5]), "story": exam([0.0], [1.0]), "rule": exam([1.0], [1.0])}
    found = arms.pooled(whole, ("sum", "story"))
    assert (found["greedy"], found["sampled"]) == ([1.0, 0.0], [0.5, 1.0])


def test_a_difference_of_arms_pairs_problems(arms: Any) -> None:
    import bench_findings

    def run(*scores: float) -> dict[str, Any]:
        half = len(scores) // 2
        parts = (list(scores[:half]), list(scores[half:]))
        families = zip(bench_findings.TRAINED, parts, strict=True)
        return {"exam": {family: exam(part, part) for family, part in families}}

    before, after = [run(0, 0, 1, 0), run(0, 1, 1, 0)], [run(1, 1, 1, 0), run(1, 1, 1, 1)]
    found = bench_findings.difference(before, after, bench_findings.TRAINED)
    gap = paired_difference([0.0, 0.5, 1.0, 0.0], [1.0, 1.0, 1.0, 0.5])
    assert found["greedy"] == round(100 * gap.mean, 1) == 100 * fmean([1, 0.5, 0, 0.5])
    assert found["sampled_high"] == round(100 * gap.high, 1)
