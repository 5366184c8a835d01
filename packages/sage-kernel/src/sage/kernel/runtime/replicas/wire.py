"""What passes between a run and its worker processes: pickles of protocol 5, large ones in shared memory.

A message is a head (the length of the pickle, how many buffers it left out, where they are), the lengths of
these buffers, and, below `SHARED` bytes in all, the pickle and the buffers. Larger ones are in an area that
both sides map, and the socket carries the rest.
"""

from __future__ import annotations

import mmap
import os
import pickle
from collections.abc import Callable, Sequence
from struct import Struct, unpack_from
from struct import pack as pack_lengths
from typing import Any, Final, TypeAlias

__all__ = ["SHARED", "Area", "Part", "message", "pack", "read", "receive", "unpack"]

Part: TypeAlias = "bytes | memoryview"
SHARED: Final = 64 * 1024
_HEAD: Final = Struct("=QI?")


def pack(value: Any) -> list[Part]:
    """The pickle of a value and the buffers beside it."""
    parts: list[Part] = []
    data = pickle.dumps(value, 5, buffer_callback=lambda buffer: parts.append(buffer.raw()))
    parts.insert(0, data)
    return parts


def unpack(parts: Sequence[Any]) -> Any:
    """The value; its buffers are those given, which are its own from now on."""
    return pickle.loads(parts[0], buffers=parts[1:])  # noqa: S301 - both sides are the run's own


class Area:
    """A piece of memory that two processes share; it grows with the largest message."""

    def __init__(self, fd: int = -1) -> None:
        self.fd = fd if fd >= 0 else _nameless()
        self._map: mmap.mmap | None = None

    def write(self, parts: Sequence[Part], size: int) -> None:
        """Put the parts there, one behind the other."""
        if self._map is None or len(self._map) < size:
            size = 1 << (size - 1).bit_length()
            os.ftruncate(self.fd, size)
        area, at = self._mapped(size), 0
        for part in parts:
            end = at + len(part)
            area[at:end] = part
            at = end

    def read(self, lengths: Sequence[int]) -> list[bytearray]:
        """A copy of each part: what is made of them outlives the area's next message."""
        size, at, parts = sum(lengths), 0, []
        with memoryview(self._mapped(size)) as area:
            for length in lengths:
                parts.append(bytearray(area[at : at + length]))
                at += length
        return parts

    def close(self) -> None:
        """Give it back."""
        if self._map is not None:
            self._map.close()
            self._map = None
        os.close(self.fd)

    def _mapped(self, size: int) -> mmap.mmap:
        if self._map is None or len(self._map) < size:
            if self._map is not None:
                self._map.close()
            self._map = mmap.mmap(self.fd, os.fstat(self.fd).st_size)
        return self._map


def message(parts: Sequence[Part], area: Area) -> bytes:
    """What to send for these parts."""
    first, buffers = len(parts[0]), [len(part) for part in parts[1:]]
    size, shared = first + sum(buffers), False
    if size >= SHARED:
        area.write(parts, size)
        shared, parts = True, ()
    return b"".join(
        (_HEAD.pack(first, len(buffers), shared), pack_lengths(f"={len(buffers)}Q", *buffers), *parts)
    )


def read(data: bytes | bytearray, area: Area) -> tuple[list[Any], int] | None:
    """The parts of the first message in `data` and its length there; None while it is not whole."""
    if len(data) < _HEAD.size:
        return None
    first, count, shared = _HEAD.unpack_from(data)
    at = _HEAD.size + 8 * count
    if len(data) < at:
        return None
    buffers = unpack_from(f"={count}Q", data, _HEAD.size)
    if shared:
        return list(area.read((first, *buffers))), at
    if len(data) < at + first + sum(buffers):
        return None
    parts, at = [data[at : at + first]], at + first
    for length in buffers:
        parts.append(bytearray(data[at : at + length]))
        at += length
    return parts, at


def _nameless() -> int:
    """A file in memory without a name: it is gone with the last process that has it open."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("sage-batch")
    from tempfile import TemporaryFile  # which Linux needs not, and it costs a worker 10 ms

    with TemporaryFile() as file:
        return os.dup(file.fileno())


def receive(recv: Callable[[int], bytes], area: Area) -> list[Any] | None:
    """The next message from a blocking socket, of which one is under way at most; None at its end."""
    data = bytearray()
    while (found := read(data, area)) is None:
        more = recv(SHARED)
        if not more:
            return None
        data += more
    return found[0]
