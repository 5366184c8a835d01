"""State as bytes: a key is one key however it is written, and the event loop is never kept for long."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage.kernel import CheckpointError
from sage.kernel.runtime.columns import Columns, Watermark
from sage.kernel.runtime.state import GONE, changed, pickled, pickled_batch, plain_bytes, unpickled


class Given:
    """`Stateful` with these changes."""

    def __init__(self, pairs: Iterable[tuple[Any, Any]]) -> None:
        self._pairs = pairs

    def begin(self, states: Iterable[tuple[Any, Any]], plain: Any, /) -> None:
        raise AssertionError("not here")

    def changes(self) -> Iterator[tuple[Any, Any]]:
        return iter(self._pairs)

    def plain(self) -> None:
        return None


@dataclass(frozen=True)
class Point:
    name: str
    at: tuple[float, ...]


async def keys_of(*keys: Any) -> list[bytes]:
    return (await changed("op", Given((key, 1) for key in keys))).keys


_NUMBERS = st.integers(-(2**70), 2**70) | st.integers(-3, 3)


@given(_NUMBERS)
async def test_equal_numbers_are_one_key(number: int) -> None:
    equal = [other for other in (number, float(number), bool(number)) if other == number]
    assert len(set(await keys_of(*equal))) == 1
    assert len(set(await keys_of(*(("a", (key,)) for key in equal)))) == 1
    first, second = await keys_of(number, number + 1)
    assert first != second


_KEYS = st.recursive(
    st.one_of(st.none(), st.booleans(), _NUMBERS, st.text(), st.binary(), st.floats(allow_nan=False)),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=1),
    max_leaves=6,
)


@given(_KEYS, _KEYS)
async def test_keys_have_equal_bytes_if_they_are_equal(one: Any, other: Any) -> None:
    """Also where the parts of one are the same object, and of the other only equal ones."""
    again, another = (unpickled(pickled(key, "it"), "it") for key in (one, other))
    first, second, third, fourth = await keys_of((one, one), (again, another), (one, other), (one, again))
    assert second == third
    assert first == fourth
    if one == other and type(one) is type(other):
        assert first == third


def test_plain_bytes_do_not_depend_on_what_is_shared() -> None:
    name = "".join(["a", "b"])
    shared, apart = Point(name, (1.0,)), Point("ab", (1.0,))
    assert plain_bytes([shared, shared]) == plain_bytes([shared, apart])
    deep: list[Any] = []
    for _ in range(200):
        deep = [deep]
    assert unpickled(plain_bytes(deep), "it") == deep
    deep.append(deep)
    assert unpickled(plain_bytes(deep), "it")[1] is not None


async def test_what_is_gone_is_empty() -> None:
    found = await changed("op", Given([("a", 1), ("b", GONE), ("c", None)]))
    assert [bool(state) for state in found.states] == [True, False, True]
    assert unpickled(found.states[2], "it") is None


async def test_the_loop_has_turns_while_much_is_pickled() -> None:
    """Without a clock: another task is let in more than once before the end."""
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    found = await changed("op", Given((x, [x] * 500) for x in range(20_000)))
    counting.cancel()
    assert len(found.keys) == 20_000
    assert turns > 3


def test_what_cannot_be_read_says_what_it_was() -> None:
    with pytest.raises(CheckpointError, match=r"the state of operator 'x' cannot be read .*: bring it back"):
        unpickled(b"cno.such.module\nThing\n.", "the state of operator 'x'")
    with pytest.raises(CheckpointError, match="it cannot be pickled for a checkpoint"):
        pickled(lambda: None, "it")


@pytest.mark.parametrize(
    "batch", [[1, iter(())], Columns([1, iter(())], [0.0, 1.0])], ids=["list", "columns"]
)
def test_an_item_of_a_batch_is_named(batch: Any) -> None:
    items = batch if isinstance(batch, list) else batch.values
    items[1] = lambda: None
    with pytest.raises(CheckpointError, match=r"an item for 'stage' \(<function"):
        pickled_batch(batch, "stage")
    assert unpickled(pickled_batch(Watermark(3.0), "stage"), "it") == Watermark(3.0)
