"""A form is the same however it is cut, and what is no form is refused."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage.common.errors import BadRequestError, MediaTypeError
from sage.middleware.engines.multipart import MAX_HEAD, MAX_PARTS, Multipart, Part, boundary_of

MARK = b"\r\n--b"


def form(*parts: tuple[str, bytes]) -> bytes:
    heads = [b'--b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n' % name.encode() for name, _ in parts]
    bodies = [head + body + b"\r\n" for head, (_, body) in zip(heads, parts, strict=True)]
    return b"".join(bodies) + b"--b--\r\n"


def read(pieces: list[bytes]) -> list[tuple[Part, bytes]]:
    reader = Multipart(b"b")
    found: list[tuple[Part, bytes]] = []
    for piece in pieces:
        for one in reader.feed(piece):
            if isinstance(one, Part):
                found.append((one, b""))
            else:
                part, before = found.pop()
                found.append((part, before + one))
    reader.close()
    return found


# Bytes of which boundaries are made, so that nearly-boundaries are common.
PIECES = st.sampled_from([b"\r", b"\n", b"-", b"b", b"--b", b"\r\n--", b"x"])
BODIES = st.lists(PIECES, max_size=12).map(b"".join)


@given(
    st.lists(BODIES.filter(lambda body: MARK not in b"\r\n" + body + b"\r\n--"), max_size=4),
    st.lists(st.integers(0, 400), max_size=8),
    BODIES,
)
def test_it_is_the_same_however_it_is_cut(bodies: list[bytes], cuts: list[int], epilogue: bytes) -> None:
    whole = form(*((f"n{n}", body) for n, body in enumerate(bodies))) + epilogue
    edges = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    pieces = [whole[a:b] for a, b in pairwise(edges)]
    found = read(pieces)
    assert [(part.name, body) for part, body in found] == [(f"n{n}", body) for n, body in enumerate(bodies)]
    assert all(whole.startswith(body + MARK, part.start) for part, body in found)
    assert read([whole[n : n + 1] for n in range(len(whole))]) == read(pieces)


def test_what_is_held_back_is_bounded() -> None:
    reader = Multipart(b"b")
    reader.feed(b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n')
    for _ in range(100):
        (found,) = reader.feed(b"\r\n--" * 1000)
        assert isinstance(found, bytes)
        assert len(found) >= 4000 - len(MARK)


@pytest.mark.parametrize(
    ("disposition", "part"),
    [
        ('form-data; name="a"', Part("a")),
        ("form-data; name=a", Part("a")),
        ('form-data; name="file"; filename="x y.jsonl"', Part("file", "x y.jsonl")),
        ('FORM-DATA; name="file"; filename="a\\"b;c"', Part("file", 'a"b;c')),
        ('form-data; name="file"; filename=""', Part("file", "")),
        ('form-data; name="file"; filename="ä.txt"', Part("file", "ä.txt")),
        ("form-data; name=\"file\"; filename*=utf-8''%C3%A4%20b", Part("file", "ä b")),
    ],
)
def test_names_of_parts(disposition: str, part: Part) -> None:
    head = f"--b\r\nContent-Type: text/plain\r\ncontent-disposition: {disposition}\r\n\r\n"
    raw = head.encode()
    assert Multipart(b"b").feed(raw) == [msgspec.structs.replace(part, start=len(raw))]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"preamble\r\n--b\r\n", "does not begin"),
        (b"--bxy", "neither a new line"),
        (b"--b\r\nContent-Type: text/plain\r\n\r\n", "no Content-Disposition"),
        (b"--b\r\nContent-Disposition: attachment; name=a\r\n\r\n", "no name"),
        (b"--b\r\nContent-Disposition: form-data\r\n\r\n", "no name"),
        (b"--b\r\nContent-Disposition: form-data; name=\xff\r\n\r\n", "not UTF-8"),
        (b'--b\r\nContent-Disposition: form-data; name="a\x00"\r\n\r\n', "control characters"),
        (b"--b\r\nContent-Disposition: form-data; name=a; filename*=utf-8''%0d\r\n\r\n", "control"),
        (b"--b\r\n" + b"x" * (MAX_HEAD + 1), f"over {MAX_HEAD}"),
        (form(*[("a", b"")] * (MAX_PARTS + 1)), f"more than {MAX_PARTS} parts"),
    ],
)
def test_what_is_no_form(body: bytes, words: str) -> None:
    with pytest.raises(BadRequestError, match=words):
        Multipart(b"b").feed(body)


@given(st.integers(0, len(form(("a", b"x"))) - 5))
def test_one_that_breaks_off_is_told(end: int) -> None:
    reader = Multipart(b"b")
    reader.feed(form(("a", b"x"))[:end])
    with pytest.raises(BadRequestError, match="breaks off"):
        reader.close()


@pytest.mark.parametrize(
    ("media", "boundary"),
    [
        ("multipart/form-data; boundary=abc", b"abc"),
        ('Multipart/Form-Data; charset=utf-8; boundary="a b:c"', b"a b:c"),
        ("multipart/form-data;boundary=" + "x" * 70, b"x" * 70),
    ],
)
def test_boundaries(media: str, boundary: bytes) -> None:
    assert boundary_of(media) == boundary


NONE = ["", "application/json", "multipart/mixed; boundary=b", "multipart/form-data"]
BAD = ["", "x" * 71, '"a "', "ä", '"a\\\r\n"']


@pytest.mark.parametrize("media", [*NONE, *(f"multipart/form-data; boundary={text}" for text in BAD)])
def test_types_without_a_boundary(media: str) -> None:
    with pytest.raises(MediaTypeError):
        boundary_of(media)
