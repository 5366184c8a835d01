"""Reading OpenAI-shaped answers, for the clients: embeddings, chat deltas, errors, when to ask again."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Iterator

import msgspec
import numpy as np
import numpy.typing as npt

from sage.common.errors import (
    BadRequestError,
    ConflictError,
    EngineError,
    ForbiddenError,
    ModelNotFoundError,
    NotFoundError,
    OverloadedError,
    RequestTooLargeError,
    SageError,
    TimedOutError,
    UnauthorizedError,
    UnavailableError,
    UnreachableError,
)
from sage.middleware.engines.port import Usage
from sage.middleware.engines.sse import Splitter, data_of

__all__ = ["ChatReader", "Patience", "error_from", "read_embeddings", "read_ranking"]

_KINDS: tuple[type[SageError], ...] = (
    BadRequestError,
    UnauthorizedError,
    ForbiddenError,
    ModelNotFoundError,
    NotFoundError,
    ConflictError,
    RequestTooLargeError,
    OverloadedError,
    EngineError,
    UnavailableError,
    TimedOutError,
)
_BY_STATUS = {kind.status: kind for kind in _KINDS}  # of two with one status, the more general is last
_BY_CODE = {kind.code: kind for kind in _KINDS}

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 2.0


class _Error(msgspec.Struct):
    message: str = ""
    param: str | None = None
    code: str | int | None = None


class _ErrorBody(msgspec.Struct):
    error: _Error | str = ""


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)


class _Tokens(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Tokens | None = None
    error: _Error | str | None = None


class _Embedding(msgspec.Struct):
    index: int
    embedding: str | list[float]


class _Embeddings(msgspec.Struct):
    data: list[_Embedding]


class _Result(msgspec.Struct):
    index: int
    relevance_score: float


class _Ranking(msgspec.Struct):
    results: list[_Result]


_RANKING = msgspec.json.Decoder(_Ranking)
_CHUNK = msgspec.json.Decoder(_Chunk)
_ERROR = msgspec.json.Decoder(_ErrorBody)
_EMBEDDINGS = msgspec.json.Decoder(_Embeddings)


def error_from(status: int, body: bytes, retry_after: float | None = None) -> SageError:
    """The error that an OpenAI error body tells of, as the class of that status."""
    try:
        error = _ERROR.decode(body).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        error = ""
    return _as_error(
        error, _BY_STATUS.get(status), f"The server answered {status} without a reason.", retry_after
    )


def _as_error(
    error: _Error | str, kind: type[SageError] | None, otherwise: str, retry_after: float | None = None
) -> SageError:
    if isinstance(error, str):
        error = _Error(message=error)
    kind = kind or _BY_CODE.get(str(error.code), EngineError)
    return kind(error.message or otherwise, param=error.param, retry_after=retry_after)


def read_embeddings(body: bytes, count: int) -> npt.NDArray[np.float32]:
    """The vectors of an embeddings answer, shape (count, dimensions), by index.

    Raises EngineError for an answer that does not hold `count` vectors of one length.
    """
    try:
        data = sorted(_EMBEDDINGS.decode(body).data, key=lambda item: item.index)
        rows = [_vector(item.embedding) for item in data]
    except (msgspec.DecodeError, UnicodeDecodeError, binascii.Error, ValueError) as exc:
        raise EngineError(f"The embeddings answer cannot be read: {exc}.") from exc
    if [item.index for item in data] != list(range(count)) or len({len(row) for row in rows}) > 1:
        raise EngineError(f"Asked for {count} embeddings; got {len(rows)}, or not all of one length.")
    return np.stack(rows)


def read_ranking(body: bytes, count: int) -> npt.NDArray[np.float32]:
    """The scores of a rerank answer, shape (count,), by index.

    Raises EngineError for an answer that does not hold `count` of them.
    """
    try:
        results = sorted(_RANKING.decode(body).results, key=lambda one: one.index)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise EngineError(f"The rerank answer cannot be read: {exc}.") from exc
    if [one.index for one in results] != list(range(count)):
        raise EngineError(f"Asked for the scores of {count} documents; got {len(results)}.")
    return np.asarray([one.relevance_score for one in results], dtype=np.float32)


def _vector(value: str | list[float]) -> npt.NDArray[np.float32]:
    if isinstance(value, str):
        return np.frombuffer(base64.b64decode(value, validate=True), dtype="<f4").astype(
            np.float32, copy=False
        )
    return np.asarray(value, dtype=np.float32)


class ChatReader:
    """Reads a chat stream: `feed` gives the pieces of text; `usage` and `done` tell of its end."""

    def __init__(self) -> None:
        self._splitter = Splitter()
        self.usage = Usage()
        self.done = False

    def feed(self, chunk: bytes) -> Iterator[str]:
        """The texts that `chunk` completes. Raises the error that an error event tells of, or EngineError."""
        for event in self._splitter.feed(chunk):
            data = data_of(event)
            if data == b"[DONE]":
                self.done = True
            elif data:
                yield from self._texts(data)

    def finish(self) -> None:
        """Raises EngineError for a stream that ended before its end."""
        if not self.done:
            raise EngineError("The stream broke off before its end.")

    def _texts(self, data: bytes) -> Iterator[str]:
        try:
            chunk = _CHUNK.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            raise EngineError(f"A chunk of the stream cannot be read: {exc}.") from exc
        if chunk.error is not None:
            raise _as_error(chunk.error, None, "The stream failed without a reason.")
        if chunk.usage is not None:
            self.usage = Usage(chunk.usage.prompt_tokens, chunk.usage.completion_tokens)
        for choice in chunk.choices[:1]:
            if choice.delta.content:
                yield choice.delta.content


class Patience:
    """How long a client asks again: on refused connects, and on 429 and 503 that say when to come back."""

    def __init__(self, seconds: float) -> None:
        self._until = asyncio.get_running_loop().time() + seconds
        self._pause = _FIRST_PAUSE_S

    async def wait(self, error: SageError) -> None:
        """Wait until it is worth asking again; raises `error` when it never is, or not soon enough."""
        if isinstance(error, UnreachableError):
            pause = self._pause
            self._pause = min(self._pause * 2, _LONGEST_PAUSE_S)
        elif isinstance(error, OverloadedError | UnavailableError) and error.retry_after is not None:
            pause = error.retry_after
        else:
            raise error
        if asyncio.get_running_loop().time() + pause > self._until:
            raise error
        await asyncio.sleep(pause)
