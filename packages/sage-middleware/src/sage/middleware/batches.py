"""Files and batches of a running stack, for commands: OpenAI's own API over `Rest`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlencode

from sage.common.batch import BatchInfo, BatchList, BatchSpec, FileInfo
from sage.middleware.rest import Rest, read_answer

__all__ = ["BatchClient"]


class BatchClient:
    """What one key has of files and batches. Each method raises what `Rest` raises."""

    def __init__(self, rest: Rest) -> None:
        self._rest = rest

    def upload(self, file: Path) -> FileInfo:
        """Store a file as the input of a batch."""
        return read_answer(self._rest.upload("/files", file, {"purpose": "batch"}), FileInfo)

    def content(self, file_id: str) -> Iterator[bytes]:
        """The bytes of a file, piece by piece."""
        return self._rest.chunks(f"/files/{quote(file_id, safe='')}/content")

    def create(self, spec: BatchSpec) -> BatchInfo:
        """Start a batch."""
        return read_answer(self._rest.call("POST", "/batches", spec.model_dump(exclude_none=True)), BatchInfo)

    def batches(self, limit: int) -> list[BatchInfo]:
        """The newest ones, newest first, at most `limit`."""
        found: list[BatchInfo] = []
        more = True
        while more and len(found) < limit:
            asked = {"limit": min(100, limit - len(found))} | ({"after": found[-1].id} if found else {})
            page = read_answer(self._rest.call("GET", f"/batches?{urlencode(asked)}"), BatchList)
            found += page.data
            more = page.has_more
        return found

    def batch(self, ident: str) -> BatchInfo:
        """One of them. Raises NotFoundError."""
        return read_answer(self._rest.call("GET", f"/batches/{quote(ident, safe='')}"), BatchInfo)

    def cancel(self, ident: str) -> BatchInfo:
        """End one early. Raises NotFoundError, and ConflictError if it has ended."""
        return read_answer(self._rest.call("POST", f"/batches/{quote(ident, safe='')}/cancel"), BatchInfo)
