"""Listeners: sockets bound before anything else starts, and a uvicorn server that drains."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from collections.abc import Callable, Iterator
from typing import Any, Final, cast

import uvicorn

from sage.common.errors import ConflictError, SageError, UnavailableError
from sage.gateway.protocol import Gate
from sage.gateway.requests import Settings
from sage.middleware.control_plane.histogram import LogHistogram

__all__ = ["Listener", "bind"]

BACKLOG: Final = 2048
TICK_S: Final = 0.05
LOOKED_AT: Final = 100  # connections in one beat, about: all of thousands would hold up the others
LAST_WORDS_S: Final = 3.0


def bind(host: str, port: int, key: str) -> socket.socket:
    """A bound, listening socket; port 0 = any free one. `key` is its name in the configuration.

    Raises ConflictError that says which port is in use and how to take another.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise ConflictError(
            f"Port {port} on {host} cannot be used ({error.strerror or error}).",
            hint=f"Stop what listens there, or set {key} to another port (0 = any free one) in sage.yaml.",
        ) from error
    sock.setblocking(False)
    return sock


class Listener(uvicorn.Server):
    """One guarded listener. Signals are the composition root's affair; `drain` ends it.

    uvicorn's own shutdown would close a connection whose request runs in our protocol, and it ignores a
    second signal; so both are replaced. `on_beat` is called about twenty times a second.
    """

    def __init__(self, app: Any, settings: Settings, *, on_beat: Callable[[], None] | None = None) -> None:
        protocol = functools.partial(Gate, settings=settings)
        config = uvicorn.Config(
            app,
            http=cast(type[asyncio.Protocol], protocol),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            backlog=BACKLOG,
        )
        super().__init__(config)
        self.settings = settings
        self._on_beat = on_beat
        self._drain_s = 0.0
        self._beats = 0
        self.ready = asyncio.Event()  # set once it accepts
        self.lag = LogHistogram()  # seconds that a beat came too late

    @property
    def gates(self) -> list[Gate]:
        """The open connections."""
        return cast(list[Gate], list(self.server_state.connections))

    def begin_drain(self, seconds: float) -> None:
        """Stop accepting now; what was let in has `seconds` to finish."""
        self._drain_s = seconds
        self.should_exit = True
        for server in self.servers:
            server.close()

    def hurry(self) -> None:
        """End what is still under way now."""
        self.force_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield

    async def main_loop(self) -> None:
        """Beat until told to exit."""
        self.ready.set()
        loop = asyncio.get_running_loop()
        counter = 0
        while not self.should_exit:
            if counter % 20 == 0:
                await super().on_tick(0)  # the Date header, once a second
            await self._beat()
            counter += 1
            due = loop.time() + TICK_S
            await asyncio.sleep(TICK_S)
            self.lag.add(max(0.0, loop.time() - due))

    async def _beat(self) -> None:
        """Look at the next connections. Of thousands that came together the time is over together, too."""
        now = asyncio.get_running_loop().time()
        gates = self.gates
        slices = len(gates) // LOOKED_AT + 1
        for gate in gates[self._beats % slices :: slices]:
            if gate.check(now):  # it is told so, and others go on between
                await asyncio.sleep(0)
        self._beats += 1
        if self._on_beat is not None:
            self._on_beat()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish what was let in, then answer the rest with an error and close."""
        for server in self.servers:
            server.close()
        for sock in sockets or []:
            sock.close()
        loop = asyncio.get_running_loop()
        await self._until_empty(loop.time() + self._drain_s, ask=True)
        error: SageError = UnavailableError("The gateway is shutting down.", retry_after=5.0)
        for gate in self.gates:
            gate.end_now(error)
        self.force_exit = False
        await self._until_empty(loop.time() + LAST_WORDS_S)
        for gate in self.gates:
            gate.transport.abort()

    async def _until_empty(self, deadline: float, *, ask: bool = False) -> None:
        loop = asyncio.get_running_loop()
        while self.server_state.connections and not self.force_exit and loop.time() < deadline:
            if ask:
                for gate in self.gates:
                    gate.shutdown()
            await self._beat()
            await asyncio.sleep(TICK_S)
