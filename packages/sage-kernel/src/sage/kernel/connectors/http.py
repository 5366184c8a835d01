"""Text and JSON over HTTP, through aiohttp: the extra `sage-kernel[http]`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal
from urllib.parse import urljoin, urlsplit

from sage.common.errors import BadRequestError, ConflictError
from sage.common.ids import new_id
from sage.kernel.connectors.jsonl import parse_lines
from sage.kernel.connectors.plain import json_lines, to_json
from sage.kernel.connectors.text import SLICE, Cutter, Decoder, Place, split
from sage.kernel.connectors.web import Web

__all__ = ["HttpLines", "HttpPages", "HttpPost"]


class HttpLines:
    """The lines of a text at a URL, or its JSON lines, which come as they arrive.

    A connection that breaks is taken up where it broke, and so is a run, with a `Range` request; a server
    that knows none is read from the start. Raises ConflictError where the server's `ETag` tells that the
    text is another. `timeout`: seconds without a byte.
    """

    def __init__(
        self,
        url: str,
        format: Literal["jsonl", "lines"] = "jsonl",
        headers: dict[str, str] | None = None,
        encoding: str = "utf-8-sig",
        timeout: float = 30.0,
    ) -> None:
        self._web = Web(url, headers, timeout)
        self._decoder = Decoder(url, encoding)
        self._json = format == "jsonl"

    def setup(self) -> None:
        """Make the session."""
        self._web.setup()

    async def read(self, position: Any | None) -> AsyncIterator[tuple[dict[str, Any], list[Any]]]:
        """Records and the place behind them, with the text's ETag."""
        place: Place = {"offset": 0, "line": 0}
        tag = ""
        if position:
            place, tag = {"offset": position["offset"], "line": position["line"]}, position["etag"]
        attempt = 1
        while True:
            try:
                async with self._from(place["offset"], tag) as (response, skip):
                    tag = response.headers.get("ETag", "")
                    async for block in _blocks(response, skip):
                        text = self._decoder.decode(block, place)
                        lines = split(text)
                        first = place["line"] + 1
                        place = {
                            "offset": place["offset"] + len(block),
                            "line": place["line"] + len(lines),
                        }
                        attempt = 1
                        records = parse_lines(lines, self._web.url, first) if self._json else lines
                        yield {**place, "etag": tag}, records
                    return
            except self._web.errors as error:
                await self._web.pause(attempt, self._web.url, error)
                attempt += 1

    async def close(self) -> None:
        """Close the connections."""
        await self._web.close()

    @asynccontextmanager
    async def _from(self, offset: int, tag: str) -> AsyncIterator[tuple[Any, int]]:
        """A response, and how many of its bytes were read before."""
        # From the byte before: it must be there, or the text is not the one that was read.
        headers = {"Range": f"bytes={offset - 1}-"} if offset else {}
        async with self._web.once("GET", self._web.url, headers=headers) as response:
            found = response.headers.get("ETag", "")
            if tag and found != tag:
                raise ConflictError(
                    f"{self._web.url} was read up to byte {offset} with the ETag {tag}; now it is {found!r}.",
                    hint="It was changed since the checkpoint: begin anew.",
                )
            yield response, 1 if response.status == 206 else offset


