"""The conformance suite of `ModelClient`: subclass it in a test module and give it the fixture `bench`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import numpy as np

from sage.middleware.client import Delta, Message, ModelClient

__all__ = ["Bench", "ClientSuite"]

HELLO: list[Message] = [{"role": "user", "content": "hello"}]


@dataclass(frozen=True, slots=True)
class Bench:
    """A client with batches of at most four texts, before engines that answer `one two three`.

    `stall()` makes the next stream stop after its first piece; `idle()` waits until the engines have nothing
    to do.
    """

    client: ModelClient
    model: str
    stall: Callable[[], None]
    idle: Callable[[], Awaitable[None]]


class ClientSuite:
    """What every client keeps to."""

    async def test_embeddings_come_in_input_order(self, bench: Bench) -> None:
        """Over several batches, equal to one at a time."""
        texts = [f"text {number}" for number in range(10)]
        together = await bench.client.embed(texts, model=bench.model, bulk=True)
        singly = [await bench.client.embed([text], model=bench.model) for text in texts]
        assert together.dtype == np.float32
        assert together.shape[0] == 10
        np.testing.assert_array_equal(together, np.concatenate(singly))
        assert len({row.tobytes() for row in together}) == 10

    async def test_no_texts_give_no_rows(self, bench: Bench) -> None:
        """Without a request."""
        assert (await bench.client.embed([], model=bench.model)).shape[0] == 0

    async def test_scores_come_in_the_order_of_the_documents(self, bench: Bench) -> None:
        """Whatever the order in which the engine answers; each depends on its own document."""
        documents = [f"text {number}" for number in range(6)]
        together = await bench.client.rerank("which?", documents, model=bench.model)
        singly = [await bench.client.rerank("which?", [one], model=bench.model) for one in documents]
        assert together.dtype == np.float32
        assert together.shape == (6,)
        np.testing.assert_array_equal(together, np.concatenate(singly))
        assert (await bench.client.rerank("which?", [], model=bench.model)).shape == (0,)

    async def test_a_chat_streams_its_text_and_ends_with_usage(self, bench: Bench) -> None:
        """The last delta has usage and no text."""
        deltas: list[Delta] = [
            delta async for delta in bench.client.chat(HELLO, model=bench.model, max_tokens=9)
        ]
        assert [delta.text for delta in deltas] == ["one ", "two ", "three", ""]
        assert [delta.usage is None for delta in deltas] == [True, True, True, False]
        assert deltas[-1].usage is not None
        assert deltas[-1].usage.completion_tokens == 3

    async def test_an_abandoned_stream_frees_the_engine(self, bench: Bench) -> None:
        """Closing the iterator is enough."""
        bench.stall()
        stream = bench.client.chat(HELLO, model=bench.model)
        assert (await anext(stream)).text == "one "
        await stream.aclose()  # type: ignore[attr-defined]  # every client's iterator is an async generator
        await bench.idle()

    async def test_models_are_listed(self, bench: Bench) -> None:
        """By the id that is asked for."""
        assert await bench.client.models() == [bench.model]
