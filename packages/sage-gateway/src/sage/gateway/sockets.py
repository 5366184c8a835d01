"""The sockets of the three listeners, and how they are reached."""

from __future__ import annotations

import dataclasses
import socket
from typing import Final

from sage.common.config import SageConfig
from sage.common.errors import SageError
from sage.gateway.serve import bind

__all__ = ["LOOPBACK", "Sockets", "port_of", "reachable"]

LOOPBACK: Final = "127.0.0.1"


@dataclasses.dataclass(frozen=True, slots=True)
class Sockets:
    """The three listeners' sockets, all bound or none."""

    data: socket.socket
    admin: socket.socket
    health: socket.socket

    @classmethod
    def bind(cls, config: SageConfig) -> Sockets:
        """Bind all three. Raises ConflictError for the first that is in use, and keeps none."""
        bound: list[socket.socket] = []
        try:
            for host, port, key in (
                (config.gateway.host, config.ports.gateway, "ports.gateway"),
                (LOOPBACK, config.ports.admin, "ports.admin"),
                (LOOPBACK, config.ports.health, "ports.health"),
            ):
                bound.append(bind(host, port, key))
        except SageError:
            for sock in bound:
                sock.close()
            raise
        return cls(*bound)

    def base_url(self, host: str) -> str:
        """Where clients on this machine find OpenAI's API, which listens on `host`."""
        return f"http://{reachable(host)}:{port_of(self.data)}/v1"

    def close(self) -> None:
        """Free all ports."""
        for sock in (self.data, self.admin, self.health):
            sock.close()


def port_of(sock: socket.socket) -> int:
    """The port that it is bound to."""
    return int(sock.getsockname()[1])


def reachable(host: str) -> str:
    """The address by which this machine reaches a listener on `host`."""
    if host in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        return LOOPBACK
    return f"[{host}]" if ":" in host else host
