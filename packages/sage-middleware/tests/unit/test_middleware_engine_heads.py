"""A head that was seen before stands for itself and for nothing else."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sage.middleware.engines.heads import Head, python_body

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nContent-Length: %d\r\nx-api-key: a\r\n\r\n"


def request(body: bytes, head: bytes = HEAD) -> bytes:
    return head % len(body) + body


def known() -> Head:
    found = Head.of(request(b"{}"), 2)
    assert found is not None
    return found


@given(st.binary(max_size=1000))
def test_a_whole_request_with_the_same_head_gives_its_body(body: bytes) -> None:
    assert known().body(request(body), 1000) == body


@given(st.binary(max_size=200), st.integers(0, 400))
def test_a_part_of_a_request_gives_nothing(body: bytes, cut: int) -> None:
    data = request(body)
    assert known().body(data[: min(cut, len(data) - 1)], 1000) is None


@given(st.binary(max_size=50), st.binary(min_size=1, max_size=50))
def test_what_follows_the_body_is_left_to_the_parser(body: bytes, more: bytes) -> None:
    assert known().body(request(body) + more, 1000) is None


@given(st.binary(max_size=50), st.integers(0, len(HEAD % 50) - 1), st.integers(1, 255))
def test_a_head_that_differs_in_one_byte_is_another(body: bytes, at: int, flip: int) -> None:
    data = bytearray(request(body))
    at = min(at, len(data) - len(body) - 1)
    data[at] ^= flip
    taken = known().body(bytes(data), 1000)
    length = bytes(data).partition(b"Content-Length: ")[2].partition(b"\r")[0]
    assert taken is None or (int(length) == len(body) and taken == body)  # a digit became the same number


def test_a_body_over_the_limit_is_left_to_the_parser() -> None:
    assert known().body(request(b"x" * 1000), 1000) is not None
    assert known().body(request(b"x" * 1001), 1000) is None


def test_a_length_that_is_no_number_is_left_to_the_parser() -> None:
    for digits in (b"", b"-2", b"+2", b"2 ", b"0x2", b"\xd9\xa2", b"2" * 30):
        data = request(b"{}").replace(b"Content-Length: 2", b"Content-Length: " + digits)
        assert known().body(data, 1000) is None


def test_a_head_without_a_length_or_with_half_a_body_is_not_kept() -> None:
    chunked = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
    assert Head.of(chunked, 0) is None
    assert Head.of(request(b"{}")[:-1], 2) is None
    assert Head.of(request(b"{}") + b"GET", 2) is None
    assert Head.of(b"", 0) is None


@st.composite
def messages(draw: st.DrawFn) -> tuple[bytes, bytes, bytes]:
    """What came, and a head that may be its own: mostly whole, sometimes with a byte too few or changed."""
    body = draw(st.binary(max_size=120))
    digits = draw(
        st.sampled_from((b"%d" % len(body), b"%016d" % len(body), b"%015d" % len(body), b"", b"-1"))
    )
    before, after = draw(st.binary(max_size=9)), b"\r\n" + draw(st.binary(max_size=9))
    data = bytearray(before + digits + after + body)
    if data and draw(st.booleans()):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: len(data) - draw(st.integers(0, 2))]), before, after


@given(messages(), st.integers(0, 120))
def test_natively_and_in_python_the_same_is_read(message: tuple[bytes, bytes, bytes], most: int) -> None:
    data, before, after = message
    assert Head(before, after).body(data, most) == python_body(data, before, after, most)
