"""`FsspecBlobs`: blobs in a local folder, in memory, or on any object store that fsspec knows.

A blob is one file: its bytes, then their SHA-256 (32 bytes) and their number (8 bytes, big-endian).
"""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from collections.abc import AsyncIterable, AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import fsspec  # type: ignore[import-untyped]

from sage.common.errors import NotFoundError, SageError, UsageError
from sage.platform.state import FileSystem, explain
from sage.platform.storage.port import BlobStat, encode

__all__ = ["FsspecBlobs"]

_TAIL = 40
_SUFFIX = ".blob"
_LONGEST = 230  # of an escaped name; a temporary file's name is a little longer, and 255 is the end
_SPOOL = 8 << 20
_CHUNK = 1 << 20


class FsspecBlobs:
    """`Blobs` below an fsspec URL: a path or `file://` (temporary file, fsync, rename, fsync of the folder),
    `memory://`, `s3://` and the like. All of it runs in worker threads. `options` go to the file system.
    """

    def __init__(self, url: str, *, fs: FileSystem | None = None, **options: Any) -> None:
        self._remote, self._root = fsspec.core.url_to_fs(url, **options)
        self._url = url
        self._fs = fs or FileSystem()
        local = self._remote.protocol
        self._local = "file" in ((local,) if isinstance(local, str) else local)
        self._remote.makedirs(self._root, exist_ok=True)

    async def put(self, name: str, data: bytes) -> BlobStat:
        """See `Blobs.put`."""

        async def one() -> AsyncIterator[bytes]:
            yield data

        return await self.put_stream(name, one())

    async def put_stream(self, name: str, chunks: AsyncIterable[bytes]) -> BlobStat:
        """See `Blobs.put_stream`."""
        path = self._path(name)
        digest, size = hashlib.sha256(), 0
        with tempfile.SpooledTemporaryFile(_SPOOL) as spool:
            async for chunk in chunks:
                size += len(chunk)
                await asyncio.to_thread(_add, digest, spool, chunk)
            spool.write(digest.digest() + size.to_bytes(8, "big"))
            spool.seek(0)
            await asyncio.to_thread(self._store_local if self._local else self._store, path, spool)
        return BlobStat(size, digest.hexdigest())

    async def get(self, name: str) -> bytes:
        """See `Blobs.get`."""
        return b"".join([chunk async for chunk in self.stream(name)])

    async def stream(self, name: str, chunk: int = _CHUNK) -> AsyncIterator[bytes]:
        """See `Blobs.stream`."""
        if chunk < 1:
            raise UsageError(f"The chunk is {chunk} bytes; valid is 1 or more.")
        file, stat = await asyncio.to_thread(self._open, name)
        try:
            digest, left = hashlib.sha256(), stat.size
            while left:
                data = await asyncio.to_thread(file.read, min(chunk, left))
                if not data:
                    break
                left -= len(data)
                digest.update(data)
                yield data
        finally:
            await asyncio.to_thread(file.close)
        if digest.hexdigest() != stat.checksum:
            raise self._damaged(name)

    async def list(self, prefix: str = "") -> list[str]:
        """See `Blobs.list`."""
        paths = await asyncio.to_thread(self._remote.ls, self._root, detail=False, refresh=True)
        ends = [str(path).rpartition("/")[2] for path in paths]
        names = [unquote(end[: -len(_SUFFIX)]) for end in ends if end.endswith(_SUFFIX)]
        return sorted(name for name in names if name.startswith(prefix))

    async def delete(self, name: str) -> bool:
        """See `Blobs.delete`."""
        return await asyncio.to_thread(self._delete, self._path(name))

    async def stat(self, name: str) -> BlobStat:
        """See `Blobs.stat`."""
        file, stat = await asyncio.to_thread(self._open, name)
        await asyncio.to_thread(file.close)
        return stat

    def _path(self, name: str) -> str:
        if not name:
            raise UsageError("The name of the blob is empty; valid is any other text.")
        escaped = quote(encode(name, "name"), safe="")
        if len(escaped) > _LONGEST:
            raise UsageError(
                f"The name of the blob has {len(escaped)} characters when escaped; valid is ≤ {_LONGEST}."
            )
        return f"{self._root.rstrip('/')}/{escaped}{_SUFFIX}"

    def _open(self, name: str) -> tuple[Any, BlobStat]:
        """The file, at its begin, and what it should hold."""
        path = self._path(name)
        try:
            file = self._remote.open(path, "rb")
        except FileNotFoundError as error:
            raise NotFoundError(f"There is no blob {name!r} in {self._url}.") from error
        length = file.seek(0, 2)
        file.seek(max(length - _TAIL, 0))
        tail = file.read(_TAIL)
        file.seek(0)
        size = int.from_bytes(tail[32:], "big")
        if size + _TAIL != length:
            file.close()
            raise self._damaged(name)
        return file, BlobStat(size, tail[:32].hex())

    def _damaged(self, name: str) -> SageError:
        return SageError(
            f"The blob {name!r} in {self._url} does not have its checksum.", hint="Restore it from a copy."
        )

    def _store(self, path: str, spool: Any) -> None:
        self._remote.pipe_file(path, spool.read())

    def _store_local(self, path: str, spool: Any) -> None:
        target = Path(path)
        try:
            fd, temporary = self._fs.create(target)
            try:
                with open(fd, "wb", buffering=0, closefd=True):
                    while data := spool.read(_CHUNK):
                        self._fs.write(fd, data)
                    self._fs.sync(fd)
                self._fs.rename(temporary, target)
            except OSError:
                temporary.unlink(missing_ok=True)
                raise
            self._fs.sync_folder(target.parent)
        except OSError as error:
            raise explain(error, target) from error

    def _delete(self, path: str) -> bool:
        try:
            self._remote.rm_file(path)
        except FileNotFoundError:
            return False
        if self._local:
            self._fs.sync_folder(Path(path).parent)
        return True


def _add(digest: Any, spool: Any, chunk: bytes) -> None:
    digest.update(chunk)
    spool.write(chunk)
