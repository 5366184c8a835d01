"""The `sage` command: its own sub-commands, and those of other packages (entry points `sage.commands`)."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from sage.cli.commands import (
    batches,
    config,
    doctor,
    explain,
    flows,
    jobs,
    keys,
    models,
    policy,
    stack,
    usage,
)
from sage.cli.output import Talk, report
from sage.cli.plugins import PluginGroup
from sage.common.errors import SageError

__all__ = ["app", "main"]

app = typer.Typer(
    cls=PluginGroup,
    help="Run LLM and embedding engines behind one OpenAI-compatible gateway, and pipelines on top of them.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        from sage.common.version import VERSION

        print(f"sage {VERSION}")
        raise typer.Exit


@app.callback()
def _root(
    ctx: typer.Context,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only data and errors.")] = False,
    _: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    ctx.obj = Talk(quiet)


app.command()(stack.up)
app.command()(stack.status)
app.command()(stack.reload)
app.command()(models.chat)
app.command()(models.embed)
app.command()(models.rerank)
app.add_typer(batches.app, name="batch")
app.command()(flows.run)
app.add_typer(jobs.app, name="job")
app.command()(explain.explain)
app.add_typer(policy.app, name="policy")
app.add_typer(keys.app, name="key")
app.command()(usage.usage)
app.add_typer(config.app, name="config")
app.command()(doctor.doctor)
app.command()(stack.down)


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command and exit.

    0 ok, 1 failed, 2 usage, 3 unreachable, 4 unauthorised, 5 not found, 130 interrupted.
    An error is one sentence and a hint on stderr; `SAGE_DEBUG=1` shows the traceback.
    """
    if os.environ.get("SAGE_DEBUG"):
        app(argv, prog_name="sage")
    try:
        app(argv, prog_name="sage")
    except SageError as exc:
        report(exc)
        sys.exit(exc.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as exc:  # the last line of defence: a fault of ours, never a traceback for a user
        report(SageError(f"{type(exc).__name__}: {exc}", hint="This is a bug. SAGE_DEBUG=1 shows where."))
        sys.exit(SageError.exit_code)
