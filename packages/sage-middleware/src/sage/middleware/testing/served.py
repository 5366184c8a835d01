"""The embedding server in a test's own process, around a model that the test can hold."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers

from sage.middleware.engines.asks import Task
from sage.middleware.engines.batching import Text
from sage.middleware.engines.embedding_server import EmbeddingApp
from sage.middleware.engines.http import HttpPool
from sage.middleware.engines.server import ServerProtocol
from sage.middleware.engines.threads import THREADS_HEADER, Cores
from sage.middleware.engines.tokens import Tokens
from sage.middleware.testing.engines import RecordingSink

__all__ = ["Held", "HeldPairs", "Server", "serving"]

WORDS = ("red", "green", "blue", "?")


class Held:
    """A model whose batches wait for the test; a text's vector depends on the text alone."""

    dimensions = 4
    pads = True

    def __init__(self) -> None:
        self.tokens = _tokens()
        self.batches: list[Sequence[Text]] = []
        self.threads: list[int] = []
        self.free = threading.Event()
        self.free.set()
        self.entered = threading.Event()

    def encode(self, texts: Sequence[Text], threads: int) -> tuple[np.ndarray[Any, Any], list[int]]:
        """Wait until the model is free; `poison` fails the batch, `short` loses rows of it."""
        self.batches.append(texts)
        self.threads.append(threads)
        self.entered.set()
        assert self.free.wait(10)
        if "poison" in texts:
            raise RuntimeError("poisoned")
        if "short" in texts:
            return np.zeros((1, 4), dtype=np.float32), [1]
        rows = [self.row(text) for text in texts]
        words = [text if isinstance(text, str) else " ".join(text) for text in texts]
        return np.asarray(rows, dtype=np.float32), [len(text.split()) for text in words]

    def row(self, text: Text) -> Any:
        """What is computed of one text."""
        assert isinstance(text, str)
        return [len(text), ord(text[0]), 3.0, 4.0]


class HeldPairs(Held):
    """The same for pairs: a score is how many letters they share."""

    dimensions = 0

    def row(self, text: Text) -> Any:
        """How many letters the two share."""
        assert isinstance(text, tuple)
        return len(set(text[0]) & set(text[1]))


class Server:
    """A client of the server, and the server's own parts."""

    def __init__(self, model: Held, app: EmbeddingApp, pool: HttpPool) -> None:
        self.model, self.app, self.pool = model, app, pool

    async def post(
        self, body: bytes | None = None, path: str = "/v1/embeddings", **fields: Any
    ) -> tuple[int, dict[str, Any]]:
        """Ask by a POST with JSON."""
        sink = RecordingSink()
        raw = msgspec.json.encode({"model": "m", **fields}) if body is None else body
        await self.pool.request("POST", path, sink, body=raw)
        return sink.status, sink.json()

    async def rerank(self, query: str, *documents: str) -> tuple[int, dict[str, Any]]:
        """Ask for the scores of documents."""
        return await self.post(path="/v1/rerank", query=query, documents=documents)

    async def score(self, left: Any, right: Any) -> tuple[int, dict[str, Any]]:
        """Ask for the scores of pairs."""
        return await self.post(path="/v1/score", text_1=left, text_2=right)

    async def embed(self, threads: str) -> tuple[int, dict[str, Any]]:
        """Ask for a vector, with so many threads."""
        sink = RecordingSink()
        raw = msgspec.json.encode({"model": "m", "input": "text"})
        headers = {THREADS_HEADER: threads}
        await self.pool.request("POST", "/v1/embeddings", sink, body=raw, headers=headers)
        return sink.status, sink.json()

    async def get(self, path: str) -> tuple[int, dict[str, Any]]:
        """Ask for a page."""
        sink = RecordingSink()
        await self.pool.request("GET", path, sink)
        return sink.status, sink.json()

    async def entered(self) -> None:
        """Wait until a batch is being computed."""
        assert await asyncio.to_thread(self.model.entered.wait, 60)

    async def waiting(self, count: int) -> None:
        """Wait until exactly so many requests wait for a batch."""
        async with asyncio.timeout(60):
            while self.app._batcher.waiting != count:  # noqa: ASYNC110 - set by the worker thread
                await asyncio.sleep(0)


@asynccontextmanager
async def serving(model: Held, task: Task) -> AsyncIterator[Server]:
    """Serve `model` as `m` on a free port."""
    loop = asyncio.get_running_loop()
    app = EmbeddingApp(model, "m", Cores(threads=2, most=4), task=task)
    listener = await loop.create_server(
        lambda: ServerProtocol(app.handle, lambda _protocol, _opened: None), "127.0.0.1", 0
    )
    pool = HttpPool(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}")
    try:
        yield Server(model, app, pool)
    finally:
        model.free.set()
        pool.close()
        listener.close()
        await asyncio.to_thread(app.close)


def _tokens() -> Tokens:
    """A tokenizer of four words; what is none of them is the last."""
    ids = {word: at for at, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=WORDS[-1]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=2)
    return Tokens(tokenizer, 16)
