"""A request that FastAPI serves: uvicorn's own cycle of it, with a body that is already here."""

from __future__ import annotations

import asyncio
import urllib.parse
from collections.abc import Sequence
from typing import Any

from uvicorn._types import HTTPScope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from sage.gateway.edge import Admission
from sage.gateway.requests import Pending

__all__ = ["new_cycle"]


def new_cycle(
    protocol: HttpToolsProtocol,
    item: Pending,
    admission: Admission,
    url: Any,
    standing: Sequence[tuple[bytes, bytes]],
) -> RequestResponseCycle:
    """The cycle of `item`, which came over `protocol` for the parsed `url`; `standing` goes out with it."""
    raw_path: bytes = url.path or b"/"
    scope: HTTPScope = {
        "type": "http",
        "asgi": {"version": protocol.asgi_version, "spec_version": "2.3"},
        "http_version": item.version,
        "server": protocol.server,
        "client": protocol.client,
        "scheme": "http",
        "method": item.method.decode("latin-1"),
        "root_path": "",
        "path": urllib.parse.unquote(raw_path.decode("latin-1")),
        "raw_path": raw_path,
        "query_string": url.query or b"",
        "headers": item.raw_headers,
        "state": {"principal": admission.principal, "request_id": item.id},
    }
    own = [(b"x-request-id", item.id.encode()), *standing]
    cycle = RequestResponseCycle(
        scope=scope,
        transport=protocol.transport,
        flow=protocol.flow,
        logger=protocol.logger,
        access_logger=protocol.access_logger,
        access_log=False,
        default_headers=[*protocol.server_state.default_headers, *own],
        message_event=asyncio.Event(),
        expect_100_continue=False,
        keep_alive=not item.close,
        on_response=protocol.on_response_complete,
    )
    cycle.body += b"".join(item.parts)
    cycle.more_body = False
    cycle.message_event.set()
    return cycle
