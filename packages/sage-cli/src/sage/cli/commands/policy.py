"""`sage policy`: how the control plane of the running stack orders and places requests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from sage.cli.commands.stack import Config, Json, paths
from sage.cli.output import columns, emit

if TYPE_CHECKING:
    from sage.common.api import PolicyStatus

__all__ = ["app"]

app = typer.Typer(help="The scheduling policy in force.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def show(config: Config = None, as_json: Json = False) -> None:
    """The policy in force, and what it does."""
    found = _policy(config)
    summary = found.summaries.get(found.name, "")
    if as_json:
        emit({"name": found.name, "summary": summary})
        return
    print(f"{found.name}: {summary}" if summary else found.name)


@app.command("list")
def list_policies(config: Config = None, as_json: Json = False) -> None:
    """All policies there are; a star marks the one in force."""
    found = _policy(config)
    if as_json:
        emit(found)
        return
    rows = [
        ("*" if name == found.name else "", name, found.summaries.get(name, "")) for name in found.available
    ]
    print(columns(("USED", "POLICY", "WHAT IT DOES"), rows))


@app.command()
def use(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="See `policy list`.")],
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Put another policy in force, at once and until the stack stops."""
    from sage.middleware.stack import admin_client

    found = admin_client(paths(config)).set_policy(name)
    if as_json:
        emit({"name": found.name, "summary": found.summaries.get(found.name, "")})
    ctx.obj.say(f"policy in force: {found.name}")


def _policy(config: Config) -> PolicyStatus:
    from sage.middleware.stack import admin_client

    return admin_client(paths(config)).policy()
