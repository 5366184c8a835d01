"""The sink between an engine and a client: sees the first byte, keeps a request retryable while it can."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from sage.common.errors import SageError
from sage.middleware.engines.port import Sink

__all__ = ["Relay"]


class Relay:
    """One attempt's sink. Fits `Sink`.

    The head of a stream is held until its first byte, and a plain answer until it is complete: until then
    nothing has reached the client, so that a fault can still be answered by another engine or by a status.
    """

    __slots__ = ("_head", "_held", "_last", "_on_first_byte", "_sink", "_stream", "committed", "ended")

    def __init__(self, sink: Sink, *, stream: bool, on_first_byte: Callable[[], None]) -> None:
        self._sink = sink
        self._stream = stream
        self._on_first_byte: Callable[[], None] | None = on_first_byte
        self._head: tuple[int, str] = (200, "text/event-stream" if stream else "application/json")
        self._held: list[bytes] = []
        self._last = b""
        self.committed = False  # something has reached the client
        self.ended = False

    def head(self, status: int, content_type: str) -> None:
        """Remember it; it goes out with the first byte."""
        self._head = (status, content_type)

    def data(self, chunk: bytes) -> None:
        """Pass on, or hold."""
        if self._on_first_byte is not None:
            self._on_first_byte()
            self._on_first_byte = None
        if self._stream:
            self._commit()
            self._sink.data(chunk)
            self._last = chunk
        else:
            self._held.append(chunk)

    def end(self) -> None:
        """Send what was held, and finish."""
        self._commit()
        for chunk in self._held:
            self._sink.data(chunk)
        self._sink.end()
        self.ended = True

    def fail(self, error: SageError) -> None:
        """Finish a committed stream with an SSE error event, and no `[DONE]`."""
        if not self.ended:
            if not self._last.endswith(
                b"\n\n"
            ):  # the engine broke inside an event: end it, so that ours is one
                self._sink.data(b"\n\n")
            self._sink.data(b"data: " + msgspec.json.encode(error.to_openai()) + b"\n\n")
            self._sink.end()
            self.ended = True

    @property
    def full(self) -> bool:
        """Whether the client is slower than the engine."""
        return self._sink.full

    async def drain(self) -> None:
        """Wait for the client."""
        await self._sink.drain()

    def _commit(self) -> None:
        if not self.committed:
            self.committed = True
            self._sink.head(*self._head)
