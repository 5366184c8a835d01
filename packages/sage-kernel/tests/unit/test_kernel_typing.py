"""Typed wiring: mypy follows the records through a flow and rejects what does not fit.

Each `type: ignore` below is a rejection that mypy has to make: where it makes none, it reports the comment
as unused.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, assert_type

import pytest

from sage.kernel import (
    Batch,
    Cache,
    Failure,
    Flow,
    Parallel,
    Part,
    PlanError,
    Resources,
    Retry,
    Scale,
    ServiceCall,
    Stream,
    call_service,
    use,
)


def text_of(x: int) -> str:
    return str(x)


def length(text: str) -> int:
    return len(text)


async def fetch(x: int) -> bytes:
    return bytes(x)


async def speak(x: int) -> AsyncIterator[Part[str] | float]:
    yield Part("a")
    yield float(x)


def halves(xs: Sequence[int]) -> list[float]:
    return [x / 2 for x in xs]


async def fetch_all(xs: Sequence[int]) -> list[bytes]:
    return [bytes(x) for x in xs]


def longest(state: int, text: str) -> tuple[int, bool]:
    return max(state, len(text)), len(text) > state


class Caller:
    async def __call__(self, x: int) -> bytes:
        return bytes(x)


class Halver:
    def setup(self) -> None: ...

    def __call__(self, xs: Sequence[int], /) -> list[float]:
        return [x / 2 for x in xs]

    def close(self) -> None: ...


class Library:
    async def find(self, text: str) -> list[str]:
        return [text]

    def size(self) -> int:
        return 0


class TextStore:
    async def write(self, epoch: int, items: Sequence[str], /) -> None: ...

    async def commit(self, epoch: int, /) -> None: ...


def numbers() -> Stream[int]:
    return Flow("typed").source([1, 2, 3], name="numbers")


def test_a_source_gives_what_it_reads() -> None:
    async def letters() -> AsyncIterator[str]:
        yield "a"

    flow = Flow("sources")
    assert_type(flow.source([1]), Stream[int])
    assert_type(flow.source(letters), Stream[str])
    assert_type(flow.source(letters()), Stream[str])
    assert_type(flow.requests(str), Stream[str])
    assert_type(flow.source(use("lines", path="in.txt")), Stream[Any])
    assert len(flow.plan.nodes) == 5


def test_a_map_gives_what_its_function_gives() -> None:
    stream = numbers()
    assert_type(stream.map(text_of), Stream[str])
    assert_type(stream.map(float), Stream[float])
    assert_type(stream.map(lambda x: x / 2), Stream[float])
    assert_type(stream.map(fetch, concurrency=2, retry=Retry()), Stream[bytes])
    assert_type(stream.map(lambda x: fetch(x), timeout=1), Stream[bytes])
    assert_type(stream.map(Caller(), timeout=1), Stream[bytes])
    assert_type(stream.map(speak, order="input"), Stream[float])
    assert_type(stream.map(use("sage.split")), Stream[Any])
    assert len(stream.flow.plan.nodes) == 9


def test_the_other_verbs_keep_the_type_too() -> None:
    stream = numbers()
    assert_type(stream.flatmap(lambda x: [str(x)] * x), Stream[str])
    assert_type(stream.filter(bool).merge(stream), Stream[int])
    assert_type(stream.map_batch(halves, Batch(2)), Stream[float])
    assert_type(stream.map_batch(fetch_all), Stream[bytes])
    assert_type(stream.map_batch(Halver), Stream[float])
    assert_type(stream.map(text_of).keyby(length).scan(int, longest), Stream[bool])
    assert_type(stream.map(fetch, on_error="divert").diverted, Stream[Failure[Any]])
    stream.map(text_of).sink(TextStore())


def test_operators_on_workers_keep_the_type_too() -> None:
    stream = numbers()
    assert_type(stream.map(text_of, parallelism=2, scale=Scale(1, 4)), Stream[str])
    assert_type(stream.flatmap(lambda x: [str(x)] * x, parallelism=Parallel(2, "thread")), Stream[str])
    assert_type(stream.filter(bool, parallelism=2), Stream[int])
    assert_type(stream.map_batch(Halver, parallelism=2, resources=Resources(gpu=1)), Stream[float])
    assert_type(stream.map(fetch, resources=Resources(cpu=2)), Stream[bytes])
    stream.map(text_of, parallelism="two")  # type: ignore[call-overload]
    stream.map(fetch, timeout=1, scale=Scale(1, 2))  # type: ignore[call-overload]


def test_loops_gates_and_caches_keep_the_type() -> None:
    stream = numbers()
    assert_type(stream.iterate(lambda s: s.map(abs), until=bool, max_rounds=3), Stream[int])
    assert_type(stream.gate("desk", when=bool, timeout=60), Stream[int])
    assert_type(stream.map(text_of, cache=Cache(ttl=60)), Stream[str])
    assert_type(stream.map(fetch, cache=Cache(), timeout=1), Stream[bytes])
    assert_type(stream.map_batch(halves, cache=Cache(size=5)), Stream[float])
    texts = stream.map(text_of)
    assert_type(texts.keyby(length).scan(int, longest, ttl=60), Stream[bool])
    stream.iterate(lambda s: s.map(text_of), until=bool, max_rounds=3)  # type: ignore[arg-type]
    texts.iterate(lambda s: s.map(text_of), until=bool, max_rounds=3)  # type: ignore[arg-type]
    texts.iterate(lambda s: s, until=text_of, max_rounds=3)  # type: ignore[arg-type]
    texts.gate("desk", when=text_of, timeout=60)  # type: ignore[arg-type]
    stream.gate("desk", timeout=60, on_timeout="wait")  # type: ignore[arg-type]
    assert len(stream.flow.plan.nodes) == 13


def test_a_service_call_has_the_types_of_its_method() -> None:
    find = call_service("library", Library.find)

    async def called() -> None:
        assert_type(await find("a"), list[str])
        await find(3)  # type: ignore[arg-type]

    assert_type(call_service("library", Library.size), ServiceCall[[], int])
    assert_type(call_service("library", "find"), ServiceCall[..., Any])
    texts = numbers().map(text_of)
    assert_type(texts.map(find, concurrency=2), Stream[list[str]])
    assert_type(texts.map(call_service("answers")), Stream[Any])
    assert called.__name__ == "called"
    numbers().map(find)  # type: ignore[arg-type]


def test_what_does_not_fit_is_rejected_before_it_runs() -> None:
    stream = numbers()
    texts = stream.map(text_of)
    stream.map(length)  # type: ignore[arg-type]
    texts.map(fetch)  # type: ignore[arg-type]
    texts.map(fetch, concurrency=2)  # type: ignore[arg-type]
    texts.map(speak)  # type: ignore[arg-type]
    texts.map(Caller())  # type: ignore[arg-type]
    texts.map(lambda text: text.no_such_method())  # type: ignore[attr-defined]
    texts.flatmap(text_of)  # type: ignore[arg-type]
    texts.filter(text_of)  # type: ignore[arg-type]
    texts.map_batch(halves)  # type: ignore[arg-type]
    texts.map_batch(Halver)  # type: ignore[arg-type]
    texts.merge(stream)  # type: ignore[arg-type]
    texts.keyby(text_of)  # type: ignore[arg-type]
    stream.keyby(text_of).scan(int, longest)  # type: ignore[arg-type]
    stream.sink(TextStore())  # type: ignore[arg-type]
    stream.sink(length)  # type: ignore[arg-type]
    # Building looks at nothing: only the type checker sees these, which is why the plan has them all.
    assert len(stream.flow.plan.nodes) == 16


def test_options_that_would_do_nothing_are_rejected() -> None:
    stream = numbers()
    stream.map(text_of, timeout=1)  # type: ignore[arg-type]
    stream.map(fetch, order="sorted")  # type: ignore[call-overload]
    stream.map(fetch, on_error="retry")  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="concurrency"):
        stream.filter(bool, concurrency=2)  # type: ignore[call-arg]
    with pytest.raises(PlanError, match=r"(?s)order='sorted'.*on_error='retry'"):
        stream.flow.check()
