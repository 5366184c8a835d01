"""The items of a response while they are written: what begins, fills and ends each. Pure.

Events are dictionaries without their numbers and without the place of their item.
"""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

__all__ = ["FunctionItem", "MessageItem", "OpenItem", "ThoughtsItem"]

Event = dict[str, Any]


class OpenItem(Protocol):
    """An item that is being written."""

    ident: str

    def begun(self) -> dict[str, Any]:
        """It, as it begins."""
        ...

    def fill(self, text: str) -> list[Event]:
        """Add a piece."""
        ...

    def ending(self) -> list[Event]:
        """The events before its last one."""
        ...

    def done(self, status: str) -> dict[str, Any]:
        """It, as it is now."""
        ...


class FunctionItem:
    """A call of a function."""

    def __init__(self, ident: str, call_id: str, name: str) -> None:
        self.ident = ident
        self._call_id = call_id
        self._name = name
        self._arguments = ""

    def begun(self) -> dict[str, Any]:
        """See `OpenItem`."""
        return self.done("in_progress")

    def fill(self, text: str) -> list[Event]:
        """See `OpenItem`."""
        self._arguments += text
        return [{"type": "response.function_call_arguments.delta", "item_id": self.ident, "delta": text}]

    def ending(self) -> list[Event]:
        """See `OpenItem`."""
        done = {"item_id": self.ident, "name": self._name, "arguments": self._arguments}
        return [{"type": "response.function_call_arguments.done", **done}]

    def done(self, status: str) -> dict[str, Any]:
        """See `OpenItem`."""
        call = {"call_id": self._call_id, "name": self._name, "arguments": self._arguments}
        return {"id": self.ident, "type": "function_call", "status": status, **call}


class _Parts:
    """The parts of an item, one after the other; `_kind` is that of the one that is open."""

    _names: ClassVar[dict[str, tuple[str, dict[str, Any]]]]  # by kind: its text's field, and its other fields

    def __init__(self, ident: str) -> None:
        self.ident = ident
        self.parts: list[dict[str, Any]] = []
        self._kind = ""

    def turn(self, kind: str) -> list[Event]:
        """See to it that a part of this kind is open."""
        if kind == self._kind:
            return []
        events = self.ending()
        self._kind = kind
        name, more = self._names[kind]
        self.parts.append({"type": kind, name: "", **more})
        return [*events, self._about("response.content_part.added", part=dict(self.parts[-1]))]

    def _add(self, text: str, **more: Any) -> list[Event]:
        part = self.parts[-1]
        part[self._names[self._kind][0]] += text
        return [self._about(f"response.{self._kind}.delta", delta=text, **more)]

    def ending(self) -> list[Event]:
        """End the part that is open."""
        if not self._kind:
            return []
        part, kind = self.parts[-1], self._kind
        name = self._names[kind][0]
        self._kind = ""
        more: dict[str, Any] = {"logprobs": []} if kind == "output_text" else {}
        return [
            self._about(f"response.{kind}.done", **{name: part[name]}, **more),
            self._about("response.content_part.done", part=dict(part)),
        ]

    def _about(self, kind: str, **fields: Any) -> Event:
        return {"type": kind, "item_id": self.ident, "content_index": len(self.parts) - 1, **fields}


class MessageItem(_Parts):
    """What the assistant says: text, or a refusal."""

    prefix = "msg"
    _names = {"output_text": ("text", {"annotations": [], "logprobs": []}), "refusal": ("refusal", {})}

    def begun(self) -> dict[str, Any]:
        """See `OpenItem`."""
        return self.done("in_progress")

    def fill(self, text: str) -> list[Event]:
        """See `OpenItem`; a part is open."""
        return self._add(text, **({"logprobs": []} if self._kind == "output_text" else {}))

    def done(self, status: str) -> dict[str, Any]:
        """See `OpenItem`."""
        head = {"id": self.ident, "type": "message", "status": status, "role": "assistant"}
        return {**head, "content": [dict(part) for part in self.parts]}


class ThoughtsItem(_Parts):
    """What the model thinks before it speaks."""

    prefix = "rs"
    _names = {"reasoning_text": ("text", {})}

    def begun(self) -> dict[str, Any]:
        """See `OpenItem`."""
        return self.done("in_progress")

    def fill(self, text: str) -> list[Event]:
        """See `OpenItem`."""
        return [*self.turn("reasoning_text"), *self._add(text)]

    def done(self, status: str) -> dict[str, Any]:
        """See `OpenItem`."""
        parts = [dict(part) for part in self.parts]
        return {"id": self.ident, "type": "reasoning", "status": status, "summary": [], "content": parts}
