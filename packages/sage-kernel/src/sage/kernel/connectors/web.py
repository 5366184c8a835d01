"""Requests to one HTTP server, made again where that may help."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import urlsplit

from sage.common.errors import BadRequestError, UnreachableError, UsageError
from sage.kernel.connectors.extras import needed

__all__ = ["ATTEMPTS", "Web"]

ATTEMPTS: Final = 4
PAUSE: Final = 0.1
"""Seconds before the second attempt; each further one waits twice as long."""
AGAIN: Final = (408, 425, 429, 500, 502, 503, 504)


class Web:
    """Requests to one place, made again when it does not answer or says so."""

    def __init__(self, url: str, headers: Mapping[str, str] | None, timeout: float) -> None:
        if urlsplit(url).scheme not in ("http", "https"):
            raise BadRequestError(f"the URL is {url!r}; valid is http://… or https://….")
        self.url = url
        self._headers = dict(headers or {})
        self._timeout = timeout
        self._aiohttp = needed("aiohttp", "http")
        self._session: Any = None

    def setup(self) -> None:
        """Make the session; nothing is sent."""
        limit = self._aiohttp.ClientTimeout(total=None, sock_connect=self._timeout, sock_read=self._timeout)
        # Bytes as they are: a Range counts those, not what they would be unpacked.
        headers = {"Accept-Encoding": "identity", **self._headers}
        self._session = self._aiohttp.ClientSession(timeout=limit, headers=headers)

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """What a broken connection raises."""
        return (self._aiohttp.ClientError, TimeoutError, ConnectionError)

    @asynccontextmanager
    async def once(self, method: str, url: str, **options: Any) -> AsyncIterator[Any]:
        """One response with a status that is worth reading; raises BadRequestError for another, or
        `errors`."""
        if self._session is None:
            raise UsageError("the connector is not set up.")
        async with self._session.request(method, url, **options) as response:
            if response.status in AGAIN:
                raise ConnectionError(f"status {response.status}")
            if response.status >= 400:
                text = (await response.text(errors="replace"))[:200]
                raise BadRequestError(f"{method} {url}: status {response.status}: {text!r}.")
            yield response

    async def whole(self, method: str, url: str, **options: Any) -> bytes:
        """The body of a response, at the last of `ATTEMPTS` or before; raises UnreachableError."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                async with self.once(method, url, **options) as response:
                    body: bytes = await response.read()
                    return body
            except self.errors as error:
                await self.pause(attempt, url, error)
        raise AssertionError("the last pause raises")

    async def pause(self, attempt: int, url: str, error: Exception) -> None:
        """Wait after a failed attempt; raises UnreachableError after the last."""
        if attempt >= ATTEMPTS:
            found = str(error) or type(error).__name__
            raise UnreachableError(f"{url} failed {attempt} times; at last: {found}.") from error
        await asyncio.sleep(PAUSE * 2 ** (attempt - 1))
