"""Serve the studio until a signal."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import uvicorn

from sage.common.errors import ConflictError
from sage.studio.app import make_app
from sage.studio.feed import PERIOD_S, Feed, Source
from sage.studio.session import Gate

__all__ = ["Studio", "listen", "serve"]

LOOPBACK = "127.0.0.1"


class Studio(uvicorn.Server):
    """A uvicorn server that ends its event streams first: they would hold up the shutdown for ever."""

    def __init__(self, source: Source, port: int, *, period: float = PERIOD_S) -> None:
        gate = Gate()
        self.url = f"http://{LOOPBACK}:{port}/login?token={gate.token}"
        self._feed = Feed(source, period=period)
        app = make_app(self._feed, gate, port=port)
        super().__init__(
            uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, lifespan="off")
        )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop serving."""
        self._feed.close()
        await super().shutdown(sockets)


def listen(port: int) -> socket.socket:
    """A loopback listener; port 0 takes a free one. Raises ConflictError when the port is in use."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((LOOPBACK, port))
        sock.listen(128)
    except OSError as error:
        sock.close()
        raise ConflictError(
            f"Port {port} on {LOOPBACK} cannot be used: {error.strerror}.",
            hint="Choose another with --port; 0 takes a free one.",
        ) from None
    return sock


def serve(source: Source, port: int, *, on_ready: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM. `on_ready` gets the login URL once the port accepts connections."""
    sock = listen(port)
    studio = Studio(source, sock.getsockname()[1])
    on_ready(studio.url)
    asyncio.run(studio.serve(sockets=[sock]))
