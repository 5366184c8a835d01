"""Calls to a stack on this machine over the standard library: what a short command needs, no event loop.

Pipelines and servers use `sage.middleware.client`, which is asynchronous and keeps connections.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from sage.common.errors import (
    BadRequestError,
    ConflictError,
    EngineError,
    ForbiddenError,
    NotFoundError,
    OverloadedError,
    RequestTooLargeError,
    SageError,
    TimedOutError,
    UnauthorizedError,
    UnavailableError,
    UnreachableError,
)
from sage.common.telemetry import HEADER_REQUEST_ID

__all__ = ["Rest"]

_BY_STATUS: dict[int, type[SageError]] = {
    cls.status: cls
    for cls in (
        BadRequestError,
        UnauthorizedError,
        ForbiddenError,
        NotFoundError,
        ConflictError,
        RequestTooLargeError,
        OverloadedError,
        EngineError,
        UnavailableError,
        TimedOutError,
    )
}


class Rest:
    """One server and one bearer token. `timeout` is in seconds and bounds each wait for bytes.

    `request_id` is that of the last answer, for `sage explain`; empty when the server gave none.
    Calls raise UnreachableError when nothing answers, and the server's own error for any status but 200.
    """

    def __init__(self, url: str, token: str, *, timeout: float = 10.0) -> None:
        self.url = url.rstrip("/")
        self._token = token
        self._timeout = timeout
        self.request_id = ""

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> bytes:
        """The whole answer."""
        with self._answer(method, path, body) as response:
            return response.read()

    def events(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """POST and yield each server-sent event's JSON, up to `[DONE]`.

        Raises EngineError for an error event and for a stream that ends without `[DONE]`.
        """
        with self._answer("POST", path, body) as response:
            for line in response:
                if not line.startswith(b"data:"):
                    continue
                data = line[len(b"data:") :].strip()
                if data == b"[DONE]":
                    return
                event: dict[str, Any] = json.loads(data)
                if "error" in event:
                    raise EngineError(str(event["error"].get("message", event["error"])))
                yield event
        raise EngineError("The answer broke off before its end.")

    @contextmanager
    def _answer(
        self, method: str, path: str, body: dict[str, Any] | None
    ) -> Iterator[http.client.HTTPResponse]:
        url = urlsplit(self.url)
        # Not urllib: it follows proxy variables, and loopback must not go through a proxy.
        connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=self._timeout)
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        raw = None if body is None else json.dumps(body).encode()
        try:
            connection.request(method, url.path + path, body=raw, headers=headers)
            response = connection.getresponse()
            self.request_id = response.headers.get(HEADER_REQUEST_ID, "")
            if response.status != http.HTTPStatus.OK:
                raise _error(response.status, response.read())
            yield response
        except (OSError, http.client.HTTPException) as exc:
            raise UnreachableError(
                f"Nothing answers at {self.url} ({str(exc) or type(exc).__name__}).",
                hint="`sage doctor` says what is wrong; `sage up` starts a stack.",
            ) from exc
        finally:
            connection.close()


def _error(status: int, raw: bytes) -> SageError:
    try:
        message = str(json.loads(raw)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = f"The server answered {status}: {raw[:200].decode(errors='replace')}"
    return _BY_STATUS.get(status, SageError)(message)
