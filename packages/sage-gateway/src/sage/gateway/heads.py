"""A request's head that comes again on its connection, and what was found out about it."""

from __future__ import annotations

import msgspec

from sage.gateway.edge import Admission
from sage.middleware.engines.heads import Head

__all__ = ["SeenHead"]


class SeenHead(msgspec.Struct, frozen=True):
    """The head of a request that was let in.

    `own_id`: the client named the request, by the same id each time. `version`: that of the keys; with
    another one it has to be judged anew. `trace`: its `traceparent`.
    """

    head: Head
    headers: dict[bytes, bytes]
    admission: Admission
    own_id: str
    version: int
    trace: bytes
