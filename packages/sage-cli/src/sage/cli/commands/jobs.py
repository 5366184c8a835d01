"""`sage job`: pipelines that run in the background, in the stack."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from sage.cli.commands.stack import Config, Json, paths
from sage.cli.jobview import Screen, describe, line, parked, table
from sage.cli.output import Talk, emit, emit_line

if TYPE_CHECKING:
    from pydantic import BaseModel

    from sage.common.jobs import JobDecision, JobInfo, JobSpec
    from sage.middleware.jobs import JobClient

__all__ = ["app"]

app = typer.Typer(
    help="Jobs: pipelines that run in the background.", no_args_is_help=True, rich_markup_mode=None
)

Which = Annotated[str, typer.Argument(metavar="JOB", help="Its name or its id; see `job list`.")]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Return at once.")]
_Wire = TypeVar("_Wire", bound="BaseModel")
_FOLLOW_S = 86_400.0  # a log may be silent for long


@app.command()
def submit(
    ctx: typer.Context,
    what: Annotated[
        str, typer.Argument(metavar="FILE|MODULE:FLOW", help="A pipeline in YAML, or code that is allowed.")
    ],
    name: Annotated[str | None, typer.Option(help="By default that of the flow.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="STEP.PARAMETER of a file, or an argument of a flow."
        ),
    ] = None,
    service: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=MODULE:NAME", help="What operators call by that name, and who makes it."),
    ] = None,
    restart: Annotated[
        str, typer.Option(help="After a crash: none, fixed:3:10, exponential:5, rate:3:60.")
    ] = "exponential:3",
    every: Annotated[float, typer.Option(min=0.001, help="Seconds between two checkpoints.")] = 10.0,
    cpu: Annotated[float | None, typer.Option(min=0, help="Cores that it takes.")] = None,
    gpu: Annotated[float | None, typer.Option(min=0, help="Devices, or a share of one.")] = None,
    memory: Annotated[str | None, typer.Option(help="Of the machine: 2GiB, 500MB.")] = None,
    label: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Of the machine.")] = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Start a pipeline in the background; its name goes to stdout."""
    amounts = {"cpu": cpu, "gpu": gpu, "memory": memory, "labels": _pairs(label, "--label") or None}
    spec = _spec(
        {
            **_source(what),
            "name": name,
            "settings": {key: _value(text) for key, text in _pairs(settings, "--set").items()},
            "services": _pairs(service, "--service"),
            "restart": restart,
            "every": every,
            "resources": {key: value for key, value in amounts.items() if value is not None},
            "folder": str(Path.cwd()),
        }
    )
    job = _client(config).submit(spec)
    if as_json:
        emit(job)
    else:
        print(job.name)
    ctx.obj.say(f"`sage job watch {job.name}` follows it, `sage job logs {job.name}` shows what it prints")


@app.command("list")
def list_jobs(config: Config = None, as_json: Json = False) -> None:
    """All jobs, oldest first."""
    found = _client(config).jobs()
    if as_json:
        emit([one.model_dump(mode="json") for one in found])
        return
    print(table(found))


@app.command()
def show(job: Which, config: Config = None, as_json: Json = False) -> None:
    """One job: its state and why, where it runs and why there, its operators."""
    found = _client(config).job(job)
    if as_json:
        emit(found)
    else:
        print(describe(found))


@app.command()
def watch(ctx: typer.Context, job: Which, config: Config = None, as_json: Json = False) -> None:
    """Follow a job to its end; exit 1 unless it has finished. A table on a terminal, else a line a state."""
    talk: Talk = ctx.obj
    last = None
    screen = Screen(sys.stdout) if sys.stdout.isatty() and not as_json else None
    for found in _client(config).watch(job):
        if as_json:
            emit_line(found)
        elif screen is not None:
            screen.show(describe(found))
        elif last is None or (last.state, last.detail) != (found.state, found.detail):
            print(line(found), flush=True)
        last = found
    if last is not None and last.state != "finished":
        if last.state not in ("failed", "cancelled"):
            talk.warn("The stack stops; the job goes on when it starts again, if it ran.")
        raise typer.Exit(1)


@app.command()
def pause(
    ctx: typer.Context, job: Which, no_wait: NoWait = False, config: Config = None, as_json: Json = False
) -> None:
    """Take a checkpoint and rest; the process of the job ends."""
    client = _client(config)
    _tell(ctx.obj, _settled(client, client.pause(job), no_wait), as_json)


@app.command()
def resume(ctx: typer.Context, job: Which, config: Config = None, as_json: Json = False) -> None:
    """Go on from the last checkpoint: what is paused, failed or cancelled."""
    _tell(ctx.obj, _client(config).resume(job), as_json)


