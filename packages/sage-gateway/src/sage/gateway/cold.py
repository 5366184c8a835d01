"""A request that FastAPI serves: uvicorn's own cycle of it, with a body that is already here."""

from __future__ import annotations

import asyncio
import logging
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any, cast

from uvicorn._types import HTTPScope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from sage.gateway.edge import Admission, trace_of
from sage.gateway.requests import Pending
from sage.gateway.watch import AccessLog

__all__ = ["new_cycle"]


class _Told:
    """What the cycle takes for its access logger: the event is ours, without path and query."""

    def __init__(self, log: AccessLog | None, ident: str, key: str, scope: HTTPScope) -> None:
        self._log = log
        self._ident = ident
        self._key = key
        self._scope: Mapping[str, Any] = scope

    def info(self, _form: str, *values: Any) -> None:
        """The head of the answer goes out; the last value is its status."""
        status = int(values[-1])
        if self._log is not None and (self._log.every or status >= 400):
            route = getattr(self._scope.get("route"), "path", None)
            self._log.write(status, request_id=self._ident, key=self._key, route=route, outcome="answered")


def new_cycle(
    protocol: HttpToolsProtocol,
    item: Pending,
    admission: Admission,
    url: Any,
    standing: Sequence[tuple[bytes, bytes]],
    log: AccessLog | None,
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
    if trace := trace_of(item.headers):
        own.append((b"traceparent", trace))
    cycle = RequestResponseCycle(
        scope=scope,
        transport=protocol.transport,
        flow=protocol.flow,
        logger=protocol.logger,
        access_logger=cast(logging.Logger, _Told(log, item.id, admission.principal.id, scope)),
        access_log=log is not None,
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
