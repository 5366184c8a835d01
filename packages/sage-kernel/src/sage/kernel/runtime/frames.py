"""Records in a file, one behind the other: length, CRC-32 and payload, so that damage shows."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from zlib import crc32

__all__ = ["DamagedError", "frame", "unframed"]

_HEAD = struct.Struct(">II")


class DamagedError(Exception):
    """The bytes are not what was written."""


def frame(payload: bytes) -> bytes:
    """The payload as a record; it is shorter than 4 GiB."""
    return _HEAD.pack(len(payload), crc32(payload)) + payload


def unframed(parts: Iterable[bytes]) -> Iterator[bytes]:
    """The payloads of records that lie in `parts` in any pieces; `DamagedError` at the first bad one."""
    held, at, number = bytearray(), 0, 0
    for part in parts:
        held += part
        while len(held) - at >= _HEAD.size:
            size, check = _HEAD.unpack_from(held, at)
            start, end = at + _HEAD.size, at + _HEAD.size + size
            if len(held) < end:
                break
            payload = bytes(held[start:end])
            if crc32(payload) != check:
                raise DamagedError(f"record {number} fails its checksum")
            yield payload
            at, number = end, number + 1
        del held[:at]
        at = 0
    if held:
        raise DamagedError(f"record {number} ends in its middle")
