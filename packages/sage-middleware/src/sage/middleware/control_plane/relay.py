"""The sinks between an engine and a client: see the first byte, keep a request retryable while they can."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, Protocol

import msgspec

from sage.common.errors import SageError
from sage.middleware.engines.dialects.envelopes import envelope_of
from sage.middleware.engines.media import is_events
from sage.middleware.engines.port import RESPONSES, Call, Sink

__all__ = ["Collector", "Recipient", "Relay"]

_TOKEN: Final = re.compile(rb'"(?:content|text|reasoning_content|refusal|name|arguments)" ?: ?"[^"]')
_SAYS: Final = re.compile(
    rb'"type" ?: ?"response\.(?!created"|in_progress"|queued"|output_item\.added"|content_part\.added")'
)


def _announces(chunk: bytes) -> bool:
    """Whether it only says who is going to speak: engines send that at once, long before the first token."""
    return b'"role"' in chunk and _TOKEN.search(chunk) is None


def _prepares(chunk: bytes) -> bool:
    """The same of a response: its first events only repeat what was asked for."""
    return b'"response.' in chunk and _SAYS.search(chunk) is None


class Recipient(Protocol):
    """Who an answer is for. `relay` is the one that reached the client first."""

    relay: Relay | None

    @property
    def call(self) -> Call:
        """What it has asked."""
        ...

    @property
    def sink(self) -> Sink:
        """Where its bytes go."""
        ...


class Relay:
    """The sink of one attempt whose bytes go through unchanged. Fits `Sink`.

    The head of a stream is held until its first token, and a plain answer until it is complete: until then
    nothing has reached the client, so that a fault can still be answered by another engine or by a status.
    Of several relays to one recipient the first that writes is heard. `on_first_byte` is called with
    `number` at the first token of a stream. `fresh` is set by each chunk; whoever looks at it clears it.
    """

    __slots__ = (
        "_announces",
        "_call",
        "_head",
        "_held",
        "_last",
        "_number",
        "_on_first_byte",
        "_pass_on",
        "_recipient",
        "_sink",
        "_stream",
        "committed",
        "ended",
        "fresh",
    )

    def __init__(
        self, recipient: Recipient, number: int, on_first_byte: Callable[[int], None], *, stream: bool
    ) -> None:
        self._recipient: Recipient | None = recipient
        self._call = recipient.call
        self._sink = recipient.sink
        self._pass_on = self._sink.data
        self._number = number
        self._on_first_byte: Callable[[int], None] | None = on_first_byte if stream else None
        self._stream = stream
        self._announces = _prepares if self._call.route is RESPONSES else _announces
        self._head: tuple[int, str] = (200, "text/event-stream" if stream else "application/json")
        self._held: list[bytes] = []
        self._last = b""
        self.committed = False  # something of it has reached the client
        self.ended = False
        self.fresh = False

    def head(self, status: int, content_type: str) -> None:
        """Remember it; it goes out with the first byte."""
        self._head = (status, content_type)

    def data(self, chunk: bytes) -> None:
        """Pass on, or hold."""
        self.fresh = True
        if self.committed:
            self._pass_on(chunk)
            self._last = chunk
        elif not self._stream or (self._on_first_byte is not None and self._announces(chunk)):
            self._held.append(chunk)
        else:
            if self._on_first_byte is not None:
                tell, self._on_first_byte = self._on_first_byte, None
                tell(self._number)
            self._commit()
            self._release()
            self._pass_on(chunk)
            self._last = chunk

    def end(self) -> None:
        """Send what was held, and finish."""
        if not self.committed:
            self._commit()
        self._release()
        self._sink.end()
        self.ended = True

    def fail(self, error: SageError) -> None:
        """Finish a committed stream with the error event of its dialect, and no `[DONE]`.

        Where it is none of events, as sound is, it stays without an end: nothing else would tell.
        """
        if not self.ended and is_events(self._head[1]):
            envelope = envelope_of(self._call.route, self._call.request_id)
            self._sink.data(envelope.event(error, self._last))
            self._sink.end()
        self.ended = True

    @property
    def full(self) -> bool:
        """Whether the client is slower than the engine."""
        return self._sink.full

    async def drain(self) -> None:
        """Wait for the client."""
        await self._sink.drain()

    def _release(self) -> None:
        for chunk in self._held:
            self._pass_on(chunk)
        self._held.clear()

    def _commit(self) -> None:
        # It leads back here: a circle. For a garbage collector to find these can take a sixth of all time.
        recipient, self._recipient = self._recipient, None
        if recipient is not None and recipient.relay is None:
            recipient.relay = self
            self.committed = True
            self._sink.head(*self._head)
        else:
            self._sink = _NOWHERE
            self._pass_on = _NOWHERE.data


class Collector(msgspec.Struct, eq=False):
    """Keeps a whole answer. Fits `Sink`. `fresh` as in `Relay`."""

    _chunks: list[bytes] = []
    content_type: str = "application/json"
    ended: bool = False
    fresh: bool = False

    @property
    def body(self) -> bytes:
        """What has come."""
        return self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)

    def head(self, _status: int, content_type: str) -> None:
        """Keep what it is; an answer that is passed on has status 200."""
        self.content_type = content_type

    def data(self, chunk: bytes) -> None:
        """Keep it."""
        self.fresh = True
        self._chunks.append(chunk)

    def end(self) -> None:
        """It is whole."""
        self.ended = True

    @property
    def full(self) -> bool:
        """Never."""
        return False

    async def drain(self) -> None:
        """Nothing to wait for."""


class _Nowhere:
    """Where the bytes go that came second. Fits `Sink`."""

    full = False

    def head(self, status: int, content_type: str) -> None:
        pass

    def data(self, chunk: bytes) -> None:
        pass

    def end(self) -> None:
        pass

    async def drain(self) -> None:
        pass


_NOWHERE = _Nowhere()
