"""One request in flight and what its answer's bytes say. While it runs, bytes are only stamped and kept."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec

from sage.benchmark.load.plan import Request
from sage.benchmark.metrics import Kind, Outcome, Record

__all__ = ["Answer"]

VECTOR: Final = re.compile(rb'"embedding"\s*:')
EVENT_END: Final = re.compile(rb"\r?\n\r?\n")
SHEDS: Final = (429, 503)


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


class _Body(msgspec.Struct):
    usage: _Usage | None = None


_CHUNK: Final = msgspec.json.Decoder(_Chunk)
_BODY: Final = msgspec.json.Decoder(_Body)


class Answer:
    """What came back, and when by `perf_counter`. `on_end` is called once: all is there, or never will be."""

    __slots__ = (
        "_outcome", "chunks", "done", "ended", "error", "on_end", "request", "request_id",
        "retry_after", "sent", "status",
    )  # fmt: skip

    def __init__(self, request: Request, on_end: Callable[[Answer], None], *, done: bool) -> None:
        self.request = request
        self.on_end = on_end
        self.done = done
        self.sent = 0.0
        self.ended = False
        self.status = 0
        self.request_id = ""
        self.retry_after = 0.0
        self.error = ""
        self.chunks: list[tuple[float, bytes]] = []
        self._outcome: Outcome = "ok"

    def end(self, outcome: Outcome = "ok", error: str = "") -> None:
        """It is complete, or never will be. Only the first call counts."""
        if not self.ended:
            self.ended = True
            self._outcome, self.error = outcome, error
            self.on_end(self)

    def record(self, index: int, kind: Kind, intended: float | None, origin: float, now: float) -> Record:
        """What is known now, in seconds from `origin`. `intended` None: it was sent in a closed loop."""
        pieces: list[float] = []
        usage = _Usage()
        outcome, error = self._outcome, self.error
        if outcome == "ok":
            try:
                pieces, usage = self._read()
            except _NotOkError as fault:
                outcome, error = fault.outcome, str(fault)
            except (ValueError, msgspec.MsgspecError) as fault:
                outcome, error = "failed", f"the answer cannot be read: {fault}"
        sent = (self.sent or now) - origin
        return Record(
            index=index,
            kind=kind,
            intended=sent if intended is None else intended,
            sent=sent,
            outcome=outcome,
            pieces=tuple(piece - origin for piece in pieces),
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            status=self.status,
            request_id=self.request_id,
            error=error,
            texts=self.request.texts,
            closed=intended is None,
            ended=now - origin,
        )

    def _read(self) -> tuple[list[float], _Usage]:
        """When each piece of content came, and what the engine counted."""
        if self.status != 200:
            raise _NotOkError("shed" if self.status in SHEDS else "failed", self._refusal())
        if self.request.stream:
            return self._stream()
        body = self._body()
        vectors = len(VECTOR.findall(body))
        if vectors != self.request.texts:
            raise _NotOkError("failed", f"{vectors} vectors came for {self.request.texts} texts")
        return [self.chunks[-1][0]], _BODY.decode(body).usage or _Usage()

    def _stream(self) -> tuple[list[float], _Usage]:
        pieces: list[float] = []
        usage = _Usage()
        done = finished = False
        for at, data in self._events():
            if data == b"[DONE]":
                done = True
                continue
            chunk = _CHUNK.decode(data)
            if chunk.error is not None:
                raise _NotOkError("failed", _error_text(chunk.error))
            usage = chunk.usage or usage
            finished |= any(choice.finish_reason for choice in chunk.choices)
            if any(_text(choice) for choice in chunk.choices):
                pieces.append(at)
        if not (done if self.done else finished):
            end = "[DONE]" if self.done else "a finish reason"
            raise _NotOkError("failed", f"the stream ended without {end}")
        if not pieces:
            raise _NotOkError("failed", "the stream held no text")
        return pieces, usage

    def _events(self) -> Iterator[tuple[float, bytes]]:
        """Each event's data with the time at which its last byte came."""
        rest = b""
        for at, chunk in self.chunks:
            *events, rest = EVENT_END.split(rest + chunk)
            for event in events:
                lines = (line for line in event.split(b"\n") if line.startswith(b"data:"))
                data = b"\n".join(line[5:].strip() for line in lines)
                if data:
                    yield at, data

    def _body(self) -> bytes:
        return b"".join(chunk for _, chunk in self.chunks)

    def _refusal(self) -> str:
        body = self._body()
        try:
            return _error_text(msgspec.json.decode(body)["error"])
        except (msgspec.MsgspecError, ValueError, KeyError, TypeError):
            return body[:200].decode(errors="replace") or f"status {self.status}"


class _NotOkError(Exception):
    """The answer is complete and not what was asked for."""

    def __init__(self, outcome: Outcome, words: str) -> None:
        super().__init__(words)
        self.outcome: Outcome = outcome


def _text(choice: _Choice) -> str:
    delta = choice.delta
    return (delta and (delta.content or delta.reasoning_content)) or choice.text or ""


def _error_text(error: Any) -> str:
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)