@app.command()
def stop(
    ctx: typer.Context,
    job: Which,
    now: Annotated[bool, typer.Option("--now", help="Do not finish what was read.")] = False,
    no_wait: NoWait = False,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """End a job: it reads no more, and what was read is finished."""
    client = _client(config)
    _tell(ctx.obj, _settled(client, client.stop(job, now=now), no_wait), as_json)


@app.command()
def delete(ctx: typer.Context, job: Which, config: Config = None, as_json: Json = False) -> None:
    """End a job now and forget it, its checkpoints and its log too."""
    found = _client(config).delete(job)
    if as_json:
        emit(found)
    ctx.obj.say(f"job {job} is deleted")


@app.command()
def gates(ctx: typer.Context, job: Which, config: Config = None, as_json: Json = False) -> None:
    """What waits at the gates of a job for a decision."""
    found = _client(config).gates(job)
    if as_json:
        emit(found)
        return
    print(parked(found))
    more = sum(gate.waiting - len(gate.records) for gate in found.gates)
    if more:
        ctx.obj.say(f"and {more} more, which are shown when these are decided on")


@app.command()
def decide(
    ctx: typer.Context,
    job: Which,
    gate: Annotated[str, typer.Argument(help="Where it waits; see `job gates`.")],
    item: Annotated[str, typer.Argument(help="The id of the record.")],
    decision: Annotated[str, typer.Argument(metavar="approve|reject")],
    value: Annotated[
        str | None, typer.Option(metavar="JSON", help="Goes on in its place; as text where it is no JSON.")
    ] = None,
    reason: Annotated[str | None, typer.Option(help="Why it is rejected.")] = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Let a record that waits at a gate go on, or reject it; it is durable when this returns."""
    given = {"gate": gate, "decision": decision}
    asked = _decision(
        given
        | ({} if value is None else {"value": _value(value)})
        | ({} if reason is None else {"reason": reason})
    )
    found = _client(config).decide(job, item, asked)
    if as_json:
        emit(found)
    ctx.obj.say(f"record {found.id} at gate {found.gate} of job {job}: {found.decision}")


@app.command()
def logs(
    job: Which,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, max=10_000, help="The last so many.")] = 100,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="And what comes, until it ends.")] = False,
    config: Config = None,
) -> None:
    """What the process of a job has printed, to stdout."""
    for piece in _client(config, follow=follow).logs(job, lines=lines, follow=follow):
        sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()


def _client(config: Config, *, follow: bool = False) -> JobClient:
    from sage.middleware.stack import job_client

    where = paths(config)
    return job_client(where, timeout=_FOLLOW_S) if follow else job_client(where)


def _settled(client: JobClient, job: JobInfo, no_wait: bool) -> JobInfo:
    """Once it is where it was asked to go."""
    if not no_wait and job.state in ("pausing", "draining"):
        for found in client.watch(job.id):
            job = found
            if job.state not in ("pausing", "draining"):
                break
    return job


def _tell(talk: Talk, job: JobInfo, as_json: bool) -> None:
    if as_json:
        emit(job)
    talk.say(line(job))


def _source(what: str) -> dict[str, Any]:
    """Of a file its plan; else the name of code. Raises BadRequestError for YAML that is none."""
    import re

    from sage.kernel.pipeline import read_yaml

    if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", what) and not Path(what).exists():
        return {"flow": what}
    return {"plan": read_yaml(Path(what))}


def _pairs(given: list[str] | None, option: str) -> dict[str, str]:
    from sage.common.errors import UsageError

    found: dict[str, str] = {}
    for text in given or ():
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise UsageError(f"{option} {text}: valid is {option} KEY=VALUE.")
        found[key] = value
    return found


def _value(text: str) -> Any:
    """JSON where it is that, else the text itself."""
    import json

    try:
        return json.loads(text)
    except ValueError:
        return text


def _spec(given: dict[str, Any]) -> JobSpec:
    """The job that is asked for. Raises UsageError for what no job can be."""
    from sage.common.jobs import JobSpec

    return _valid(JobSpec, given, "job")


def _decision(given: dict[str, Any]) -> JobDecision:
    """What is decided. Raises UsageError for what cannot be."""
    from sage.common.jobs import JobDecision

    return _valid(JobDecision, given, "decision")


def _valid(kind: type[_Wire], given: dict[str, Any], what: str) -> _Wire:
    from pydantic import ValidationError

    from sage.common.errors import UsageError

    try:
        return kind.model_validate(given)
    except ValidationError as exc:
        first = exc.errors()[0]
        where = ".".join(map(str, first["loc"])) or what
        raise UsageError(f"{where}: {first['input']!r} is not valid: {first['msg']}.") from None
