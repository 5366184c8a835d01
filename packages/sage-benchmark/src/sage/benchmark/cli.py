"""Measure the running stack: list suites, run one."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sage.benchmark.simulate import commands as simulated

if TYPE_CHECKING:
    from sage.benchmark.load import Target
    from sage.benchmark.report import Run
    from sage.middleware.admin import AdminClient

__all__ = ["app"]

app = typer.Typer(help="Measure the running stack, open loop, or simulate one.", no_args_is_help=True)
simulated.register(app)

Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


@app.command("list")
def list_suites(as_json: Json = False) -> None:
    """List the suites."""
    from sage.benchmark.suites import SUITES

    if as_json:
        typer.echo(json.dumps([{"name": name, "summary": text} for name, text in SUITES.items()]))
        return
    for name, text in SUITES.items():
        typer.echo(f"{name:<10} {text}")


@app.command("run")
def run_suite(
    suite: Annotated[str, typer.Argument(help="A suite of `sage bench list`.")],
    rate: Annotated[float, typer.Option(help="Requests per second, over all classes.")] = 8.0,
    duration: Annotated[float, typer.Option(help="Seconds of load.")] = 10.0,
    seed: Annotated[int, typer.Option(help="Same seed, same schedule.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Result folder; else ./bench-SUITE-TIME.")] = None,
    base_url: Annotated[str, typer.Option(help="Measure this OpenAI base URL instead.")] = "",
    api_key: Annotated[str, typer.Option(envvar="SAGE_API_KEY", help="Its key.")] = "",
    as_json: Json = False,
) -> None:
    """Run a suite and write run.json, records.jsonl, report.html and report.md.

    Exit code 0 for a valid run, 1 for an INVALID one: its files are written and say why.
    """
    from sage.benchmark.report import to_json, write
    from sage.benchmark.suites import SUITES, smoke
    from sage.common.errors import NotFoundError

    if suite not in SUITES:
        raise NotFoundError(f"There is no suite {suite!r}.", hint=f"There are: {', '.join(SUITES)}.")
    target, admin = _target(base_url, api_key)
    folder = _folder(suite, out)
    options = smoke.SmokeOptions(rate=rate, duration=duration, seed=seed)
    run, records = asyncio.run(
        smoke.run(target, options, folder / "records.jsonl", admin=admin, on_progress=_say)
    )
    write(run, records, folder)
    if as_json:
        typer.echo(json.dumps(to_json(run)))
    else:
        _print(run)
    _say(f"report: {folder / 'report.html'}")
    for reason in run.invalid:
        _say(f"INVALID: {reason}.")
    raise typer.Exit(1 if run.invalid else 0)


def _target(base_url: str, api_key: str) -> tuple[Target, AdminClient | None]:
    """The stack of this machine with its admin API, or any server by its URL without one."""
    from dataclasses import replace

    from sage.benchmark.load import Target
    from sage.common.errors import UsageError
    from sage.common.paths import SagePaths
    from sage.common.settings import load
    from sage.middleware.stack import admin_client, client_key, read_run

    if base_url:
        if not api_key:
            raise UsageError("--base-url needs --api-key.", hint="SAGE_API_KEY in the environment works too.")
        return Target(base_url, api_key), None
    config, paths = load().config, SagePaths.default()
    if config.state_dir:
        paths = replace(paths, state=config.state_dir)
    return Target(read_run(paths).base_url, api_key or client_key(paths)), admin_client(paths)


def _folder(suite: str, out: Path | None) -> Path:
    from datetime import UTC, datetime

    from sage.common.errors import UsageError

    folder = out or Path(f"bench-{suite}-{datetime.now(UTC):%Y%m%d-%H%M%S}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"Results cannot be written to {folder}: {error.strerror}.") from None
    return folder


def _say(line: str) -> None:
    """Talk goes to stderr, stdout is data."""
    print(line, file=sys.stderr, flush=True)


def _print(run: Run) -> None:
    from rich.console import Console
    from rich.table import Table

    flags = [*run.badges, "INVALID"] if run.invalid else run.badges
    title = " ".join([f"{run.suite}, policy {run.policy}", *flags])
    table = Table("metric", "class", "value", "95 % interval", "n", "unit", title=title)
    for m in run.metrics:
        value = f"{m.value:.4g}{'*' if m.starred else ''}"
        table.add_row(m.name, m.group, value, f"{m.low:.4g} to {m.high:.4g}", str(m.n), m.unit)
    Console().print(table)
