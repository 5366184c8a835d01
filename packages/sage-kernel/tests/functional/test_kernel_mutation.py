"""The debug mode: whoever changes a record that others have is named; whoever changes his own is not."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import kernel_worker_ops as ops
import pytest

from sage.kernel import Batch, Flow, LocalEnvironment, OperatorError, Parallel, Part, Stream

DEBUG = LocalEnvironment(debug=True)
THREAD = Parallel(1, "thread")
Add = Callable[[Stream[Any]], Stream[Any]]


def spoil(doc: dict[str, int]) -> dict[str, int]:
    doc["n"] += 1
    return doc


async def spoil_later(doc: dict[str, int]) -> dict[str, int]:
    return spoil(doc)


async def spoil_in_parts(doc: dict[str, int]) -> AsyncIterator[Part[str] | dict[str, int]]:
    yield Part("now")
    yield spoil(doc)


def spoil_all(docs: Any) -> Any:
    return [spoil(doc) for doc in docs]


def keep_doc(state: int, doc: dict[str, int]) -> tuple[int, int]:
    return state + spoil(doc)["n"], state


def number(doc: dict[str, int]) -> int:
    return doc["n"]


SPOILERS: dict[str, Add] = {
    "map": lambda s: s.map(spoil, name="spoiler"),
    "async": lambda s: s.map(spoil_later, name="spoiler"),
    "parts": lambda s: s.map(spoil_in_parts, name="spoiler"),
    "filter": lambda s: s.filter(spoil, name="spoiler"),
    "flatmap": lambda s: s.flatmap(lambda doc: [spoil(doc)], name="spoiler"),
    "batch": lambda s: s.map_batch(spoil_all, Batch(4), name="spoiler"),
    "scan": lambda s: s.keyby(lambda _: 0).scan(int, keep_doc, name="spoiler"),
    "thread": lambda s: s.map(spoil, parallelism=Parallel(2, "thread"), name="spoiler"),
    "skips": lambda s: s.map(spoil, on_error="skip", name="spoiler"),
    "thread-skips": lambda s: s.map(spoil, on_error="skip", parallelism=THREAD, name="spoiler"),
    "behind": lambda s: s.filter(bool).map(spoil, name="spoiler"),
}


@pytest.mark.parametrize("spoiler", SPOILERS)
def test_an_operator_that_changes_a_shared_record_is_named(spoiler: str) -> None:
    flow = Flow("shared")
    docs = flow.source(lambda: ({"n": n} for n in range(10)), name="docs")
    SPOILERS[spoiler](docs).sink(lambda _: None)
    docs.map(number).sink(lambda _: None)
    where = r"'spoiler' failed on item 0 .*it changed a record that 'docs' gives to several operators"
    with pytest.raises(OperatorError, match=where):
        DEBUG.run_sync(flow)
    plain = Flow("shared")
    SPOILERS[spoiler](plain.source(lambda: ({"n": n} for n in range(10)))).sink(lambda _: None)
    DEBUG.run_sync(plain)  # alone it may


def test_a_change_behind_its_back_is_found_where_the_record_comes_next() -> None:
    def part_of(doc: dict[str, Any]) -> list[int]:
        parts: list[int] = doc["parts"]
        return parts

    flow = Flow("inner")
    docs = flow.source(lambda: [{"parts": [1]}], name="docs")
    docs.map(part_of).map(lambda parts: parts.append(2)).sink(lambda _: None)
    docs.map_batch(list, Batch(8)).map(len, name="late").sink(lambda _: None)
    with pytest.raises(OperatorError, match="another operator had changed a record that 'docs' gives"):
        DEBUG.run_sync(flow)


def test_copies_and_processes_are_left_in_peace() -> None:
    flow, out = Flow("copies"), list[Any]()
    docs = flow.source(lambda: ({"n": n} for n in range(10)))
    docs.map(dict).map(spoil).sink(lambda _: None)
    docs.map(ops.spoil, parallelism=1).map(number).sink(out.append)
    docs.map(number).sink(out.append)
    DEBUG.run_sync(flow)
    assert sorted(out) == sorted([*range(1, 11), *range(10)])


async def test_services_are_looked_after_as_well() -> None:
    flow = Flow("service")
    docs = flow.requests(dict, name="docs").map(dict, name="copy")
    docs.map(spoil, name="spoiler").sink(lambda _: None)
    flow.reply(docs.map(number))
    async with await DEBUG.submit(flow) as job:
        with pytest.raises(OperatorError, match=r"'spoiler' failed on item 0 .*it changed .* 'copy' gives"):
            await job.request({"n": 1})
