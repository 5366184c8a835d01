"""`sage key`: who may call the running stack, and how much. A secret is shown once, when it is made."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sage.cli.commands.stack import Config, Json, paths
from sage.cli.output import Talk, columns, emit

if TYPE_CHECKING:
    from sage.common.api import KeyInfo, NewKey
    from sage.middleware.admin import AdminClient

__all__ = ["app"]

app = typer.Typer(help="API keys: scopes, models, limits.", no_args_is_help=True, rich_markup_mode=None)

Which = Annotated[str, typer.Argument(metavar="KEY", help="Its id or its name; see `key list`.")]
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


@app.command()
def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="Letters, digits, - and _.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="chat, completions, embeddings, rerank, tokens, models, files, batches or admin;"
            " all but admin if not given"
        ),
    ] = None,
    model: Annotated[list[str] | None, typer.Option(help="A model it may use; again for more.")] = None,
    rpm: Annotated[int | None, typer.Option(help="Requests in a minute.")] = None,
    tpm: Annotated[int | None, typer.Option(help="Tokens in a minute.")] = None,
    max_concurrent: Annotated[int, typer.Option(help="Requests under way at once; 0 = any number.")] = 32,
    day_tokens: Annotated[int | None, typer.Option(help="Tokens in a day (UTC).")] = None,
    total_tokens: Annotated[int | None, typer.Option(help="Tokens ever.")] = None,
    expires: Annotated[
        str | None, typer.Option(help="When it ends: 90s, 15m, 12h, 30d, or a date and time.")
    ] = None,
    ceiling: Annotated[str, typer.Option(help="interactive, or batch: low classes only.")] = "interactive",
    tenant: Annotated[str, typer.Option(help="Whose share it takes; without: one of its own.")] = "",
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Make a key; its secret goes to stdout, this once."""
    given = {
        "name": name,
        "models": model or [],
        "rpm": rpm,
        "tpm": tpm,
        "max_concurrent": max_concurrent or None,
        "day_tokens": day_tokens,
        "total_tokens": total_tokens,
        "expires_at": None if expires is None else _moment(expires),
        "ceiling": ceiling,
        "tenant": tenant,
    }
    spec = _spec({**given, "scopes": scope} if scope else given)
    _show_secret(ctx.obj, _client(config).create_key(spec), as_json)


@app.command("list")
def list_keys(config: Config = None, as_json: Json = False) -> None:
    """All keys, revoked ones too."""
    found = _client(config).keys()
    if as_json:
        emit(found)
        return
    rows = [
        (
            k.id,
            k.name,
            k.state,
            ",".join(sorted(k.scopes)),
            ",".join(sorted(k.models)) or "all",
            _limits(k),
            _time(k.last_used_at),
        )
        for k in found.keys
    ]
    print(columns(("ID", "NAME", "STATE", "SCOPES", "MODELS", "LIMITS", "LAST USED"), rows))


@app.command()
def show(key: Which, config: Config = None, as_json: Json = False) -> None:
    """What a key may and when it was used; never its secret."""
    found = _client(config).key(key)
    if as_json:
        emit(found)
        return
    print(columns(("WHAT", "VALUE"), [(name, _plain(value)) for name, value in found.model_dump().items()]))


@app.command()
def rotate(
    ctx: typer.Context,
    key: Which,
    grace: Annotated[
        str, typer.Option(help="How long the former secret stays good: 90s, 15m, 12h, 7d.")
    ] = "0s",
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Give a key another secret; it goes to stdout, this once."""
    made = _client(config).rotate_key(key, grace_s=_span(grace).total_seconds())
    _show_secret(ctx.obj, made, as_json)


@app.command()
def revoke(ctx: typer.Context, key: Which, config: Config = None, as_json: Json = False) -> None:
    """End a key for good, and what runs for it."""
    found = _client(config).revoke_key(key)
    if as_json:
        emit(found)
    ctx.obj.say(f"key {found.id} ({found.name}) is revoked")


def _client(config: Config) -> AdminClient:
    from sage.middleware.stack import admin_client

    return admin_client(paths(config))


def _spec(given: dict[str, Any]) -> Any:
    """The key that is asked for. Raises UsageError for what no key can be."""
    from pydantic import ValidationError

    from sage.common.api import KeySpec
    from sage.common.errors import UsageError

    try:
        return KeySpec.model_validate(given)
    except ValidationError as exc:
        first = exc.errors()[0]
        option = str(first["loc"][0]).replace("_", "-") if first["loc"] else "key"
        raise UsageError(f"{option}: {first['input']!r} is not valid: {first['msg']}.") from None


def _show_secret(talk: Talk, made: NewKey, as_json: bool) -> None:
    if as_json:
        emit(made)
    else:
        print(made.secret)
    talk.say(f"key {made.key.id} ({made.key.name}); its secret is not shown again")


def _span(text: str) -> timedelta:
    from sage.common.errors import UsageError

    found = re.fullmatch(r"(\d{1,9})([smhd])", text)
    if found is None:
        raise UsageError(f"{text!r} is no time; valid is a whole number with s, m, h or d, as in 30d.")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})


def _moment(text: str) -> datetime:
    """A time from now, or a date with or without a time; one without a zone is UTC."""
    from sage.common.errors import UsageError

    if re.fullmatch(r"\d+[smhd]", text):
        return datetime.now(UTC) + _span(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(
            f"{text!r} is neither a time from now such as 30d nor a date such as 2027-01-31."
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _limits(key: KeyInfo) -> str:
    given = {
        "rpm": key.rpm,
        "tpm": key.tpm,
        "at once": key.max_concurrent,
        "tokens/day": key.day_tokens,
        "tokens": key.total_tokens,
        "until": key.expires_at and _time(key.expires_at),
        "ceiling": key.ceiling if key.ceiling == "batch" else None,
    }
    return ", ".join(f"{name} {value}" for name, value in given.items() if value) or "-"


def _plain(value: Any) -> str:
    if isinstance(value, datetime):
        return _time(value)
    if isinstance(value, list):
        return ", ".join(value) or "all"
    return "-" if value in (None, "") else str(value)


def _time(value: datetime | None) -> str:
    return "-" if value is None else value.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
