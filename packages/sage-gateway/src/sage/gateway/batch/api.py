"""`/v1/files` and `/v1/batches`: what comes over HTTP, turned into what files and batches do."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, BinaryIO, Literal, TypeVar

from fastapi import Query, Request
from fastapi.responses import FileResponse
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from sage.common.batch import BatchInfo, BatchList, BatchSpec, FileDeleted, FileInfo, FileList
from sage.common.errors import BadRequestError
from sage.gateway.app import Handlers, principal_of
from sage.gateway.batch.files import Files
from sage.gateway.batch.filestore import FileRecord
from sage.gateway.batch.service import Batches
from sage.gateway.batch.states import info
from sage.gateway.batch.tables import Page

__all__ = ["batch_handlers", "file_handlers"]

MAX_FILES = 10_000
MAX_BATCHES = 100
Order = Literal["asc", "desc"]
_Item = TypeVar("_Item", FileInfo, BatchInfo)


def file_handlers(files: Files) -> Handlers:
    """What serves `/v1/files`. A file is its key's; another key finds none of that id."""

    async def upload_file(request: Request) -> FileInfo:
        media = request.headers.get("content-type", "")
        return _file(await files.upload(principal_of(request).id, media, _body(request)))

    async def list_files(
        request: Request,
        after: str | None = None,
        limit: Annotated[int, Query(ge=1, le=MAX_FILES)] = MAX_FILES,
        order: Order = "desc",
        purpose: str | None = None,
    ) -> FileList:
        asked = Page(limit, after, order == "desc")
        found, more = await files.listed(principal_of(request).id, asked, purpose)
        data = [_file(one) for one in found]
        first, last = _ends(data)
        return FileList(data=data, first_id=first, last_id=last, has_more=more)

    async def get_file(file_id: str, request: Request) -> FileInfo:
        return _file(await files.get(principal_of(request).id, file_id))

    async def file_content(file_id: str, request: Request) -> FileResponse:
        found, content = await files.open(principal_of(request).id, file_id)
        return _Content(content, found.filename)

    async def delete_file(file_id: str, request: Request) -> FileDeleted:
        await files.delete(principal_of(request).id, file_id)
        return FileDeleted(id=file_id)

    return {
        "upload_file": upload_file,
        "list_files": list_files,
        "get_file": get_file,
        "file_content": file_content,
        "delete_file": delete_file,
    }


def batch_handlers(batches: Batches) -> Handlers:
    """What serves `/v1/batches`."""

    async def create_batch(spec: BatchSpec, request: Request) -> BatchInfo:
        return info(*await batches.create(principal_of(request), spec))

    async def list_batches(
        request: Request,
        after: str | None = None,
        limit: Annotated[int, Query(ge=1, le=MAX_BATCHES)] = 20,
    ) -> BatchList:
        found, more = await batches.listed(principal_of(request).id, Page(limit, after))
        data = [info(*one) for one in found]
        first, last = _ends(data)
        return BatchList(data=data, first_id=first, last_id=last, has_more=more)

    async def get_batch(batch_id: str, request: Request) -> BatchInfo:
        return info(*await batches.get(principal_of(request).id, batch_id))

    async def cancel_batch(batch_id: str, request: Request) -> BatchInfo:
        return info(*await batches.cancel(principal_of(request).id, batch_id))

    return {
        "create_batch": create_batch,
        "list_batches": list_batches,
        "get_batch": get_batch,
        "cancel_batch": cancel_batch,
    }


class _Content(FileResponse):
    """The bytes of a file that is open: its name may be gone before they are out."""

    def __init__(self, content: BinaryIO, filename: str) -> None:
        fd = content.fileno()
        super().__init__(
            f"/dev/fd/{fd}",
            media_type="application/octet-stream",
            filename=filename,
            stat_result=os.fstat(fd),
        )
        self._content = content

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them."""
        with self._content:
            await super().__call__(scope, receive, send)


async def _body(request: Request) -> AsyncIterator[bytes]:
    try:
        async for data in request.stream():
            yield data
    except ClientDisconnect:
        raise BadRequestError("The upload broke off.") from None  # nobody is there to read it


def _file(record: FileRecord) -> FileInfo:
    return FileInfo(
        id=record.id,
        bytes=record.bytes,
        created_at=record.created,
        expires_at=record.expires,
        filename=record.filename,
        purpose=record.purpose,
    )


def _ends(data: Sequence[_Item]) -> tuple[str | None, str | None]:
    return (data[0].id, data[-1].id) if data else (None, None)
