"""Every TCP port SAGE uses, in one place."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from dataclasses import dataclass

from sage.common.errors import ConflictError

__all__ = ["SagePorts", "find_free", "is_free"]

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class SagePorts:
    """The default ports; a range is inclusive at both ends."""

    gateway: int = 8888
    health: int = 8887
    admin: int = 8886
    studio: int = 8889
    ray: int = 6380
    llm: tuple[int, int] = (8001, 8089)
    embedding: tuple[int, int] = (8090, 8199)
    benchmark: tuple[int, int] = (8901, 8999)


def is_free(port: int, host: str = LOOPBACK) -> bool:
    """Whether a listener could bind `host:port` at this moment."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def find_free(span: tuple[int, int], *, taken: Iterable[int] = (), host: str = LOOPBACK) -> int:
    """The lowest free port of an inclusive range, leaving out `taken`.

    Raises ConflictError when the whole range is in use.
    """
    low, high = span
    avoid = set(taken)
    for port in range(low, high + 1):
        if port not in avoid and is_free(port, host):
            return port
    raise ConflictError(
        f"No free port between {low} and {high} on {host}.",
        hint="Stop what listens there, or set another range under `ports:` in sage.yaml.",
    )
