"""Model clients for pipelines: one Protocol, over HTTP to a gateway here, in process in the control plane."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypedDict

import msgspec
import numpy as np
import numpy.typing as npt

from sage.common.errors import EngineError, SageError, UnreachableError
from sage.common.telemetry import HEADER_CLASS, HEADER_REQUEST_ID, HEADER_TRACE, RequestClass
from sage.common.tracing import TRACEPARENT
from sage.middleware.answers import ChatReader, Patience, error_from, read_embeddings, read_ranking
from sage.middleware.engines.port import Usage

if TYPE_CHECKING:
    import aiohttp

__all__ = ["BULK", "Delta", "HttpClient", "Message", "ModelClient"]

FloatMatrix = npt.NDArray[np.float32]
FloatVector = npt.NDArray[np.float32]


class Message(TypedDict):
    """One chat message with text content."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of a streamed answer; the last one carries usage and has no text."""

    text: str
    usage: Usage | None = None
    request_id: str = ""


class ModelClient(Protocol):
    """What a pipeline operator needs from the engines."""

    async def embed(self, texts: Sequence[str], *, model: str, bulk: bool = False) -> FloatMatrix:
        """Embed texts: shape (len(texts), dimensions), float32, in input order.

        `bulk`: nobody waits for them, however few they are; they go behind what somebody does wait for.
        """
        ...

    async def rerank(self, query: str, documents: Sequence[str], *, model: str) -> FloatVector:
        """The scores of documents for a query by a cross-encoder: shape (len(documents),), in their order."""
        ...

    def chat(self, messages: Sequence[Message], *, model: str, **params: Any) -> AsyncIterator[Delta]:
        """Stream a chat answer. `params` are OpenAI chat parameters such as `max_tokens`."""
        ...

    async def models(self) -> list[str]:
        """Ids of the models that can be asked for now."""
        ...

    async def close(self) -> None:
        """Release connections."""
        ...


BULK: Final[Mapping[str, str]] = {HEADER_CLASS: RequestClass.EMBED_BULK.value}


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


class HttpClient:
    """A model client over any OpenAI-compatible server. `base_url` ends in `/v1`. Fits `ModelClient`.

    Texts are embedded in requests of at most `batch_texts`. A refused connect, and a 429 or 503 that says
    when to come back, are tried again for at most `patience_s` seconds; nothing else is. Each method raises
    the SageError of the server's answer, UnreachableError when nothing answers, EngineError for a broken
    answer.
    """

    def __init__(
        self, base_url: str, api_key: str, *, batch_texts: int = 64, patience_s: float = 60.0
    ) -> None:
        self._base_url = base_url.rstrip("/")
        self._headers = {"authorization": f"Bearer {api_key}", "content-type": "application/json"}
        self._batch_texts = batch_texts
        self._patience_s = patience_s
        self._session: aiohttp.ClientSession | None = None

    async def embed(self, texts: Sequence[str], *, model: str, bulk: bool = False) -> FloatMatrix:
        """Embed texts; shape (0, 0) for none."""
        headers = BULK if bulk else None
        parts: list[FloatMatrix] = []
        for start in range(0, len(texts), self._batch_texts):
            batch = list(texts[start : start + self._batch_texts])
            body = msgspec.json.encode({"model": model, "input": batch, "encoding_format": "base64"})
            answer = await self._whole("POST", "/embeddings", body, headers)
            parts.append(read_embeddings(answer, len(batch)))
        return np.concatenate(parts) if parts else np.empty((0, 0), np.float32)

    async def rerank(self, query: str, documents: Sequence[str], *, model: str) -> FloatVector:
        """Score documents; shape (0,) for none."""
        if not documents:
            return np.empty(0, np.float32)
        body = msgspec.json.encode({"model": model, "query": query, "documents": documents})
        return read_ranking(await self._whole("POST", "/rerank", body), len(documents))

    async def chat(self, messages: Sequence[Message], *, model: str, **params: Any) -> AsyncIterator[Delta]:
        """Stream a chat answer; closing the iterator early ends the work upstream."""
        import aiohttp  # imported here: importing this module stays cheap

        fields = {**params, "model": model, "messages": list(messages), "stream": True}
        body = msgspec.json.encode({**fields, "stream_options": {"include_usage": True}})
        response = await self._open("POST", "/chat/completions", body)
        reader = ChatReader()
        request_id = response.headers.get(HEADER_REQUEST_ID, "")
        try:
            async for chunk in response.content.iter_any():
                for text in reader.feed(chunk):
                    yield Delta(text, request_id=request_id)
            reader.finish()
        except aiohttp.ClientError as exc:
            raise EngineError(f"The stream broke off: {exc}.") from exc
        finally:
            response.close()  # a connection that was read to its end has gone back to the pool already
        yield Delta("", reader.usage, request_id)

    async def models(self) -> list[str]:
        """Ids of the models that the server lists."""
        body = await self._whole("GET", "/models", None)
        try:
            return [model.id for model in msgspec.json.decode(body, type=_Models).data]
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            raise EngineError(f"The list of models cannot be read: {exc}.") from exc

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _whole(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str] | None = None
    ) -> bytes:
        import aiohttp

        response = await self._open(method, path, body, headers)
        try:
            return await response.read()
        except aiohttp.ClientError as exc:
            raise EngineError(f"The answer broke off: {exc}.") from exc
        finally:
            response.release()

    async def _open(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str] | None = None
    ) -> aiohttp.ClientResponse:
        """A response with status 200 whose body is still to be read."""
        patience = Patience(self._patience_s)
        while True:
            try:
                return await self._once(method, path, body, headers)
            except SageError as exc:
                await patience.wait(exc)

    async def _once(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str] | None
    ) -> aiohttp.ClientResponse:
        import aiohttp

        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=10.0)
            self._session = aiohttp.ClientSession(headers=self._headers, timeout=timeout)
        url = self._base_url + path
        if trace := TRACEPARENT.get():
            headers = {**(headers or {}), HEADER_TRACE: trace}
        try:
            response = await self._session.request(
                method, url, data=body, headers=headers, allow_redirects=False
            )
            if response.status == 200:
                return response
            answer = await response.read()
        except aiohttp.ClientConnectorError as exc:
            raise UnreachableError(f"Nothing answers at {self._base_url}: {exc.strerror}.") from exc
        except (aiohttp.ClientError, TimeoutError) as exc:
            raise EngineError(f"{self._base_url} gave no answer: {type(exc).__name__} {exc}.") from exc
        raise error_from(response.status, answer, _seconds(response.headers.get("retry-after")))


def _seconds(value: str | None) -> float | None:
    """A `Retry-After` in seconds; its other form, a date, is not used by model servers and counts as none."""
    return float(value) if value is not None and value.replace(".", "", 1).isdecimal() else None
