"""`sage usage`: what each key has used, by model, class and day."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer

from sage.cli.commands.stack import Config, Json, paths
from sage.cli.output import columns, emit

__all__ = ["usage"]

_DAY = ["%Y-%m-%d"]


def usage(
    key: Annotated[str | None, typer.Option(help="Id or name of a key; admin for the admin token.")] = None,
    model: Annotated[str | None, typer.Option(help="Of this model only.")] = None,
    first: Annotated[
        datetime | None, typer.Option("--from", formats=_DAY, help="First day, UTC; without: 30 days.")
    ] = None,
    last: Annotated[datetime | None, typer.Option("--to", formats=_DAY, help="Last day, UTC.")] = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Requests and tokens of each key, by day, model and class."""
    from sage.middleware.stack import admin_client

    found = admin_client(paths(config)).usage(
        key=key, model=model, first=first and first.date(), last=last and last.date()
    )
    if as_json:
        emit(found)
        return
    heads = ("DAY", "KEY", "MODEL", "CLASS", "REQUESTS", "PROMPT", "COMPLETION", "ERRORS", "REFUSALS")
    rows = [
        (
            row.day,
            row.name or row.key,
            row.model or "-",
            row.request_class,
            row.requests,
            row.prompt_tokens,
            row.completion_tokens,
            row.errors,
            row.refusals,
        )
        for row in found.rows
    ]
    print(columns(heads, rows))
