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
    as_json: Annotated[bool, typer.Option("--json", help="The report as JSON on stderr.")] = False,
) -> None:
    """Run a pipeline to its end; its sinks have stdout, the report goes to stderr."""
    from sage.kernel import LocalEnvironment, load_yaml

    talk: Talk = ctx.obj
    live = sys.stderr.isatty() and not talk.quiet
    report = LocalEnvironment(on_progress=_progress if live else None).run_sync(load_yaml(file))
    if live:
        print(file=sys.stderr)
    if as_json:
        print(json.dumps(report.to_dict()), file=sys.stderr)
        return
    talk.say(_table(report))
    talk.say(f"{report.flow}: {'stopped' if report.interrupted else 'done'} in {report.seconds:.2f} s")


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
