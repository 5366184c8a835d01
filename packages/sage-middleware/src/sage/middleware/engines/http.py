"""A small pool of keep-alive HTTP/1.1 connections to one engine."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Final
from urllib.parse import urlsplit

from sage.common.errors import ConfigError, UnreachableError
from sage.middleware.engines.connection import Connection, HttpLimits, Receiver, StaleConnectionError
from sage.middleware.engines.faults import LostEngineError
from sage.middleware.engines.heads import Head
from sage.middleware.engines.untasked import native_steps

__all__ = ["JSON", "HttpLimits", "HttpPool", "Receiver"]

JSON: Final = "application/json"
_JSON_LINE: Final = b"content-type: application/json\r\n"

LOOK_S: Final = 1.0  # at most so much late is a deadline noticed
_LIMITS: Final = HttpLimits()


class HttpPool:
    """Connections to the engine at `url` (`http[s]://host[:port][/prefix]`), reused last in, first out.

    `keep_idle_s` stays below the five seconds after which uvicorn closes an idle connection. Raises
    ConfigError for a URL that is not http or https.
    """

    __slots__ = (
        "_closed",
        "_heads",
        "_host",
        "_idle",
        "_keep_idle_s",
        "_look_s",
        "_max_idle",
        "_netloc",
        "_open",
        "_port",
        "_prefix",
        "_start",
        "_timer",
        "_tls",
        "limits",
        "seen",
        "url",
    )

    def __init__(
        self, url: str, *, limits: HttpLimits = _LIMITS, max_idle: int = 64, keep_idle_s: float = 4.0
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"Engine URL {url!r} is not one; give http://HOST:PORT or https://HOST.")
        self.limits = limits
        self.url = url
        self._host = parts.hostname
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._netloc = parts.netloc.rpartition("@")[2]
        self._prefix = parts.path.rstrip("/")
        self._max_idle = max_idle
        self._keep_idle_s = keep_idle_s
        self._idle: list[Connection] = []
        self._open: set[Connection] = set()
        self._look_s = min(LOOK_S, min(limits.first_byte_s, limits.between_chunks_s, limits.total_s) / 8)
        self._timer: asyncio.TimerHandle | None = None
        self._heads: dict[tuple[str, str], bytes] = {}
        self.seen: tuple[Head, str] | None = None  # of the last whole answer, with its content type
        self._closed = False
        self._start: Callable[..., Connection | None] = native_steps().start_call

    async def request(
        self,
        method: str,
        path: str,
        receiver: Receiver,
        *,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        content_type: str = JSON,
        stale: bool = False,
    ) -> str:
        """Send one request and pass the answer to `receiver` until it is whole. Returns its Retry-After.

        A redirect is an answer like any other and is not followed, so that no key goes to another server.

        A reused connection that turns out to be closed before any byte came is replaced once; `stale` says
        that one was used in vain already. Raises UnreachableError (no connection) or EngineError (broken,
        cut, too slow, too large), or what the receiver raised. Cancelling closes the connection at once.
        """
        message = self._message(method, path, body, headers, content_type)
        connection = None
        if not stale:
            connection = self._take() or await self._connect()
            try:
                await connection.exchange(message, receiver)
            except StaleConnectionError:
                connection = None
        if connection is None:
            try:
                connection = await self._connect()
            except UnreachableError as error:  # it had taken the request
                raise LostEngineError(error.message) from error
            await connection.exchange(message, receiver)
        self.keep(connection)
        return connection.retry_after

    def start(
        self,
        method: str,
        path: str,
        receiver: Receiver,
        over: Callable[[Exception | None], None],
        *,
        body: bytes,
        headers: Mapping[str, str],
    ) -> Connection | None:
        """Send a request on an idle connection without a task; None where there is none.

        `over` is told of its end, as of `Connection.start`, and has to `keep` the connection. After a
        StaleConnectionError `request` can go on with `stale`.
        """
        if not headers:
            connection = self._start(self, method, path, receiver, over, body)
            if connection is not None:
                return connection
        connection = self._take()
        if connection is not None:
            connection.start(self._message(method, path, body, headers, JSON), receiver, over)
        return connection

    def keep(self, connection: Connection) -> None:
        """Have a connection whose answer is whole for the next request, if it can take one."""
        if connection.usable and not self._closed and len(self._idle) < self._max_idle:
            connection.idle_since = monotonic()
            self._idle.append(connection)
        else:
            connection.abort()

    def close(self) -> None:
        """Close idle connections; those in use close when their request ends."""
        self._closed = True
        for connection in list(self._idle):
            connection.abort()
        self._idle.clear()

    def watch(self) -> None:
        """Watch a request that begins. One timer serves all; a chunk only stores a number."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._look_s, self._look)

    def _look(self) -> None:
        self._timer = None
        busy = [connection for connection in self._open if connection.busy]
        if busy:
            self.watch()
            now = monotonic()
            for connection in busy:
                connection.check(now)

    def forget(self, connection: Connection) -> None:
        """Drop a connection that was lost."""
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def _take(self) -> Connection | None:
        oldest = monotonic() - self._keep_idle_s
        while self._idle:
            connection = self._idle.pop()
            if connection.idle_since >= oldest and connection.usable:
                return connection
            connection.abort()
        return None

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.limits.connect_s):
                _, connection = await loop.create_connection(
                    lambda: Connection(self), self._host, self._port, ssl=self._tls
                )
        except TimeoutError as error:
            raise UnreachableError(
                f"No connection to {self._host}:{self._port} within {self.limits.connect_s:g} s."
            ) from error
        except OSError as error:
            reason = error.strerror or str(error)
            raise UnreachableError(f"Nothing answers at {self._host}:{self._port} ({reason}).") from error
        # Not when it is made: uvloop closes one that nobody awaits any more without telling it.
        if connection.usable:
            self._open.add(connection)
        return connection

    def _message(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str] | None, content_type: str
    ) -> bytes:
        head = self._heads.get((method, path)) or self._head(method, path)
        if headers:
            head += "".join([f"{name}: {value}\r\n" for name, value in headers.items()]).encode("latin-1")
        if not body:
            return head + b"\r\n"
        kind = _JSON_LINE if content_type is JSON else f"content-type: {content_type}\r\n".encode("latin-1")
        return b"%b%bcontent-length: %d\r\n\r\n%b" % (head, kind, len(body), body)

    def _head(self, method: str, path: str) -> bytes:
        """What all requests of that kind begin with."""
        lines = (
            f"{method} {self._prefix}{path} HTTP/1.1",
            f"host: {self._netloc}",
            "accept-encoding: identity\r\n",
        )
        head = self._heads[method, path] = "\r\n".join(lines).encode("latin-1")
        return head
