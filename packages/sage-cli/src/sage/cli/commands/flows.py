"""`sage run`: run a pipeline that a YAML file declares."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sage.cli.output import Talk, columns

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sage.kernel import OperatorReport, RunReport

__all__ = ["run"]


def run(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(help="A pipeline: a YAML file.")],
    checkpoints: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Keep checkpoints there, and go on from the newest one."),
    ] = None,
    every: Annotated[float, typer.Option(min=0.001, help="Seconds between two checkpoints.")] = 10.0,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODULE:NAME",
            help="Code that the pipeline may name, installed or beside its file; MODULE:* for all of one.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The report as JSON on stderr.")] = False,
) -> None:
    """Run a pipeline to its end; its sinks have stdout, the report goes to stderr."""
    from sage.common.errors import SageError
    from sage.kernel import Checkpoints, LocalEnvironment, load_yaml

    talk: Talk = ctx.obj
    live = sys.stderr.isatty() and not talk.quiet
    kept = Checkpoints(checkpoints, every) if checkpoints else None
    environment = LocalEnvironment(on_progress=_progress if live else None, checkpoints=kept)
    if allow:
        sys.path.insert(0, str(file.resolve().parent))
    try:
        report = environment.run_sync(load_yaml(file, allow=tuple(allow or ())))
    except SageError as error:
        if checkpoints and any(checkpoints.glob("manifest-*")):
            error.hint = f"{error.hint} {_goes_on(checkpoints)}".strip()
        raise
    if live:
        print(file=sys.stderr)
    if as_json:
        print(json.dumps(report.to_dict()), file=sys.stderr)
        return
    for warning in report.warnings:
        talk.warn(warning)
    if report.already_done:
        talk.say(f"{report.flow}: nothing to do; its run that is kept in {checkpoints} had come to its end")
        return
    talk.say(_table(report))
    talk.say(_ending(report))
    if checkpoints and report.interrupted:
        talk.say(_goes_on(checkpoints))


def _goes_on(folder: Path) -> str:
    return f"What was done is kept in {folder}: the same command goes on from there."


def _ending(report: RunReport) -> str:
    end = f"{report.flow}: {'stopped' if report.interrupted else 'done'} in {report.seconds:.2f} s"
    return f"{end}, from checkpoint {report.resumed} on" if report.resumed else end


def _progress(operators: Iterable[OperatorReport]) -> None:
    counts = "  ".join(f"{op.name} {op.items_out}" for op in operators)
    print(f"\r\x1b[K{counts}", end="", file=sys.stderr, flush=True)


def _table(report: RunReport) -> str:
    return columns(
        ("OPERATOR", "IN", "OUT", "DIVERTED", "RETRIES", "BUSY S"),
        [
            (op.name, op.items_in, op.items_out, op.diverted, op.retries, f"{op.busy:.2f}")
            for op in report.operators
        ],
    )
