"""Messages between a run and its workers."""

from __future__ import annotations

import pickle
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sage.kernel.runtime.replicas.wire import SHARED, Area, message, pack, read, receive, unpack

VALUES = st.recursive(
    st.none() | st.integers() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner),
)


class Buffer:
    """Something whose pickle leaves its bytes out."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __reduce_ex__(self, _protocol: Any) -> Any:
        return Buffer, (pickle.PickleBuffer(self.data),)


@given(st.lists(VALUES, min_size=1, max_size=4), st.integers(1, 7))
def test_messages_come_in_as_they_went_out_however_they_are_cut(values: list[Any], cut: int) -> None:
    area = Area()
    try:
        for value in values:
            data = message(pack(value), area)
            at = 0

            def recv(_size: int, data: bytes = data) -> bytes:
                nonlocal at
                at += max(1, len(data) // cut)
                return data[at - max(1, len(data) // cut) : at]

            parts = receive(recv, area)
            assert parts is not None
            assert unpack(parts) == value
    finally:
        area.close()


@given(st.lists(st.integers(0, 3 * SHARED), max_size=4))
def test_buffers_are_left_out_of_the_pickle_and_large_ones_of_the_socket(sizes: list[int]) -> None:
    writer = Area()
    reader = Area(writer.fd)
    sent = [Buffer(bytearray([7]) * size) for size in sizes]
    parts = pack(sent)
    data = message(parts, writer)
    assert len(parts) == 1 + len(sizes)
    assert len(data) < SHARED + 100
    found = read(data, reader)
    assert found is not None
    assert found[1] == len(data)
    got = unpack(found[0])
    assert [bytes(one.data) for one in got] == [bytes(one.data) for one in sent]
    assert all(not memoryview(one.data).readonly for one in got)  # arrays of them can be written
    writer.close()


def test_an_area_grows_and_what_was_read_stays() -> None:
    writer = Area()
    reader = Area(writer.fd)
    kept = list[bytes]()
    for letter in (b"a", b"b", b"c"):
        text = letter * (SHARED * (1 + len(kept)))
        found = read(message(pack(text), writer), reader)
        assert found is not None
        kept.append(unpack(found[0]))
    assert [one[:1] for one in kept] == [b"a", b"b", b"c"]
    writer.close()


def test_a_socket_that_ends_is_the_end() -> None:
    area = Area()
    assert receive(lambda _: b"", area) is None
    area.close()
