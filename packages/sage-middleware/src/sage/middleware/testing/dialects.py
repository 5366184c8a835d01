"""Readers of the event streams of other dialects: they hold each stream to the rules of its public API.

Each gives back what a client makes of the stream, and fails an assertion where a client could stumble.
"""

from __future__ import annotations

from typing import Any

import msgspec

from sage.middleware.engines.sse import Splitter, data_of

__all__ = ["events_of", "read_message_stream", "read_response_stream"]

_DELTAS = {"text_delta": ("text", "text"), "input_json_delta": ("tool_use", "partial_json")}


def events_of(stream: bytes) -> list[dict[str, Any]]:
    """The events, each of which is named as its data says."""
    splitter = Splitter()
    events = []
    for event in [*splitter.feed(stream), *splitter.close()]:
        data = msgspec.json.decode(data_of(event), type=dict[str, Any])
        assert event.startswith(b"event: " + data["type"].encode() + b"\n"), event
        events.append(data)
    return events


def read_message_stream(stream: bytes) -> dict[str, Any]:
    """The message that a stream of `/v1/messages` tells.

    message_start, then blocks one after the other (start, deltas of its kind, stop), message_delta,
    message_stop.
    """
    first, *events, last, stop = events_of(stream)
    assert (first["type"], last["type"], stop) == ("message_start", "message_delta", {"type": "message_stop"})
    message: dict[str, Any] = first["message"]
    assert (message["type"], message["role"], message["content"]) == ("message", "assistant", [])
    assert (message["stop_reason"], message["stop_sequence"]) == (None, None)
    pieces: list[str] | None = None
    for event in events:
        blocks = message["content"]
        if event["type"] == "content_block_start":
            assert (pieces, event["index"]) == (None, len(blocks))
            blocks.append(event["content_block"])
            pieces = []
            continue
        assert pieces is not None
        assert event["index"] == len(blocks) - 1
        kind = blocks[-1]["type"]
        if event["type"] == "content_block_delta":
            wanted, name = _DELTAS[event["delta"]["type"]]
            assert kind == wanted
            assert event["delta"][name], "an empty delta"
            pieces.append(event["delta"][name])
            continue
        assert event["type"] == "content_block_stop", event
        if kind == "text":
            blocks[-1]["text"] = "".join(pieces)
        else:
            blocks[-1]["input"] = "".join(pieces)
        pieces = None
    assert pieces is None
    return {**message, **last["delta"], "usage": {**message["usage"], **last["usage"]}}


def read_response_stream(stream: bytes) -> dict[str, Any]:
    """The response that a stream of `/v1/responses` tells.

    created and in_progress, then items one after the other, each with its parts one after the other, then
    the end, whose output is what the events before it have told; numbered from 0 on.
    """
    events = events_of(stream)
    assert [event.pop("sequence_number") for event in events] == list(range(len(events)))
    created, progress, *rest, end = events
    assert (created["type"], progress["type"]) == ("response.created", "response.in_progress")
    assert created["response"]["status"] == "in_progress"
    assert created["response"]["output"] == []
    reader = _Items()
    for event in rest:
        reader.take(event)
    response: dict[str, Any] = end["response"]
    assert end["type"] == f"response.{response['status']}"
    assert reader.open is None
    assert response["output"] == reader.done
    assert response["id"] == created["response"]["id"]
    return response


def _told(part: dict[str, Any]) -> dict[str, Any]:
    """A part without what it says of nothing: engines write no log probabilities as null or as a list."""
    return {name: value for name, value in part.items() if name != "logprobs" or value}


class _Items:
    """The items of a response, as its events tell them."""

    def __init__(self) -> None:
        self.done: list[dict[str, Any]] = []
        self.open: dict[str, Any] | None = None
        self._part: dict[str, Any] | None = None
        self._text = ""

    def take(self, event: dict[str, Any]) -> None:
        """The next event."""
        kind: str = event["type"].removeprefix("response.")
        assert event["output_index"] == len(self.done)
        if kind == "output_item.added":
            assert self.open is None
            self.open, self._text = event["item"], ""
            assert self.open["status"] == "in_progress"
            return
        assert self.open is not None
        if kind == "output_item.done":
            self._finish(event["item"])
            return
        assert event["item_id"] == self.open["id"]
        if kind.startswith("function_call_arguments"):
            self._arguments(kind, event)
        else:
            self._content(kind, event)

    def _arguments(self, kind: str, event: dict[str, Any]) -> None:
        assert self.open is not None
        if kind.endswith(".delta"):
            assert event["delta"]
            self._text += event["delta"]
        else:
            assert event["arguments"] == self._text
            self.open["arguments"] = self._text

    def _content(self, kind: str, event: dict[str, Any]) -> None:
        assert self.open is not None
        parts = self.open["content"]
        if kind == "content_part.added":
            assert (self._part, event["content_index"]) == (None, len(parts))
            self._part, self._text = event["part"], ""
            return
        assert self._part is not None
        assert event["content_index"] == len(parts)
        field = "refusal" if self._part["type"] == "refusal" else "text"
        if kind == "content_part.done":
            assert _told(event["part"]) == _told({**self._part, field: self._text})
            parts.append(event["part"])
            self._part = None
        elif kind == f"{self._part['type']}.delta":
            assert event["delta"]
            self._text += event["delta"]
        else:
            assert kind == f"{self._part['type']}.done"
            assert event[field] == self._text

    def _finish(self, item: dict[str, Any]) -> None:
        assert self.open is not None
        assert self._part is None
        assert item == {**self.open, "status": item["status"]}
        self.done.append(item)
        self.open = None
