"""The two ports: small values by key, and large ones by name."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from sage.common.errors import ConflictError, UsageError

__all__ = ["BlobStat", "Blobs", "Check", "Delete", "Entry", "KeyValue", "Put", "Step"]


@dataclass(frozen=True, slots=True)
class Entry:
    """A key, its value, and a version that no other value of this store has or had."""

    key: str
    value: bytes
    version: int


@dataclass(frozen=True, slots=True)
class Put:
    """Set the value; it is gone after `ttl` seconds, if given."""

    namespace: str
    key: str
    value: bytes
    ttl: float | None = None


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove the key, if it is there."""

    namespace: str
    key: str


@dataclass(frozen=True, slots=True)
class Check:
    """The key must have this version now; 0 means that it must not be there."""

    namespace: str
    key: str
    version: int


Step = Put | Delete | Check


class KeyValue(Protocol):
    """Bytes by namespace and key. A change is durable, as far as the store is, when its call returns.

    Keys sort by code points. An entry past its TTL is not there. UsageError for an empty namespace, a
    text that is not valid Unicode, or a TTL that is not above 0.
    """

    async def get(self, namespace: str, key: str) -> Entry | None:
        """The entry, or None."""
        ...

    async def put(
        self, namespace: str, key: str, value: bytes, *, ttl: float | None = None, expect: int | None = None
    ) -> int:
        """Set the value; its new version. With `expect` see `Check`: ConflictError if it does not hold."""
        ...

    async def delete(self, namespace: str, key: str, *, expect: int | None = None) -> bool:
        """Remove the key; whether it was there. With `expect` see `Check`: ConflictError."""
        ...

    async def scan(
        self, namespace: str, prefix: str = "", *, after: str | None = None, limit: int = 1000
    ) -> list[Entry]:
        """The first `limit` entries whose keys begin with `prefix`, in order, behind the key `after`."""
        ...

    async def namespaces(self) -> list[str]:
        """The namespaces that hold something, in order."""
        ...

    async def transact(self, *steps: Step) -> list[int]:
        """Do all steps in order, or none: ConflictError, which names the key, if a check does not hold.

        For each step its new version (put), 1 or 0 for what was there or not (delete), the version (check).
        """
        ...

    async def expire(self) -> int:
        """Remove what is past its TTL for good; how many there were."""
        ...


@dataclass(frozen=True, slots=True)
class BlobStat:
    """The size in bytes and the SHA-256 in hexadecimal digits."""

    size: int
    checksum: str


class Blobs(Protocol):
    """Bytes by name. A name holds all of the old bytes or all of the new ones, whatever happens meanwhile.

    Reading verifies the checksum: SageError that names the blob if a bit is not what was written.
    NotFoundError for a name that is not there, UsageError for one that is empty or too long.
    """

    async def put(self, name: str, data: bytes) -> BlobStat:
        """Store under this name, in place of what was there."""
        ...

    async def put_stream(self, name: str, chunks: AsyncIterable[bytes]) -> BlobStat:
        """`put` of all chunks; if they end with an error, nothing has changed."""
        ...

    async def get(self, name: str) -> bytes:
        """All of it, verified."""
        ...

    def stream(self, name: str, chunk: int = 1 << 20) -> AsyncIterator[bytes]:
        """Its parts of at most `chunk` bytes; a wrong checksum is raised behind the last one."""
        ...

    async def list(self, prefix: str = "") -> list[str]:
        """The names that begin with `prefix`, in order."""
        ...

    async def delete(self, name: str) -> bool:
        """Remove it; whether it was there."""
        ...

    async def stat(self, name: str) -> BlobStat:
        """Size and checksum as written; the bytes are not read."""
        ...


def check_steps(steps: tuple[Step, ...]) -> None:
    """Raise UsageError for what no store takes."""
    for step in steps:
        encode(step.namespace, "namespace")
        encode(step.key, "key")
        if isinstance(step, Put) and step.ttl is not None and not step.ttl > 0:
            raise UsageError(f"The TTL of {step.key!r} is {step.ttl}; valid is above 0 seconds.")


def encode(text: str, what: str) -> bytes:
    """UTF-8. Raises UsageError if that cannot be, or for an empty namespace."""
    if not text and what == "namespace":
        raise UsageError("The namespace is empty; valid is any other text.")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"The {what} {text!r} is not valid Unicode.") from error


def stale(check: Check, found: int) -> ConflictError:
    """A check that does not hold."""
    return ConflictError(
        f"{check.namespace}/{check.key} has version {found}, not {check.version} (0 means absent).",
        hint="Read it again and retry.",
    )
