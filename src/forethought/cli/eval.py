"""`forethought eval`: accuracy, pass@k, majority@k and length of a model on a task."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from forethought.cli.backend import (
    DEFAULT_CONCURRENCY,
    ApiKeyEnv,
    Backend,
    Concurrency,
    Source,
    open_engine,
)
from forethought.cli.console import Progress, console, format_seconds, note, print_json
from forethought.errors import UserError

if TYPE_CHECKING:
    from forethought.evaluation.evaluate import Evaluation
    from forethought.types import Capabilities, Completion, Engine, Request, Task


def eval_command(
    model: Annotated[str, typer.Option(help="Model folder, hub id, bundled:NAME or a name.")],
    task: Annotated[str, typer.Option(help="NAME[:key=value,...] or jsonl:PATH.")],
    split: Annotated[str, typer.Option(help="test or train.")] = "test",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N problems.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Completions a problem.")] = 1,
    temperature: Annotated[
        float | None, typer.Option(min=0.0, help="0 is greedy. [default: 0 for one sample, else 1]")
    ] = None,
    top_p: Annotated[float, typer.Option(help="Sample from the smallest set this likely.")] = 1.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest completion, in tokens.")] = 256,
    seed: Annotated[int, typer.Option(min=0, help="Fixes every draw.")] = 0,
    against: Annotated[str | None, typer.Option(help="A second model, paired by problem.")] = None,
    strategy: Annotated[
        list[str] | None, typer.Option(help="A strategy to measure; give several to compare.")
    ] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(help="With --strategy, a problem: 256,1024 tokens, or calls=4,8."),
    ] = None,
    prices: Annotated[
        Path | None, typer.Option(help="With --strategy: TOML table of prices of tokens.")
    ] = None,
    backend: Backend = None,
    api_key_env: ApiKeyEnv = None,
    concurrency: Concurrency = DEFAULT_CONCURRENCY,
    out: Annotated[
        Path | None, typer.Option(help="Folder for results.jsonl and summary.json.")
    ] = None,
    force: Annotated[bool, typer.Option(help="Overwrite the results in --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Measure a model on a task: accuracy, pass@k, majority@k, length, with 95% intervals."""
    from forethought.tasks.base import load_task
    from forethought.tasks.check import find_faults

    warm = 1.0 if temperature is None else temperature
    temperature = _temperature(temperature, samples)
    if not 0 < top_p <= 1:
        raise UserError(f"--top-p {top_p} must be above 0 and at most 1")
    names = [model] if against is None else [model, against]
    sources = [Source(name, backend, api_key_env, concurrency) for name in names]
    for source in sources:
        source.check()  # a wrong name fails before torch is imported
    # The problems do not depend on --seed, so that runs with other draws can be paired.
    problems = load_task(task, split=split, size=limit)
    if faults := find_faults(problems):
        note(f"warning: {task} is not graded soundly: {faults[0]}")
    if strategy:
        _refuse(samples=samples > 1, against=against is not None)
    elif budget or prices is not None:
        raise UserError("--budget and --prices go with --strategy: name one, such as majority:n=8")
    is_new = out is not None and not out.exists()
    files = [] if out is None else _prepare(out, len(names), force)
    if strategy:
        from forethought.cli.eval_strategies import eval_strategies
        from forethought.types import SamplingParams

        params = SamplingParams(max_tokens=max_tokens, temperature=warm, top_p=top_p, seed=seed)
        with _leaving_nothing(out if is_new else None):
            eval_strategies(
                sources[0], problems, strategy, budget or [], params,
                limit=limit, prices=prices, out=out, as_json=as_json,
            )  # fmt: skip
        return
    sampling: dict[str, Any] = {
        "num_samples": samples,
        "temperature": temperature,
        "top_p": top_p,
        "max_tokens": max_tokens,
        "seed": seed,
        "limit": limit,
    }
    with _leaving_nothing(out if is_new else None):
        evaluations = [_evaluate(s, problems, sampling, is_quiet=as_json) for s in sources]
    _tell(sources, split, evaluations, files, out, as_json=as_json)


def _tell(
    sources: Sequence[Source],
    split: str,
    evaluations: list[Evaluation],
    files: list[Path],
    out: Path | None,
    *,
    as_json: bool,
) -> None:
    """Show and write what was measured of one model, or of two paired by problem."""
    from forethought.evaluation.evaluate import compare

    summary: dict[str, Any] = {
        "model": sources[0].model,
        "split": split,
        **evaluations[0].summary(),
    }
    if len(sources) > 1:
        difference = compare(evaluations[1], evaluations[0])
        summary["against"] = {"model": sources[1].model, **evaluations[1].summary()}
        summary["difference"] = _interval(difference.mean, difference.low, difference.high)
    if out is not None:
        _write(out, files, evaluations, summary)
    if as_json:
        print_json(summary)
    else:
        _show(summary, out)


