"""What a connection holds of a request, and what all connections of one listener share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import msgspec

from sage.common.errors import SageError
from sage.gateway.accounts import Cancellable
from sage.gateway.connections import Connections
from sage.gateway.edge import Admission, Deadlines, Edge, HeadLimits
from sage.gateway.reply import Answer, Flow, Reply
from sage.gateway.watch import Watch
from sage.middleware.control_plane.facts import Parsed
from sage.middleware.engines.dialects.envelopes import envelope_at, envelope_of

__all__ = ["Handler", "HotRequest", "Over", "Pending", "Server", "Settings", "reply_to", "too_much"]

MAX_PIPELINED: Final = 32


class HotRequest(msgspec.Struct):
    """A complete request on a hot route. `task` serves it; `ending`: why it was told to end, if by us.

    `parsed`: what its body asks for, where that was read before the task began.
    """

    id: str
    admission: Admission
    headers: dict[bytes, bytes]
    body: bytes
    began: float = 0.0  # monotonic seconds
    task: Cancellable | None = None
    ending: SageError | None = None
    parsed: Parsed | None = None


Over = Callable[[HotRequest, Reply], None]


Server = Callable[[HotRequest, Answer], Coroutine[Any, Any, None]]  # in the awaiting task


class Handler(Protocol):
    """Serves the hot requests of connections, each in one of two ways."""

    def __call__(self, request: HotRequest, reply: Answer, /) -> Coroutine[Any, Any, None]:
        """Serve one in the awaiting task, which is its `task`."""
        ...

    def begin(self, request: HotRequest, reply: Reply, over: Over) -> bool:
        """Serve it without a task, which is quicker; False where it needs one, and nothing was charged.

        It is over when `over` is called, once, perhaps before this returns. Until then `request.task` can be
        cancelled. Raises nothing.
        """
        ...


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
    """One request in line; `refusal` is the answer of one that goes no further. `trace`: see `trace_of`."""

    id: str = ""
    method: bytes = b""
    target: bytes = b""
    version: str = "1.1"
    close: bool = False
    raw_headers: list[tuple[bytes, bytes]] = []
    headers: dict[bytes, bytes] = {}
    admission: Admission | None = None
    trace: bytes = b""
    parts: list[bytes] = []
    size: int = 0
    refusal: SageError | None = None

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
    """The writer of its answer; `common`: the header lines of every answer.

    It tells of an error as its route does, or what is where it would be.
    """
    route = None if item.admission is None else item.admission.route
    if route is not None and item.version == "1.1":  # as a rule
        envelope = envelope_of(route, item.id)
        return Reply(transport, flow, envelope, common + envelope.head, item.close, False, item.trace)
    envelope = envelope_at(item.target, item.id) if route is None else envelope_of(route, item.id)
    head, http10 = common + envelope.head, item.version == "1.0"
    return Reply(
        transport, flow, envelope, head, item.close or http10, http10, item.trace, item.method == b"HEAD"
    )


def too_much(line: Collection[Pending]) -> bool:
    """Whether more waits on one connection than it may."""
    most = max((item.admission.max_body for item in line if item.admission), default=0)
    return len(line) > MAX_PIPELINED or sum(item.size for item in line) > most
