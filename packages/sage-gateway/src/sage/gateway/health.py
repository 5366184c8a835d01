"""`/healthz` and `/readyz`, on a thread and an event loop of their own.

The serving loop publishes a snapshot a few times a second; here it is only read, so that the answers stay
fast whatever the load, and a serving loop that hangs shows as a snapshot that is old.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import msgspec

from sage.gateway.edge import hostname, request_id_of

__all__ = ["Health", "Snapshot"]

STALE_READY_S: Final = 5.0
STALE_ALIVE_S: Final = 30.0
READ_S: Final = 2.0
MAX_HEAD: Final = 8192
HOSTS: Final = (b"127.0.0.1", b"localhost", b"[::1]")  # another name leads here only by DNS rebinding


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the serving loop knew at monotonic time `at`; `missing` says why it is not ready."""

    at: float
    missing: tuple[str, ...]


class Health:
    """The health listener. `publish` may be called from any thread."""

    def __init__(self, sock: socket.socket, *, now: Callable[[], float] = time.monotonic) -> None:
        self._sock = sock
        self._now = now
        self._snapshot = Snapshot(now(), ("starting",))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="sage-health", daemon=True)
        self._server: asyncio.Server | None = None

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._sock.getsockname()[1])

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def publish(self, snapshot: Snapshot) -> None:
        """What to answer from now on."""
        self._snapshot = snapshot

    def stop(self) -> None:
        """Stop answering and free the port."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5.0)

    def answer(self, path: str) -> tuple[int, bytes]:
        """Status and JSON body for a path."""
        snapshot = self._snapshot
        age = self._now() - snapshot.at
        if path == "/healthz":
            alive = age < STALE_ALIVE_S
            body = {"status": "ok" if alive else "stuck", "heartbeat_age_s": round(age, 3)}
            return (200 if alive else 503), msgspec.json.encode(body)
        if path == "/readyz":
            stale = [f"the serving loop has not moved for {age:.0f} s"] if age > STALE_READY_S else []
            missing = [*snapshot.missing, *stale]
            state = "not ready" if missing else "ready"
            return (503 if missing else 200), msgspec.json.encode({"status": state, "missing": missing})
        return 404, msgspec.json.encode({"status": "not found", "paths": ["/healthz", "/readyz"]})

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._server = self._loop.run_until_complete(
            asyncio.start_server(self._serve, sock=self._sock, limit=MAX_HEAD)
        )
        try:
            self._loop.run_forever()
        finally:
            self._server.close()
            for task in asyncio.all_tasks(self._loop):
                task.cancel()
            self._loop.run_until_complete(asyncio.sleep(0))
            self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(READ_S):
                head = await reader.readuntil(b"\r\n\r\n")
                status, body = self._respond(head)
                writer.write(
                    b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
                    b"cache-control: no-store\r\nconnection: close\r\nx-request-id: %b\r\n\r\n"
                    % (status, HTTPStatus(status).phrase.encode(), len(body), _ident(head).encode())
                )
                writer.write(body)
                await writer.drain()
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # a probe that does not finish its request gets no answer
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    def _respond(self, head: bytes) -> tuple[int, bytes]:
        line, *fields = head.split(b"\r\n")
        hosts = [
            value.strip() for name, _, value in (f.partition(b":") for f in fields) if name.lower() == b"host"
        ]
        if len(hosts) != 1:
            return 400, msgspec.json.encode({"status": "one Host header is needed"})
        if hostname(hosts[0]) not in HOSTS:
            return 403, msgspec.json.encode(
                {"status": "host not allowed", "hosts": [h.decode() for h in HOSTS]}
            )
        method, _, rest = line.partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0].decode("latin-1")
        if method != b"GET":
            return 405, msgspec.json.encode({"status": "method not allowed"})
        return self.answer(path)


def _ident(head: bytes) -> str:
    """The caller's `x-request-id`, or a new one."""
    fields = (line.partition(b":") for line in head.split(b"\r\n")[1:])
    return request_id_of((name.lower(), value.strip()) for name, _, value in fields)
