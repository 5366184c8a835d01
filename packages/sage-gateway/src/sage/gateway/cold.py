"""A request that FastAPI serves: uvicorn's own cycle of it, whose body is here already or comes in parts."""

from __future__ import annotations

import asyncio
import logging
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any, cast

import httptools
from uvicorn._types import ASGIReceiveEvent, ASGISendEvent, HTTPScope
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from sage.common.errors import BadRequestError, SageError
from sage.gateway.edge import Admission
from sage.gateway.requests import Pending
from sage.gateway.watch import AccessLog

__all__ = ["Cycle", "new_cycle"]


class Cycle(RequestResponseCycle):
    """One request in the application. Of an upload the body is fed: reading pauses while it is not taken."""

    fault: SageError | None = None  # what the application meets where the rest of the body should be

    def feed(self, part: bytes) -> None:
        """The next bytes of the body; after the answer has begun they are dropped."""
        if self.response_started:
            return
        self.body += part
        if len(self.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        self.message_event.set()

    def finish(self) -> None:
        """The body was complete."""
        self.more_body = False
        self.message_event.set()

    def fail(self, error: SageError) -> None:
        """The rest of the body does not come; the application answers with this error."""
        self.fault = error
        self.message_event.set()

    async def receive(self) -> ASGIReceiveEvent:
        """See ASGI. Raises what `fail` was told."""
        message = await super().receive()
        if self.fault is not None:
            raise self.fault
        return message

    async def send(self, message: ASGISendEvent) -> None:
        """See ASGI. An answer before the end of the body is the last of its connection.

        The protocol ends that: if it were closed here, what is still coming would reset it, and the client
        would lose the answer.
        """
        if not self.more_body or message["type"] != "http.response.start":
            await super().send(message)
            return
        headers = [*message.get("headers", ()), (b"connection", b"close")]
        await super().send(cast(ASGISendEvent, {**message, "headers": headers}))
        self.keep_alive = True
        self.flow.resume_reading()


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
    standing: Sequence[tuple[bytes, bytes]],
    log: AccessLog | None,
) -> Cycle:
    """The cycle of `item`, which came over `protocol`; `standing` goes out with its answer.

    Raises BadRequestError for a URL that is none.
    """
    try:
        url: Any = httptools.parse_url(item.target)
    except httptools.HttpParserInvalidURLError:
        raise BadRequestError("The URL is not valid.") from None
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
    if item.trace:
        own.append((b"traceparent", item.trace))
    cycle = Cycle(
        scope=scope,
        transport=protocol.transport,
        flow=protocol.flow,
        logger=protocol.logger,
        access_logger=cast(logging.Logger, _Told(log, item.id, admission.principal.id, scope)),
        access_log=log is not None,
        default_headers=[*protocol.server_state.default_headers, *own],
        message_event=asyncio.Event(),
        expect_100_continue=admission.upload and admission.expect_continue,
        keep_alive=not item.close,
        on_response=protocol.on_response_complete,
    )
    if not admission.upload:
        cycle.body += b"".join(item.parts)
        cycle.finish()
    return cycle
