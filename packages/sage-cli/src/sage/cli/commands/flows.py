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

    from sage.kernel.flow import Flow
    from sage.kernel.runtime.report import OperatorReport, RunReport

__all__ = ["read_flow", "run"]


def run(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(help="A pipeline: a YAML file.")],
    as_json: Annotated[bool, typer.Option("--json", help="The report as JSON on stderr.")] = False,
) -> None:
    """Run a pipeline to its end; its sinks have stdout, the report goes to stderr."""
    from sage.kernel.runtime.local import LocalEnvironment

    talk: Talk = ctx.obj
    live = sys.stderr.isatty() and not talk.quiet
    report = LocalEnvironment(on_progress=_progress if live else None).run_sync(read_flow(file))
    if live:
        print(file=sys.stderr)
    if as_json:
        print(json.dumps(report.to_dict()), file=sys.stderr)
        return
    talk.say(_table(report))
    talk.say(f"{report.flow}: {'stopped' if report.interrupted else 'done'} in {report.seconds:.2f} s")


def read_flow(file: Path) -> Flow:
    """The flow that a YAML file declares. Raises NotFoundError, or BadRequestError with the line."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    from sage.common.errors import BadRequestError, NotFoundError
    from sage.kernel.flow import Flow

    try:
        data = YAML(typ="safe").load(file)
    except OSError as exc:
        raise NotFoundError(f"The pipeline {file} cannot be read ({exc.strerror}).") from exc
    except YAMLError as exc:
        raise BadRequestError(f"{file} is not YAML: {exc}") from exc
    if not isinstance(data, dict):
        raise BadRequestError(f"{file} holds a {type(data).__name__}; a pipeline is a mapping.")
    return Flow.from_dict(data)


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
