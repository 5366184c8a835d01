"""The admin API of keys and usage: what comes over HTTP, turned into what the key service does."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any, Literal

import msgspec
from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field

from sage.common.api import (
    KeyChange,
    KeyInfo,
    KeyList,
    KeyRotation,
    KeySettings,
    KeySpec,
    NewKey,
    UsageReport,
    UsageRow,
)
from sage.common.clock import Clock
from sage.common.errors import BadRequestError
from sage.gateway.app import Handlers
from sage.gateway.keys import ADMIN_ID
from sage.gateway.keyservice import DEFAULT, KeyService
from sage.gateway.keystore import KeyRecord
from sage.gateway.limits import Limits
from sage.gateway.usage import Meter, Tally, UsageKey, UsageStore

__all__ = ["key_handlers", "usage_handlers"]

_EPOCH = date(1970, 1, 1)
_DAYS = 30  # reported when nobody says how many


class UsageQuery(BaseModel):
    """What is asked for; the days are those of UTC, both included."""

    model_config = ConfigDict(extra="forbid")

    key: str | None = None
    model: str | None = None
    first: date | None = Field(None, alias="from")
    last: date | None = Field(None, alias="to")


def key_handlers(keys: KeyService, clock: Clock) -> Handlers:
    """What serves `/admin/v1/keys`."""

    def told(record: KeyRecord) -> KeyInfo:
        return _info(record, keys.last_used(record.id), clock.wall())

    async def list_keys() -> KeyList:
        return KeyList(keys=[told(record) for record in keys.all()])

    async def get_key(key_id: str) -> KeyInfo:
        return told(keys.find(key_id))

    async def create_key(spec: KeySpec) -> NewKey:
        _check_name(spec.name)
        _check_expiry(spec, clock.wall())
        record, secret = await keys.create(lambda ident, wall: _record(spec, ident, wall))
        return NewKey(key=told(record), secret=secret)

    async def change_key(key_id: str, change: KeyChange) -> KeyInfo:
        if "name" in change.model_fields_set:
            _check_name(change.name)
        if "expires_at" in change.model_fields_set:
            _check_expiry(change, clock.wall())
        return told(await keys.change(key_id, lambda old: _changed(old, change)))

    async def rotate_key(key_id: str, how: KeyRotation | None = None) -> NewKey:
        record, secret = await keys.rotate(key_id, how.grace_s if how else 0.0)
        return NewKey(key=told(record), secret=secret)

    async def revoke_key(key_id: str) -> KeyInfo:
        return told(await keys.revoke(key_id))

    return {
        "list_keys": list_keys,
        "get_key": get_key,
        "create_key": create_key,
        "change_key": change_key,
        "rotate_key": rotate_key,
        "revoke_key": revoke_key,
    }


def usage_handlers(keys: KeyService, meter: Meter, store: UsageStore, clock: Clock) -> Handlers:
    """What serves `/admin/v1/usage`."""

    async def usage(asked: Annotated[UsageQuery, Query()]) -> UsageReport:
        until = asked.last or datetime.fromtimestamp(clock.wall(), UTC).date()
        since = asked.first or until - timedelta(days=_DAYS - 1)
        if since > until:
            raise BadRequestError(f"from is {since} and to is {until}; valid is from ≤ to.", param="from")
        ident = asked.key if asked.key in (None, ADMIN_ID) else keys.find(asked.key).id
        await meter.flush()
        rows = await store.rows((since - _EPOCH).days, (until - _EPOCH).days, key=ident, model=asked.model)
        names = {record.id: record.name for record in keys.all()} | {ADMIN_ID: ADMIN_ID}
        return UsageReport(
            first=str(since), last=str(until), rows=[_row(row, tally, names) for row, tally in rows]
        )

    return {"usage": usage}


def _row(row: UsageKey, tally: Tally, names: dict[str, str]) -> UsageRow:
    counts = msgspec.structs.asdict(tally)
    del counts["last"]
    return UsageRow(
        day=str(_EPOCH + timedelta(days=row.day)),
        key=row.key,
        name=names.get(row.key, ""),
        model=row.model,
        request_class=row.request_class,
        **counts,
    )


def _check_name(name: str) -> None:
    if name in (DEFAULT, ADMIN_ID):
        raise BadRequestError(f"The name {name!r} is that of a key of the first start.", param="name")


def _check_expiry(settings: KeySettings, wall: float) -> None:
    if settings.expires_at is not None and settings.expires_at.timestamp() <= wall:
        raise BadRequestError(
            f"expires_at is {settings.expires_at.isoformat()}; that is past.", param="expires_at"
        )


# Field of the settings to field of a record and its limits; those that are not here have the same name.
_LIMITS: dict[str, str] = {
    "rpm": "rpm",
    "tpm": "tpm",
    "max_concurrent": "concurrent",
    "day_tokens": "day_tokens",
    "total_tokens": "total_tokens",
}
_OTHERS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "ceiling": ("lowered", lambda value: value == "batch"),
    "expires_at": ("expires", lambda value: None if value is None else value.timestamp()),
}


def _changed(old: KeyRecord, settings: KeySettings, *, unset: bool = False) -> KeyRecord:
    """`old` with what the settings say; with their defaults too where `unset`."""
    given: dict[str, Any] = {}
    limits: dict[str, int | None] = {}
    for name in type(settings).model_fields if unset else settings.model_fields_set:
        value = getattr(settings, name)
        if name in _LIMITS:
            limits[_LIMITS[name]] = value
        else:
            field, convert = _OTHERS.get(name, (name, lambda value: value))
            given[field] = convert(value)
    return msgspec.structs.replace(old, limits=msgspec.structs.replace(old.limits, **limits), **given)


def _record(spec: KeySpec, ident: str, wall: float) -> KeyRecord:
    empty = KeyRecord(id=ident, name=spec.name, digest=b"", scopes=frozenset(), created=wall, limits=Limits())
    return _changed(empty, spec, unset=True)


def _info(record: KeyRecord, last_used: float | None, wall: float) -> KeyInfo:
    state: Literal["active", "expired", "revoked"] = "active"
    if record.revoked is not None:
        state = "revoked"
    elif record.expires is not None and record.expires <= wall:
        state = "expired"
    return KeyInfo.model_validate(
        {
            "id": record.id,
            "name": record.name,
            "state": state,
            "scopes": record.scopes,
            "models": record.models,
            "tenant": record.tenant,
            "ceiling": "batch" if record.lowered else "interactive",
            **{name: getattr(record.limits, field) for name, field in _LIMITS.items()},
            "expires_at": _time(record.expires),
            "created_at": _time(record.created),
            "last_used_at": _time(last_used),
            "revoked_at": _time(record.revoked),
            "former_until": _time(record.previous_until) if record.previous_until > wall else None,
        }
    )


def _time(wall: float | None) -> datetime | None:
    return None if wall is None else datetime.fromtimestamp(wall, UTC)
