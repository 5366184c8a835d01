"""`sage batch`: many requests of a file, run when nothing more urgent does."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sage.cli.commands.stack import Config, Json, paths
from sage.cli.output import Talk, columns, emit

if TYPE_CHECKING:
    from sage.common.batch import BatchInfo
    from sage.middleware.batches import BatchClient

__all__ = ["app"]

app = typer.Typer(
    help="Batches: many requests of a file, run behind interactive work.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Which = Annotated[str, typer.Argument(metavar="BATCH", help="Its id; see `batch list`.")]
_POLL_S = (0.2, 5.0)  # the first pause, and the longest
_TIMEOUT_S = 600.0


@app.command()
def submit(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(help="JSONL: custom_id, method, url and body on each line.")],
    endpoint: Annotated[
        str | None, typer.Option(help="The url of its lines; by default that of the first one.")
    ] = None,
    window: Annotated[str, typer.Option(help="When it has to be done: 30m, 24h, 7d.")] = "24h",
    wait: Annotated[bool, typer.Option("--wait", help="Until its end; exit 1 unless all is well.")] = False,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Upload a file and run its lines; the id of the batch goes to stdout."""
    from sage.common.batch import BatchSpec

    talk: Talk = ctx.obj
    route = endpoint or _first_url(file)
    client = _client(config)
    stored = client.upload(file)
    batch = client.create(BatchSpec(input_file_id=stored.id, endpoint=route, completion_window=window))
    if wait:
        talk.say(f"batch {batch.id}; Ctrl-C leaves it running")
        batch = _wait(client, batch, talk)
    if as_json:
        emit(batch)
    else:
        print(batch.id)
    if not wait:
        talk.say(f"`sage batch show {batch.id}` tells how far it is, `sage batch results …` what came of it")
    elif batch.status != "completed" or batch.request_counts.failed:
        _explain(batch, talk)
        raise typer.Exit(1)


@app.command("list")
def list_batches(
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the newest.")] = 20,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """The batches of the default key, newest first."""
    found = _client(config).batches(limit)
    if as_json:
        emit([one.model_dump(mode="json") for one in found])
        return
    rows = [
        (one.id, one.status, _progress(one), one.request_counts.failed, one.endpoint, _time(one.created_at))
        for one in found
    ]
    print(columns(("ID", "STATUS", "DONE", "FAILED", "ENDPOINT", "CREATED"), rows))


@app.command()
def show(ctx: typer.Context, batch: Which, config: Config = None, as_json: Json = False) -> None:
    """How far a batch is, and what was wrong with it."""
    found = _client(config).batch(batch)
    if as_json:
        emit(found)
        return
    fields = found.model_dump(exclude_none=True, exclude={"object", "errors", "request_counts", "metadata"})
    rows = [(name, _time(value) if name.endswith("_at") else value) for name, value in fields.items()]
    counts = [("done", _progress(found)), ("failed", found.request_counts.failed)]
    print(columns(("WHAT", "VALUE"), [*rows, *counts]))
    _explain(found, ctx.obj)


@app.command()
def cancel(ctx: typer.Context, batch: Which, config: Config = None, as_json: Json = False) -> None:
    """End a batch early; what is done stays."""
    found = _client(config).cancel(batch)
    if as_json:
        emit(found)
    ctx.obj.say(f"batch {found.id} is {found.status}")


@app.command()
def results(
    ctx: typer.Context,
    batch: Which,
    errors: Annotated[bool, typer.Option("--errors", help="The lines that failed, instead.")] = False,
    config: Config = None,
) -> None:
    """The lines of its output, as JSONL, to stdout."""
    from sage.common.errors import NotFoundError

    client = _client(config)
    found = client.batch(batch)
    file = found.error_file_id if errors else found.output_file_id
    if file is None:
        what = "errors" if errors else "results"
        raise NotFoundError(
            f"The batch {found.id} is {found.status} and has no {what}.",
            hint="They are written at its end; `sage batch show` tells how far it is.",
        )
    for piece in client.content(file):
        sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()
    if not errors and found.request_counts.failed:
        ctx.obj.say(f"{found.request_counts.failed} lines failed; `sage batch results {found.id} --errors`")


def _client(config: Config) -> BatchClient:
    from sage.middleware.batches import BatchClient
    from sage.middleware.rest import Rest
    from sage.middleware.stack import client_key, read_run

    where = paths(config)
    return BatchClient(Rest(read_run(where).base_url, client_key(where), timeout=_TIMEOUT_S))


def _first_url(file: Path) -> str:
    """The url of the first line. Raises UsageError if there is none to be found."""
    import json

    from sage.common.errors import NotFoundError, UsageError

    try:
        with file.open("rb") as lines:
            first = next((line for line in lines if line.strip()), b"")
    except OSError as exc:
        raise NotFoundError(f"Cannot read {file}: {exc.strerror}.") from exc
    try:
        url = json.loads(first)["url"]
    except (ValueError, KeyError, TypeError):
        url = None
    if not isinstance(url, str):
        raise UsageError(
            f"The first line of {file} is no request of a batch.",
            hint='A line: {"custom_id": …, "method": "POST", "url": "/v1/chat/completions", "body": {…}}.',
        )
    return url


def _wait(client: BatchClient, batch: BatchInfo, talk: Talk) -> BatchInfo:
    """Ask until it has ended; on a terminal one line tells how far it is."""
    from sage.common.batch import ENDED

    pause, longest = _POLL_S
    shown = sys.stderr.isatty() and not talk.quiet
    while batch.status not in ENDED:
        if shown:
            print(f"\r\033[K{batch.status} {_progress(batch)}", end="", file=sys.stderr, flush=True)
        time.sleep(pause)
        pause = min(longest, pause * 1.3)
        batch = client.batch(batch.id)
    if shown:
        print("\r\033[K", end="", file=sys.stderr)
    talk.say(f"{batch.status}: {_progress(batch)}, {batch.request_counts.failed} failed")
    return batch


def _explain(batch: BatchInfo, talk: Talk) -> None:
    for one in batch.errors.data if batch.errors else ():
        where = "" if one.line is None else f"line {one.line}: "
        talk.say(f"{where}{one.message} ({one.code})")


def _progress(batch: BatchInfo) -> str:
    counts = batch.request_counts
    return f"{counts.completed + counts.failed}/{counts.total}"


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
