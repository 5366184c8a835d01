"""What a caller asks for in headers: class, goals, deadline, tenant, priority. Pure.

A value that cannot be honoured is refused, never ignored.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from typing import Final

import msgspec

from sage.common.errors import BadRequestError
from sage.common.ids import new_id
from sage.common.telemetry import (
    HEADER_CLASS,
    HEADER_DEADLINE,
    HEADER_EXPLAIN,
    HEADER_PARENT,
    HEADER_PRIORITY,
    HEADER_REQUEST_ID,
    HEADER_SLO_TPOT,
    HEADER_SLO_TTFT,
    HEADER_TENANT,
    RequestClass,
)
from sage.middleware.control_plane.asides import ASIDES
from sage.middleware.control_plane.types import Slo
from sage.middleware.engines.port import GENERATES, MEDIA, Route

__all__ = ["WISHES", "Wishes", "read_wishes", "request_id"]

WISHES: Final = (
    HEADER_CLASS,
    HEADER_DEADLINE,
    HEADER_EXPLAIN,
    HEADER_PARENT,
    HEADER_PRIORITY,
    HEADER_SLO_TPOT,
    HEADER_SLO_TTFT,
    HEADER_TENANT,
)

_WISHES: Final = frozenset(WISHES)
_CLASSES: Final[Mapping[Route, tuple[RequestClass, ...]]] = {  # the usual one, and the lower one if any
    Route.CHAT: (RequestClass.CHAT, RequestClass.BATCH),
    Route.COMPLETIONS: (RequestClass.COMPLETION, RequestClass.BATCH),
    Route.MESSAGES: (RequestClass.CHAT, RequestClass.BATCH),
    Route.RESPONSES: (RequestClass.CHAT, RequestClass.BATCH),
    Route.EMBEDDINGS: (RequestClass.EMBED_INTERACTIVE, RequestClass.EMBED_BULK),
    Route.RERANK: (RequestClass.RERANK,),
    Route.SCORE: (RequestClass.RERANK,),
    **dict.fromkeys(MEDIA, (RequestClass.COMPLETION, RequestClass.BATCH)),
}
_SCHEDULING: Final = tuple(name for name in WISHES if name not in (HEADER_DEADLINE, HEADER_TENANT))
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_PRIORITY: Final = re.compile(r"[+-]?[0-9]")


class Wishes(msgspec.Struct, frozen=True, gc=False):
    """What the headers say. `lowered`: the lower class of the route was asked for. `deadline` in seconds."""

    tenant: str
    lowered: bool = False
    slo: Slo | None = None
    deadline: float | None = None
    priority: int = 0
    parent: str = ""
    explain: bool = False


def read_wishes(route: Route, headers: Mapping[str, str], *, tenant: str, tenants: Collection[str]) -> Wishes:
    """Judge the headers of one request; their names are in lower case.

    `tenant`: whose key it is; another one may be named if it is among `tenants`. Raises BadRequestError with
    the header as `param`.
    """
    if _WISHES.isdisjoint(headers):
        return Wishes(tenant)
    deadline = _seconds(headers, HEADER_DEADLINE)
    if route in ASIDES:
        for name in _SCHEDULING:
            if name in headers:
                raise _refused(name, headers[name], f"/v1/{route} waits in no queue and takes none")
        return Wishes(_tenant(headers, tenant, tenants), deadline=deadline)
    return Wishes(
        tenant=_tenant(headers, tenant, tenants),
        lowered=_lowered(route, headers),
        slo=_slo(route, headers, deadline),
        deadline=deadline,
        priority=_priority(headers),
        parent=_parent(headers),
        explain=_explain(headers),
    )


def request_id(headers: Mapping[str, str]) -> str:
    """The caller's if it can do no harm in a log, else a new one."""
    value = headers.get(HEADER_REQUEST_ID)
    return value if value is not None and _REQUEST_ID.fullmatch(value) else new_id("req")


def _tenant(headers: Mapping[str, str], own: str, tenants: Collection[str]) -> str:
    asked = headers.get(HEADER_TENANT)
    if asked is None or asked == own or asked in tenants:
        return own if asked is None else asked
    valid = ", ".join(sorted({own, *tenants}))
    raise _refused(HEADER_TENANT, asked, f"this key may act for: {valid}")


def _lowered(route: Route, headers: Mapping[str, str]) -> bool:
    asked = headers.get(HEADER_CLASS)
    if asked is None:
        return False
    classes = _CLASSES[route]
    if asked not in classes:
        raise _refused(HEADER_CLASS, asked, f"on /v1/{route} it can be {' or '.join(classes)}")
    return asked != classes[0]


def _slo(route: Route, headers: Mapping[str, str], deadline: float | None) -> Slo | None:
    """An answer of vectors or scores has no first token: its goal is the whole. Sound has a first byte."""
    ttft, tpot = _seconds(headers, HEADER_SLO_TTFT), _seconds(headers, HEADER_SLO_TPOT)
    if route in GENERATES:
        asked = Slo(ttft, tpot, deadline)
    elif tpot is not None:
        raise _refused(HEADER_SLO_TPOT, headers[HEADER_SLO_TPOT], f"/v1/{route} has no tokens to wait for")
    elif route in MEDIA:
        asked = Slo(ttft, None, deadline)
    else:
        asked = Slo(total=min((goal for goal in (ttft, deadline) if goal is not None), default=None))
    return None if asked == Slo() else asked


def _seconds(headers: Mapping[str, str], name: str) -> float | None:
    value = headers.get(name)
    if value is None:
        return None
    try:
        milliseconds = float(value)
    except ValueError:
        milliseconds = math.nan
    if not 0 < milliseconds < math.inf:
        raise _refused(name, value, "it is a positive number of milliseconds")
    return milliseconds / 1000


def _priority(headers: Mapping[str, str]) -> int:
    value = headers.get(HEADER_PRIORITY, "0")
    if not _PRIORITY.fullmatch(value):
        raise _refused(HEADER_PRIORITY, value, "it is a whole number from -9 to 9; higher goes first")
    return int(value)


def _parent(headers: Mapping[str, str]) -> str:
    value = headers.get(HEADER_PARENT, "")
    if HEADER_PARENT in headers and not _REQUEST_ID.fullmatch(value):
        raise _refused(HEADER_PARENT, value, f"it is the {HEADER_REQUEST_ID} of an earlier request")
    return value


def _explain(headers: Mapping[str, str]) -> bool:
    value = headers.get(HEADER_EXPLAIN, "0")
    if value not in ("0", "1"):
        raise _refused(HEADER_EXPLAIN, value, "it is 1, or 0")
    return value == "1"


def _refused(header: str, value: str, valid: str) -> BadRequestError:
    return BadRequestError(f"{header} is {value[:128]!r}; {valid}.", param=header)
