"""Conversations by `previous_response_id`: what was said goes before what is asked; the answer is kept.

Engines are asked as if each call were the first: they store nothing, and any of them may answer the next one.
"""

from __future__ import annotations

import re
from typing import Any, Final, Literal

import msgspec

from sage.common.errors import EngineError, NotFoundError, RequestTooLargeError
from sage.common.telemetry import Bound
from sage.gateway.responsestore import ResponseStore, StoredResponse
from sage.middleware.control_plane.json_guard import strict_object
from sage.middleware.engines.fields import convert
from sage.middleware.engines.port import Sink
from sage.middleware.engines.sse import Splitter, data_of

__all__ = ["Conversations", "Exchange", "missing"]


class _Asked(msgspec.Struct):
    """The fields that are the gateway's."""

    input: str | list[Any] | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    stream: bool | None = None


class _Said(msgspec.Struct):
    output: list[dict[str, Any]] = []


_SAID: Final = msgspec.json.Decoder(_Said)
_ITEMS: Final = msgspec.json.Decoder(list[msgspec.Raw])


def missing(ident: str, param: str | None = None) -> NotFoundError:
    """What answers the id of a response that is not there, or another's."""
    return NotFoundError(
        f"There is no response {ident[:128]!r} of this key: it was not stored, was deleted, or is too old.",
        param=param,
    )


class Conversations:
    """Opens exchanges. `most`: bytes that a body may have with all that was said before."""

    def __init__(self, store: ResponseStore, most: int) -> None:
        self._store = store
        self.most = most

    async def open(self, owner: str, body: bytes, sink: Sink) -> Exchange:
        """The exchange that `body` asks for; its answer goes to `sink`.

        Raises BadRequestError, NotFoundError for a previous response that the owner does not have,
        RequestTooLargeError for a conversation that has become too long.
        """
        asked = convert(strict_object(body), _Asked)
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        items: list[msgspec.Raw] = []
        if asked.previous_response_id is not None:
            items = await self._before(owner, asked.previous_response_id)
        if isinstance(asked.input, str):
            text = {"type": "input_text", "text": asked.input}
            message = {"type": "message", "role": "user", "content": [text]}
            items.append(msgspec.Raw(msgspec.json.encode(message)))
        elif asked.input is not None:
            items += _ITEMS.decode(fields["input"])
        fields.pop("previous_response_id", None)
        raw = msgspec.json.encode(items)
        if items:
            fields["input"] = msgspec.Raw(raw)
        body = msgspec.json.encode({**fields, "store": False})
        if len(body) > self.most:
            raise RequestTooLargeError(
                f"With what was said before, the body has {len(body)} bytes; the limit is {self.most}.",
                hint="Begin another conversation, with a summary of this one.",
                param="previous_response_id",
                bound=Bound.BODY_BYTES,
            )
        return Exchange(self._store, owner, asked, body, raw, sink)

    async def _before(self, owner: str, ident: str) -> list[msgspec.Raw]:
        """All that was said up to that response; thoughts are no part of it."""
        found = await self._store.get(owner, ident)
        if found is None:
            raise missing(ident, "previous_response_id")
        said = [one for one in _SAID.decode(found.answer).output if one.get("type") != "reasoning"]
        return _ITEMS.decode(found.items) + [msgspec.Raw(msgspec.json.encode(one)) for one in said]


_ENDS: Final = frozenset(("response.completed", "response.incomplete"))
_CARRIERS: Final = _ENDS | {"response.created", "response.queued", "response.in_progress"}
# In a JSON string every quote is escaped, so that generated text cannot look like one of these.
_CARRIES: Final = re.compile(rb'"type"\s*:\s*"response\.(?:created|queued|in_progress|completed|incomplete)"')


class Exchange:
    """One request for a response, and the sink of its answer. Fits `Sink`.

    `body` is what goes to the engine. Bytes pass as they come, but for events with the whole response: those
    get what the gateway knows, and the last one waits, until `close` has stored it. So does an answer that is
    no stream.
    """

    def __init__(
        self, store: ResponseStore, owner: str, asked: _Asked, body: bytes, items: bytes, sink: Sink
    ) -> None:
        self.body = body
        self._store = store
        self._owner = owner
        self._asked = asked
        self._items = items
        self._sink = sink
        self._splitter = Splitter()
        self._head = (200, "application/json")
        self._parts: list[bytes] = []
        self._response: dict[str, Any] | None = None
        self._held = b""

    def head(self, status: int, content_type: str) -> None:
        """Pass it on: nothing goes out before the first bytes. That of a whole answer waits for the answer:
        if it cannot be read, another engine's may follow.
        """
        if self._asked.stream:
            self._sink.head(status, content_type)
        else:
            self._head = (status, content_type)
            self._parts.clear()

    def data(self, chunk: bytes) -> None:
        """Pass on, or hold. Raises EngineError for a response that cannot be read."""
        if not self._asked.stream:
            self._parts.append(chunk)
        elif not self._splitter.rest and chunk.endswith(b"\n\n") and _CARRIES.search(chunk) is None:
            self._sink.data(chunk)
        else:
            out = b"".join(map(self._event, self._splitter.feed(chunk)))
            if out:
                self._sink.data(out)

    def end(self) -> None:
        """The engine is done. Raises EngineError for a response that cannot be read."""
        if not self._asked.stream:
            self._response = self._known(_decoded(b"".join(self._parts)))
            self._held = msgspec.json.encode(self._response)

    async def close(self, outcome: Literal["done", "failed"]) -> None:
        """Store the response, if it is to be stored, and let the rest of it go. Raises SageError."""
        if outcome == "done" and self._response is not None:
            if self._asked.store is not False:
                answer = msgspec.json.encode(self._response)
                await self._store.put(self._owner, StoredResponse(self._response["id"], self._items, answer))
            if not self._asked.stream:
                self._sink.head(*self._head)
            self._sink.data(self._held)
        self._sink.end()

    @property
    def full(self) -> bool:
        """Whether the client is slower than the engine."""
        return self._sink.full

    async def drain(self) -> None:
        """Wait for the client."""
        await self._sink.drain()

    def _event(self, event: bytes) -> bytes:
        if _CARRIES.search(event) is None:
            return event
        top = _decoded(data_of(event))
        kind, response = top.get("type"), top.get("response")
        if kind not in _CARRIERS or not isinstance(response, dict):
            return event
        self._known(response)
        out = b"event: %b\ndata: %b\n\n" % (kind.encode(), msgspec.json.encode(top))
        if kind not in _ENDS:
            return out
        self._response, self._held = response, out
        return b""

    def _known(self, response: dict[str, Any]) -> dict[str, Any]:
        """What the engine was not told. Raises EngineError for a response without an id."""
        if not isinstance(response.get("id"), str):
            raise EngineError("The engine's response has no id.")
        response["previous_response_id"] = self._asked.previous_response_id
        response["store"] = self._asked.store is not False
        return response


def _decoded(data: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise EngineError("The engine's response cannot be read.") from error
