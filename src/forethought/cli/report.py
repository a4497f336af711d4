"""`forethought report`: the HTML page of a run or evaluation folder."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Annotated

import typer


def report_command(
    run: Annotated[Path, typer.Argument(help="Folder of a run, or of an evaluation (--out).")],
    out: Annotated[
        Path | None, typer.Option(help="File or folder to write to [default: RUN/report.html].")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write one self-contained HTML page about a run and print its path."""
    from forethought.evaluation.report import build_report  # keeps `--help` fast

    path = build_report(run, out=out)
    typer.echo(json_format.dumps({"report": str(path)}) if json else str(path))