@contextlib.contextmanager
def _leaving_nothing(folder: Path | None) -> Iterator[None]:
    """Remove the folder, which this command made, when nothing was measured to put in it."""
    try:
        yield
    except BaseException:
        if folder is not None:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def _refuse(**given: bool) -> None:
    """Raise UserError for an option that does not go with --strategy."""
    for name, is_given in given.items():
        if is_given:
            raise UserError(f"--{name} does not go with --strategy: leave one of the two out")


def _temperature(given: float | None, num_samples: int) -> float:
    if given is None:
        return 0.0 if num_samples == 1 else 1.0
    if not math.isfinite(given):
        raise UserError(f"--temperature {given} must be a finite number of at least 0")
    if given == 0 and num_samples > 1:
        raise UserError(
            f"--samples {num_samples} with --temperature 0 would draw one answer "
            f"{num_samples} times: raise the temperature or take one sample"
        )
    return given


def _evaluate(
    source: Source, task: Task, sampling: dict[str, Any], *, is_quiet: bool
) -> Evaluation:
    from forethought.evaluation.evaluate import evaluate

    limit = sampling["limit"]
    num_problems = len(task) if limit is None else min(limit, len(task))
    total = num_problems * sampling["num_samples"]
    with (
        open_engine(source) as engine,
        Progress(f"eval {source.model}", total=total, quiet=is_quiet) as bar,
    ):
        return evaluate(_Watched(engine, bar), task, **sampling)


class _Watched:
    """An engine whose progress shows: `bar` counts the completions that have ended."""

    def __init__(self, engine: Engine, bar: Progress) -> None:
        self._engine: Any = engine  # every engine here hears of completions as they end
        self._bar = bar
        self._num_done = 0

    @property
    def capabilities(self) -> Capabilities:
        capabilities: Capabilities = self._engine.capabilities
        return capabilities

    def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        found: list[list[Completion]] = self._engine.generate(requests, on_finish=self._count)
        return found

    def _count(self, _request_index: int, _completion: Completion) -> None:
        self._num_done += 1
        self._bar.update(self._num_done, {})


def _prepare(out: Path, num_models: int, force: bool) -> list[Path]:
    """The result files to write. A folder that cannot take them fails before any sampling."""
    names = ["results.jsonl", "against-results.jsonl"][:num_models]
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror}") from error
    for name in [*names, "summary.json"]:
        if (out / name).exists() and not force:
            raise UserError(f"--out {out} already holds {name}: choose another or add --force")
    return [out / name for name in names]


def _write(
    out: Path, files: list[Path], evaluations: list[Evaluation], summary: dict[str, Any]
) -> None:
    from forethought.durable import write_atomic
    from forethought.evaluation.evaluate import write_results

    try:
        if len(files) == 1:  # --force: what a run with --against left says nothing about this one
            (out / "against-results.jsonl").unlink(missing_ok=True)
        for path, evaluation in zip(files, evaluations, strict=True):
            write_results(evaluation, path)
        write_atomic(out / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror}") from error


def _interval(mean: float, low: float, high: float) -> dict[str, float | None]:
    from forethought.evaluation.evaluate import finite

    return {"mean": mean, "low": finite(low), "high": finite(high)}


def _show(summary: dict[str, Any], out: Path | None) -> None:
    from rich.table import Table

    columns = [summary] + ([summary["against"]] if "against" in summary else [])
    table = Table(title=f"{summary['task']}, {summary['num_problems']} problems")
    table.add_column("")
    for column in columns:
        table.add_column(column["model"], justify="right", overflow="fold")
    for rows in zip(*(_rows(column) for column in columns), strict=True):
        table.add_row(rows[0][0], *(value for _, value in rows))
    screen = console()
    screen.print(table)
    if "difference" in summary:
        change = _percent(summary["difference"], "mean", sign="+", unit=" points")
        screen.print(f"difference in accuracy: {change}")
    if out is not None:
        screen.print(f"written: {out}")


def _rows(summary: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [("accuracy", _percent(summary, "accuracy"))]
    for label, key in (("pass@", "pass_at"), ("majority@", "majority_at")):
        rows += [(f"{label}{k}", f"{100 * v:.1f}%") for k, v in summary[key].items() if k != "1"]
    rows += [
        ("tokens a completion", f"{summary['mean_tokens']:.1f}"),
        ("truncated", f"{100 * summary['truncated_frac']:.1f}%"),
        ("no answer", f"{100 * summary['statuses'].get('no_answer', 0.0):.1f}%"),
        ("ungraded problems", str(summary["num_ungraded"])),
        ("time", format_seconds(summary["seconds"])),
    ]
    return rows


def _percent(values: dict[str, Any], key: str, *, sign: str = "", unit: str = "%") -> str:
    """A share and its interval in percent; what is unknown shows as "-"."""
    shown = [
        "-" if v is None else f"{100 * v:{sign}.1f}"
        for v in (values[key], values["low"], values["high"])
    ]
    return f"{shown[0]}{unit} [{shown[1]}, {shown[2]}]"
