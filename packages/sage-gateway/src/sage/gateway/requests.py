"""What a connection holds of a request, and what all connections of one listener share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from sage.common.errors import SageError
from sage.gateway.connections import Connections
from sage.gateway.edge import Admission, Deadlines, Edge, HeadLimits, trace_of
from sage.gateway.reply import Answer, Flow, Reply
from sage.gateway.watch import Watch
from sage.middleware.engines.dialects.envelopes import Envelope, envelope_at, envelope_of

__all__ = ["Handler", "HotRequest", "Pending", "Settings", "reply_to", "too_much"]

MAX_PIPELINED: Final = 32


class HotRequest(msgspec.Struct):
    """A complete request on a hot route. `task` serves it; `ending`: why it was told to end, if by us."""

    id: str
    admission: Admission
    headers: dict[bytes, bytes]
    body: bytes
    task: asyncio.Task[None] | None = None
    ending: SageError | None = None


Handler = Callable[[HotRequest, Answer], Coroutine[Any, Any, None]]


@dataclass(frozen=True, slots=True)
class Settings:
    """What every connection of one listener shares."""

    edge: Edge
    handler: Handler | None = None
    head: HeadLimits = field(default_factory=HeadLimits)
    deadlines: Deadlines = field(default_factory=Deadlines)
    connections: Connections = field(default_factory=Connections)
    active: set[str] = field(default_factory=set)  # ids of hot requests under way
    watch: Watch = field(default_factory=Watch)
    standing: Callable[[str], Sequence[tuple[bytes, bytes]]] = lambda _: ()  # what tells a key its limits


class Pending(msgspec.Struct):
    """One request in line; `refusal` is the answer of one that goes no further."""

    id: str = ""
    method: bytes = b""
    target: bytes = b""
    version: str = "1.1"
    close: bool = False
    raw_headers: list[tuple[bytes, bytes]] = []
    headers: dict[bytes, bytes] = {}
    admission: Admission | None = None
    parts: list[bytes] = []
    size: int = 0
    refusal: SageError | None = None

    @property
    def envelope(self) -> Envelope:
        """How its answer tells of an error: by its route, or where it would be."""
        if self.admission is not None and self.admission.route is not None:
            return envelope_of(self.admission.route, self.id)
        return envelope_at(self.target, self.id)

    def refused(self, error: SageError) -> Pending:
        """What stands in line for it, to be answered with `error` as the last."""
        return Pending(
            self.id,
            self.method,
            target=self.target,
            version=self.version,
            close=True,
            headers=self.headers,
            refusal=error,
        )


def reply_to(item: Pending, transport: asyncio.Transport, flow: Flow, common: bytes) -> Reply:
    """The writer of its answer; `common`: the header lines of every answer."""
    envelope, headers, http10 = item.envelope, item.headers, item.version == "1.0"
    trace = trace_of(headers) if b"traceparent" in headers else b""
    head = common + envelope.head
    return Reply(transport, flow, envelope, head, item.close or http10, http10, trace, item.method == b"HEAD")


def too_much(line: Collection[Pending]) -> bool:
    """Whether more waits on one connection than it may."""
    most = max((item.admission.max_body for item in line if item.admission), default=0)
    return len(line) > MAX_PIPELINED or sum(item.size for item in line) > most
