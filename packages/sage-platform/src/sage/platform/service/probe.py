"""One HTTP GET over asyncio streams: enough to ask a local service whether it is ready."""

from __future__ import annotations

import asyncio
import contextlib
from urllib.parse import urlsplit

from sage.common.errors import UsageError

__all__ = ["address", "probe"]


def address(url: str) -> tuple[str, int]:
    """Host and port of a plain `http://` URL. Raises UsageError for any other."""
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise UsageError(f"The probe URL is {url!r}; valid is http://HOST:PORT/PATH.")
    return parts.hostname, parts.port or 80


async def probe(url: str, *, timeout: float = 5.0) -> str:
    """GET `url`: empty when it answers 2xx, else why not, in words."""
    host, port = address(url)
    parts = urlsplit(url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        async with asyncio.timeout(timeout):
            status = await _get(host, port, f"GET {target} HTTP/1.1\r\nHost: {parts.netloc}\r\n")
    except TimeoutError:
        return f"no answer at {url} within {timeout:g} s"
    except OSError as error:
        return f"no connection to {host}:{port} ({error.strerror or error})"
    words = status.split()
    if len(words) >= 2 and words[0].startswith(b"HTTP/") and words[1].startswith(b"2") and len(words[1]) == 3:
        return ""
    return f"{url} answered {status[:80].decode(errors='replace').strip()!r}"


async def _get(host: str, port: int, head: str) -> bytes:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(f"{head}Accept: */*\r\nConnection: close\r\n\r\n".encode())
        await writer.drain()
        try:
            return await reader.readline()
        except ValueError:  # a line longer than the reader's limit is no HTTP
            return b"(an endless line)"
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
