"""The contract of every queue: what is put, what is leased, and the ten things that a queue does.

Every implementation passes `sage.platform.testing.queues.QueueConformance`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

from sage.common.errors import BadRequestError, ConflictError, OverloadedError, RequestTooLargeError

__all__ = [
    "MAX_LEASE",
    "PRIORITIES",
    "DeadLetter",
    "Lease",
    "LeaseLostError",
    "Message",
    "Queue",
    "QueueOptions",
    "QueueStats",
    "check",
    "check_lease",
    "full",
    "lost",
]

PRIORITIES = range(256)
MAX_LEASE = 86_400


class LeaseLostError(ConflictError):
    """The lease has ended: the message is somebody else's by now, or done."""

    code: ClassVar[str] = "lease_lost"


@dataclass(frozen=True, slots=True)
class Message:
    """What a producer puts.

    `priority`: 0 to 255, higher first. `delay`: seconds until a consumer may see it. `key`: a second put with
    the same key is the first one again (same id, nothing stored), while the message is there and for
    `QueueOptions.remember` seconds after it was acknowledged.
    """

    body: bytes
    priority: int = 0
    delay: float = 0.0
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Lease:
    """A message that is this consumer's until `leased_until` (Unix seconds, by the clock of the queue).

    `attempts` counts the leases of this message, this one included; `token` grows with each lease of it, and
    can fence what the consumer writes elsewhere. `reason`: why the attempt before failed, "" if none did.
    """

    id: str
    body: bytes
    priority: int
    attempts: int
    leased_until: float
    token: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that failed `QueueOptions.max_attempts` times; `reason` is why it did the last time."""

    id: str
    body: bytes
    priority: int
    attempts: int
    reason: str


@dataclass(frozen=True, slots=True)
class QueueOptions:
    """Bounds and patience of one queue.

    `max_items` and `max_bytes` (of bodies) bound what is waiting or leased; dead letters do not count. A put
    waits up to `patience` seconds for room. `remember`: see `Message.key`.
    """

    max_items: int = 100_000
    max_bytes: int = 256 * 1024 * 1024
    max_attempts: int = 5
    patience: float = 30.0
    remember: float = 3600.0

    def __post_init__(self) -> None:
        for name in ("max_items", "max_bytes", "max_attempts"):
            if getattr(self, name) < 1:
                raise BadRequestError(f"{name} is {getattr(self, name)}; valid is 1 or more.", param=name)
        for name in ("patience", "remember"):
            if not getattr(self, name) >= 0:
                raise BadRequestError(f"{name} is {getattr(self, name)}; valid is 0 or more.", param=name)


@dataclass(frozen=True, slots=True)
class QueueStats:
    """How many messages are where; `bytes` is the size of the bodies of all but the dead ones."""

    ready: int = 0
    delayed: int = 0
    leased: int = 0
    dead: int = 0
    bytes: int = 0

    @property
    def items(self) -> int:
        """What counts against `QueueOptions.max_items`."""
        return self.ready + self.delayed + self.leased


@runtime_checkable
class Queue(Protocol):
    """A queue: at least once, one consumer per lease, higher priority first, in the order of puts within one.

    A message that comes back, because its lease ended or by `nack`, is ahead of those that were put after it.
    A delayed message takes its place when its delay is over.
    """

    async def put(self, body: bytes, *, priority: int = 0, delay: float = 0.0, key: str | None = None) -> str:
        """Store a message and return its id; when this returns, a durable queue has it on disk.

        Waits for room. Raises OverloadedError if there is none within `QueueOptions.patience`,
        RequestTooLargeError if there could never be, BadRequestError for a priority or delay that is none.
        """
        ...

    async def put_many(self, messages: Sequence[Message]) -> list[str]:
        """Store all of them or none, as `put`, and return their ids in order. No messages: no ids."""
        ...

    async def get(self, limit: int = 1, *, wait: float | None = None, lease: float = 30.0) -> list[Lease]:
        """Lease up to `limit` messages for `lease` seconds; waits until there is one.

        Waits `wait` seconds at most (None: as long as it takes; 0: not at all), then returns an empty list.
        A cancelled get leaves no lease behind.
        """
        ...

    async def ack(self, *leases: Lease) -> None:
        """These are done: they never come again.

        Raises LeaseLostError that names those whose lease had ended; the others are done all the same.
        """
        ...

    async def nack(self, lease: Lease, *, delay: float = 0.0, reason: str = "") -> None:
        """This attempt failed: again after `delay` seconds, or to the dead letters if it was the last one.

        Raises LeaseLostError.
        """
        ...

    async def extend(self, lease: Lease, seconds: float) -> Lease:
        """The same lease, which now ends in `seconds` from now. Raises LeaseLostError."""
        ...

    async def stats(self) -> QueueStats:
        """How many messages are where, now."""
        ...

    async def dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        """Those that failed too often, oldest first."""
        ...

    async def requeue(self, *ids: str) -> int:
        """Make these dead letters, or all, ready again as if never tried; how many it were."""
        ...

    async def close(self) -> None:
        """Let go of what this object holds. What is stored stays; leases end by themselves."""
        ...


def check(messages: Sequence[Message], options: QueueOptions) -> int:
    """The size of all bodies. Raises as `Queue.put` says, if these messages can never be put."""
    size = 0
    for message in messages:
        size += len(message.body)
        if message.priority not in PRIORITIES:
            raise BadRequestError(f"The priority is {message.priority}; valid is 0 to 255.", param="priority")
        if not 0 <= message.delay < float("inf"):
            raise BadRequestError(f"The delay is {message.delay}; valid is 0 or more seconds.", param="delay")
    if len(messages) > options.max_items or size > options.max_bytes:
        raise RequestTooLargeError(
            f"{len(messages)} messages of {size} bytes never fit into a queue of {options.max_items} items"
            f" and {options.max_bytes} bytes.",
            hint="Put fewer at once, or give the queue larger bounds.",
        )
    return size


def check_lease(limit: int, seconds: float) -> None:
    """Raises BadRequestError if nobody can lease that many messages, or for so long."""
    if limit < 1:
        raise BadRequestError(f"The limit is {limit}; valid is 1 or more messages.", param="limit")
    if not 0 < seconds <= MAX_LEASE:
        raise BadRequestError(f"The lease is {seconds} s; valid is up to {MAX_LEASE} s.", param="lease")


def full(name: str, options: QueueOptions) -> OverloadedError:
    """The error of a put that found no room in time."""
    return OverloadedError(
        f"The queue {name} is full ({options.max_items} items or {options.max_bytes} bytes) and did not get"
        f" room within {options.patience:g} s.",
        hint="Add consumers, or put more slowly.",
        retry_after=max(1.0, options.patience),
    )


def lost(*ids: str) -> LeaseLostError:
    """The error of a consumer that was too slow."""
    return LeaseLostError(
        f"The lease of {', '.join(ids)} has ended.",
        hint="Lease for longer, or extend the lease while the work goes on.",
    )