class HttpPages:
    """The items of the JSON pages of an API, page after page.

    `items`: where in a page its list is, such as "data.results"; "" = the page is the list, or one record.
    `next`: where it names the next page: a URL, or, with `cursor`, the value of that parameter of the query.
    A page that names none is the last. The position is where the next page is, so an API must keep its pages
    in order.
    """

    def __init__(
        self,
        url: str,
        items: str = "",
        next: str = "",
        cursor: str = "",
        headers: dict[str, str] | None = None,
        timeout: float = 30.0,
    ) -> None:
        self._web = Web(url, headers, timeout)
        self._items, self._next, self._cursor = items, next, cursor

    def setup(self) -> None:
        """Make the session."""
        self._web.setup()

    async def read(self, position: Any | None) -> AsyncIterator[tuple[dict[str, Any], list[Any]]]:
        """The items of a page, and where the next one is; None: nowhere."""
        page = position["next"] if position else ""
        while page is not None:
            body = await self._get(page)
            items = self._found(body, self._items, page) if self._items else body
            after = self._found(body, self._next, page, missing=None) if self._next else None
            after = None if after in (None, "") else after
            if after is not None and after == page:
                raise BadRequestError(f"{self._web.url}: the page {page!r} names itself as the next one.")
            page = after
            yield {"next": page}, items if isinstance(items, list) else [items]

    async def close(self) -> None:
        """Close the connections."""
        await self._web.close()

    async def _get(self, page: Any) -> Any:
        url, query = self._web.url, None
        if page != "" and self._cursor:
            query = {self._cursor: str(page)}
        elif page != "":
            url = urljoin(url, str(page))
            if _origin(url) != _origin(self._web.url):
                # Headers that were meant for one server, a key perhaps, go to no other.
                raise BadRequestError(
                    f"the next page is {url!r}, which is not on the server of {self._web.url!r}."
                )
        body = await self._web.whole("GET", url, params=query)
        try:
            return json.loads(body)
        except ValueError as error:
            raise BadRequestError(f"{url}: not JSON: {error}.") from error

    def _found(self, body: Any, path: str, page: Any, **default: Any) -> Any:
        for name in path.split("."):
            if isinstance(body, Mapping) and name in body:
                body = body[name]
            elif "missing" in default:
                return default["missing"]
            else:
                there = ", ".join(body) if isinstance(body, Mapping) else type(body).__name__
                raise BadRequestError(
                    f"{self._web.url}, page {page!r}: {path!r} is not in it; there is {there}."
                )
        return body


class HttpPost:
    """Posts each batch as a JSON array, or as JSON lines; at least once.

    A post has an `Idempotency-Key` of the run, the epoch, the number of the batch and a digest of the batch.
    One that is repeated has the same key, so a server that heeds it takes the batch once; after a crash the
    run is the same, and what it posts again may be cut into other batches. Statuses from 400 raise
    BadRequestError, but for those of a server that is busy or ill: they are tried again, then
    UnreachableError.
    """

    def __init__(
        self,
        url: str,
        format: Literal["json", "jsonl"] = "json",
        headers: dict[str, str] | None = None,
        timeout: float = 30.0,
    ) -> None:
        self._web = Web(url, headers, timeout)
        self._lines = format == "jsonl"
        self._run = new_id("run")
        self._epoch = self._number = 0

    def setup(self) -> None:
        """Make the session."""
        self._web.setup()

    async def write(self, epoch: int, items: Sequence[Any]) -> None:
        """Post a batch; it has arrived when this returns."""
        self._number = self._number + 1 if epoch == self._epoch else 0
        self._epoch = epoch
        body = json_lines(items) if self._lines else f"[{','.join(map(to_json, items))}]".encode()
        digest = hashlib.sha256(body).hexdigest()[:16]
        headers = {
            "Content-Type": "application/x-ndjson" if self._lines else "application/json",
            "Idempotency-Key": f"{self._run}-{epoch}-{self._number}-{digest}",
        }
        await self._web.whole("POST", self._web.url, data=body, headers=headers)

    async def commit(self, _epoch: int) -> None:
        """Everything has arrived."""

    async def prepare(self, _epoch: int) -> dict[str, str]:
        """The name of the run, which stays when it is resumed."""
        return {"run": self._run}

    async def recover(self, epoch: int, prepared: Any) -> None:
        """Go on under the name of the run."""
        if epoch:
            self._run = prepared["run"]

    async def close(self) -> None:
        """Close the connections."""
        await self._web.close()


async def _blocks(response: Any, skip: int) -> AsyncIterator[bytes]:
    """Whole lines of a body behind its first `skip` bytes; the last may lack its end."""
    cutter = Cutter()
    async for piece in response.content.iter_chunked(SLICE):
        fresh, skip = piece[skip:], max(0, skip - len(piece))
        if block := cutter.cut(fresh):
            yield block
    if skip:
        raise ConflictError(
            f"{response.url} ends {skip} bytes before the place where it was read to.",
            hint="It was changed since the checkpoint: begin anew.",
        )
    if block := cutter.rest():
        yield block


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc
