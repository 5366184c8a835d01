"""The requests that a job has taken and not answered, and the replies that it has given: what a journal says.

Pure: records go in, and what a checkpoint keeps comes out, as bytes by key.
"""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from sage.kernel.runtime.state import Changes, unpickled

__all__ = ["NOTHING", "REPLIES", "REPLY_BYTES", "Note", "Record", "Request", "Table"]

NOTHING: Final[Any] = object()
"""What stands for a reply that is not there yet."""

REPLIES = 10_000
REPLY_BYTES = 64 << 20
"""So many replies are kept for whoever asks again, and so many bytes of them."""


class Note(NamedTuple):
    """What an operator made of one of its inputs, and the states that this changed, if any."""

    operator: str
    digest: bytes
    data: bytes
    keys: tuple[bytes, ...] = ()
    states: tuple[bytes, ...] = ()


Opened: TypeAlias = "tuple[Literal['open'], int, str, bytes, bytes]"  # number, id, digest, item
Noted: TypeAlias = "tuple[Literal['note'], int, tuple[Any, ...]]"  # number, the parts of a `Note`
Ended: TypeAlias = "tuple[Literal['end'], int, bytes | None]"  # number, reply
Record: TypeAlias = "Opened | Noted | Ended"


@dataclass(slots=True, eq=False)
class Request:
    """One that is not answered. `left`: of its notes those that were not given back yet.

    `reply` and `error`: what it came to, once it is `over`; neither, if its caller has cancelled it.
    """

    number: int
    id: str
    digest: bytes
    item: bytes
    notes: list[Note] = field(default_factory=list)
    left: dict[tuple[str, bytes], list[bytes]] = field(default_factory=dict)
    over: asyncio.Event | None = None
    reply: Any = NOTHING
    error: Exception | None = None

    def take_up(self) -> None:
        """What it has had is to be given back."""
        for note in self.notes:
            self.left.setdefault((note.operator, note.digest), []).append(note.data)

    def find(self, operator: str, digest: bytes) -> bytes | None:
        """What an operator had made of this input, once for each time that it had."""
        left = self.left.get((operator, digest))
        return left.pop(0) if left else None


class Table:
    """All requests of a job that count. `requests` and `reply`: the names under which they are kept."""

    def __init__(self, requests: str, reply: str) -> None:
        self._requests = requests
        self._reply = reply
        self.open: dict[int, Request] = {}
        self.by_id: dict[str, Request] = {}
        self.replies: dict[str, tuple[int, bytes, bytes]] = {}
        """By id: which one it was, the digest of the item, the reply; the oldest first."""
        self._replied = 0
        self._bytes = 0
        self.next = 1
        self._touched: set[int] = set()
        self._kept: set[int] = set()  # those that a checkpoint has
        self.changed: dict[str, dict[bytes, bytes]] = {}
        """By name, what has changed since the last checkpoint."""

    @property
    def dirty(self) -> bool:
        """Whether anything has."""
        return bool(self._touched or self.changed)

    def restore(self, states: Mapping[str, Mapping[bytes, bytes]], following: int) -> None:
        """Go on from a checkpoint; the next request has the number `following`."""
        self.next = following
        what = "a request"
        for data in states.get(self._requests, {}).values():
            number, ident, digest, item, notes = unpickled(data, what)
            self._add(Request(number, ident, digest, item, [Note(*note) for note in notes]))
        self._kept = set(self.open)
        found = {
            key.decode(): unpickled(data, "a reply") for key, data in states.get(self._reply, {}).items()
        }
        self.replies = dict(sorted(found.items(), key=lambda one: one[1][0]))
        self._replied = max((which for which, _, _ in self.replies.values()), default=0)
        self._bytes = sum(len(reply) for _, _, reply in self.replies.values())

    def apply(self, record: Record) -> None:
        """Something has happened."""
        if record[0] == "open":
            _, number, ident, digest, item = record
            self.next = number + 1
            self._add(Request(number, ident, digest, item))
        elif record[0] == "note":
            note = Note(*record[2])
            if request := self.open.get(record[1]):  # else it was in a part of the journal that is lost
                request.notes.append(note)
            if note.keys:
                changed = zip(note.keys, note.states, strict=True)
                self.changed.setdefault(note.operator, {}).update(changed)
        elif request := self.open.pop(record[1], None):
            self._end(request, record[2])
        self._touched.add(record[1])

    def snapshot(self) -> dict[str, Changes]:
        """What has changed since the last one, by name."""
        requests = self.changed.setdefault(self._requests, {})
        for number in self._touched:
            if one := self.open.get(number):
                data = (one.number, one.id, one.digest, one.item, list(map(tuple, one.notes)))
                requests[b"%d" % number] = pickle.dumps(data, pickle.HIGHEST_PROTOCOL)
                self._kept.add(number)
            elif number in self._kept:
                requests[b"%d" % number] = b""
                self._kept.remove(number)
        found = {name: Changes(list(one), list(one.values())) for name, one in self.changed.items()}
        self.changed, self._touched = {}, set()
        return found

    def _add(self, request: Request) -> None:
        self.open[request.number] = request
        if request.id:
            self.by_id[request.id] = request

    def _end(self, request: Request, reply: bytes | None) -> None:
        if not request.id:
            return
        del self.by_id[request.id]
        if reply is not None:
            self._replied += 1
            kept = self.replies[request.id] = (self._replied, request.digest, reply)
            self._bytes += len(reply)
            self._note_reply(request.id, pickle.dumps(kept, pickle.HIGHEST_PROTOCOL))
            while len(self.replies) > REPLIES or self._bytes > REPLY_BYTES:
                oldest = next(iter(self.replies))
                self._bytes -= len(self.replies.pop(oldest)[2])
                self._note_reply(oldest, b"")

    def _note_reply(self, ident: str, data: bytes) -> None:
        self.changed.setdefault(self._reply, {})[ident.encode()] = data
