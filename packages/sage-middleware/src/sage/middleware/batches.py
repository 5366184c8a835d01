"""Files and batches of a running stack, for commands: OpenAI's own API over `Rest`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, urlencode

from pydantic import BaseModel, ValidationError

from sage.common.batch import BatchInfo, BatchList, BatchSpec, FileInfo
from sage.common.errors import SageError
from sage.middleware.rest import Rest

__all__ = ["BatchClient"]

_Answer = TypeVar("_Answer", bound=BaseModel)


class BatchClient:
    """What one key has of files and batches. Each method raises what `Rest` raises."""

    def __init__(self, rest: Rest) -> None:
        self._rest = rest

    def upload(self, file: Path) -> FileInfo:
        """Store a file as the input of a batch."""
        return _read(self._rest.upload("/files", file, {"purpose": "batch"}), FileInfo)

    def content(self, file_id: str) -> Iterator[bytes]:
        """The bytes of a file, piece by piece."""
        return self._rest.chunks(f"/files/{quote(file_id, safe='')}/content")

    def create(self, spec: BatchSpec) -> BatchInfo:
        """Start a batch."""
        return _read(self._rest.call("POST", "/batches", spec.model_dump(exclude_none=True)), BatchInfo)

    def batches(self, limit: int) -> list[BatchInfo]:
        """The newest ones, newest first, at most `limit`."""
        found: list[BatchInfo] = []
        more = True
        while more and len(found) < limit:
            asked = {"limit": min(100, limit - len(found))} | ({"after": found[-1].id} if found else {})
            page = _read(self._rest.call("GET", f"/batches?{urlencode(asked)}"), BatchList)
            found += page.data
            more = page.has_more
        return found

    def batch(self, ident: str) -> BatchInfo:
        """One of them. Raises NotFoundError."""
        return _read(self._rest.call("GET", f"/batches/{quote(ident, safe='')}"), BatchInfo)

    def cancel(self, ident: str) -> BatchInfo:
        """End one early. Raises NotFoundError, and ConflictError if it has ended."""
        return _read(self._rest.call("POST", f"/batches/{quote(ident, safe='')}/cancel"), BatchInfo)


def _read(raw: bytes, to: type[_Answer]) -> _Answer:
    try:
        return to.model_validate_json(raw)
    except ValidationError as exc:
        raise SageError(
            f"The server's answer does not fit: {exc.errors()[0]['msg']}.",
            hint="Are command and server of the same version?",
        ) from exc
