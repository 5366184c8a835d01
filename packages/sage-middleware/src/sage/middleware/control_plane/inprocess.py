"""The model client of pipelines that run in the serving process: the same queues, without HTTP."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from typing import Any, Final, Protocol

import msgspec
import numpy as np
from msgspec import structs

from sage.common.errors import SageError
from sage.common.tracing import TRACEPARENT
from sage.middleware.answers import ChatReader, Patience, read_embeddings, read_ranking
from sage.middleware.client import Delta, FloatMatrix, FloatVector, Message
from sage.middleware.control_plane.callers import CALLER
from sage.middleware.control_plane.classify import Parsed, ParseLimits, parse
from sage.middleware.control_plane.driver import ControlPlane
from sage.middleware.control_plane.types import Job
from sage.middleware.engines.port import Call, Route, Sink, Usage

__all__ = ["InProcessClient"]

FULL_AT: Final = 64  # chunks that wait for a slow reader before the engine is held back


class Door(Protocol):
    """Where requests are submitted: a control plane, or the names before it."""

    def submit(
        self, job: Job, call: Call, sink: Sink, *, used: Callable[[Usage], None] | None = None
    ) -> Coroutine[Any, Any, object]:
        """See `ControlPlane.submit`."""
        ...

    def models(self) -> list[str]:
        """What can be asked for now."""
        ...


class InProcessClient:
    """A model client on a control plane of this event loop. Fits `ModelClient`.

    `door`: what stands before it, so that models go by those names too. Each call is made for the `CALLER`
    of the request that it belongs to. Texts are embedded in requests of at most `batch_texts`. A refusal
    that says when to come back is tried again for at most `patience_s` seconds. Each method raises what
    `ControlPlane.submit` raises.
    """

    def __init__(
        self,
        control_plane: ControlPlane,
        *,
        door: Door | None = None,
        limits: ParseLimits | None = None,
        batch_texts: int = 64,
        patience_s: float = 60.0,
    ) -> None:
        self._control_plane = control_plane
        self._door = door or control_plane
        self._limits = limits or ParseLimits()
        self._batch_texts = batch_texts
        self._patience_s = patience_s

    async def embed(self, texts: Sequence[str], *, model: str, bulk: bool = False) -> FloatMatrix:
        """Embed texts; shape (0, 0) for none."""
        parts: list[FloatMatrix] = []
        for start in range(0, len(texts), self._batch_texts):
            batch = list(texts[start : start + self._batch_texts])
            body = msgspec.json.encode({"model": model, "input": batch, "encoding_format": "base64"})
            answer = [chunk async for chunk in self._chunks(self._parse(Route.EMBEDDINGS, body, bulk=bulk))]
            parts.append(read_embeddings(b"".join(answer), len(batch)))
        return np.concatenate(parts) if parts else np.empty((0, 0), np.float32)

    async def rerank(self, query: str, documents: Sequence[str], *, model: str) -> FloatVector:
        """Score documents; shape (0,) for none."""
        if not documents:
            return np.empty(0, np.float32)
        body = msgspec.json.encode({"model": model, "query": query, "documents": documents})
        answer = [chunk async for chunk in self._chunks(self._parse(Route.RERANK, body))]
        return read_ranking(b"".join(answer), len(documents))

    async def chat(self, messages: Sequence[Message], *, model: str, **params: Any) -> AsyncIterator[Delta]:
        """Stream a chat answer; closing the iterator early ends the engine's work."""
        fields = {**params, "model": model, "messages": list(messages), "stream": True}
        if (most := CALLER.get().cap(params.get("max_tokens"))) is not None:
            fields["max_tokens"] = most
        body = msgspec.json.encode({**fields, "stream_options": {"include_usage": True}})
        parsed = self._parse(Route.CHAT, body)
        reader = ChatReader()
        chunks = self._chunks(parsed)
        try:
            async for chunk in chunks:
                for text in reader.feed(chunk):
                    yield Delta(text, request_id=parsed.job.id)
        finally:
            await chunks.aclose()
        reader.finish()
        yield Delta("", reader.usage, parsed.job.id)

    async def models(self) -> list[str]:
        """Ids of the models that are served now."""
        return self._door.models()

    def limit(self, limits: ParseLimits) -> None:
        """Judge requests by other limits from now on."""
        self._limits = limits

    async def close(self) -> None:
        """Nothing to release: the control plane belongs to whoever made it."""

    def _parse(self, route: Route, body: bytes, *, bulk: bool = False) -> Parsed:
        caller = CALLER.get()
        parsed = parse(
            route,
            body,
            limits=self._limits,
            tenant=caller.tenant,
            headers=caller.headers(route, bulk=bulk),
            blocks=self._control_plane.core.policy.traits.prefixes,
        )
        if trace := TRACEPARENT.get():
            return structs.replace(parsed, call=structs.replace(parsed.call, trace=trace))
        return parsed

    async def _chunks(self, parsed: Parsed) -> AsyncGenerator[bytes, None]:
        """The bytes of the answer as they come; ends the request when it is closed early."""
        patience = Patience(self._patience_s)
        while True:
            pipe = _Pipe()
            task = asyncio.create_task(
                self._door.submit(parsed.job, parsed.call, pipe, used=CALLER.get().used)
            )
            task.add_done_callback(pipe.close)
            try:
                while (chunk := await pipe.get()) is not None:
                    yield chunk
                await task
                return
            except SageError as exc:  # raised by `submit` alone, and only before the first chunk
                await patience.wait(exc)
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)


class _Pipe:
    """A sink that is read in the same loop. Fits `Sink`."""

    def __init__(self) -> None:
        self._chunks: deque[bytes] = deque()
        self._closed = False
        self._readable = asyncio.Event()
        self._writable = asyncio.Event()

    def head(self, status: int, content_type: str) -> None:
        """Nothing to keep: an answer that is passed on has status 200."""

    def data(self, chunk: bytes) -> None:
        """Keep the bytes for the reader."""
        self._chunks.append(chunk)
        self._readable.set()

    def end(self) -> None:
        """Nothing to do: the reader waits for the end of `submit`, which accounts for the request."""

    @property
    def full(self) -> bool:
        """Whether the reader is far behind."""
        return len(self._chunks) >= FULL_AT

    async def drain(self) -> None:
        """Wait until it is not."""
        while self.full:
            self._writable.clear()
            await self._writable.wait()

    def close(self, _task: object) -> None:
        """The request has ended: nothing more comes."""
        self._closed = True
        self._readable.set()

    async def get(self) -> bytes | None:
        """The next bytes, or None after the last."""
        while not self._chunks and not self._closed:
            self._readable.clear()
            await self._readable.wait()
        chunk = self._chunks.popleft() if self._chunks else None
        self._writable.set()
        return chunk
