"""In a form the model alone is named anew: every other byte stays where it was."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage.common.errors import BadRequestError, MediaTypeError
from sage.common.telemetry import Bound
from sage.middleware.engines.forms import MAX_PARTS, MAX_VALUE, form_type, read_form, rename_form
from sage.middleware.engines.multipart import MAX_HEAD

TYPE = "multipart/form-data; boundary=xyz"


def part(name: str, value: bytes, *, filename: str | None = None) -> bytes:
    head = f'Content-Disposition: form-data; name="{name}"'
    head += "" if filename is None else f'; filename="{filename}"\r\nContent-Type: audio/wav'
    return b"--xyz\r\n" + head.encode() + b"\r\n\r\n" + value + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--xyz--\r\n"


# Nearly boundaries, so that a splice that searches for one finds the wrong one.
SOUND = st.lists(
    st.sampled_from([b"\r", b"\n", b"-", b"--xyz", b"xyz", b"model", b"\r\n--xy", b"\x00\xff"]), max_size=20
).map(b"".join)
HONEST = SOUND.filter(lambda value: b"\r\n--xyz" not in b"\r\n" + value + b"\r\n--")
NAMES = st.text(string.ascii_letters + string.digits + "-._/: é", min_size=1, max_size=40)


@given(st.lists(HONEST, max_size=3), st.lists(HONEST, max_size=3), NAMES, NAMES)
def test_the_model_alone_changes(before: list[bytes], after: list[bytes], old: str, new: str) -> None:
    first = [part(f"a{n}", value, filename="f") for n, value in enumerate(before)]
    last = [part(f"b[{n}][]", value) for n, value in enumerate(after)]
    body = form(*first, part("model", old.encode()), *last)
    renamed = rename_form(body, TYPE, new)
    assert renamed == form(*first, part("model", new.encode()), *last)
    assert rename_form(body, TYPE, old) is body


@given(st.lists(HONEST, min_size=1, max_size=5))
def test_spans_are_those_of_the_values(values: list[bytes]) -> None:
    body = form(*(part(f"f{n}", value) for n, value in enumerate(values)))
    fields = read_form(body, TYPE)
    assert [body[field.start : field.stop] for field in fields] == values
    assert [field.value for field in fields] == values
    assert not any(field.is_file for field in fields)


def test_a_file_of_many_pieces_is_spanned_and_not_kept() -> None:
    sound = bytes(range(256)) * 2000
    fields = read_form(form(part("file", sound, filename="a.wav"), part("model", b"m")), TYPE)
    assert [(field.name, field.is_file, field.stop - field.start) for field in fields] == [
        ("file", True, len(sound)),
        ("model", False, 1),
    ]
    assert fields[0].value == b""


def test_lists_may_come_more_than_once_and_nothing_else() -> None:
    twice = [part("image[]", b"1", filename="a"), part("image[]", b"2", filename="b")]
    assert [field.name for field in read_form(form(*twice), TYPE)] == ["image[]", "image[]"]
    with pytest.raises(BadRequestError, match="'model' twice") as caught:
        read_form(form(part("model", b"a"), part("model", b"b")), TYPE)
    assert caught.value.param == "model"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "breaks off"),
        (b"nonsense", "does not begin"),
        (form(part("model", b"m"))[:-6], "breaks off"),
        (form(*[part("image[]", b"x")] * (MAX_PARTS + 1)), f"more than {MAX_PARTS} parts"),
        (form(part("prompt", b"x" * (MAX_VALUE + 1))), f"'prompt' has more than {MAX_VALUE} bytes"),
        (form(part("file", b"x", filename="f")), "'model' is missing"),
    ],
)
def test_what_cannot_be_named_anew(body: bytes, words: str) -> None:
    with pytest.raises(BadRequestError, match=words):
        rename_form(body, TYPE, "m")


@pytest.mark.parametrize(
    ("body", "bound"),
    [
        (form(*[part("image[]", b"x")] * (MAX_PARTS + 1)), Bound.FORM_PARTS),
        (form(part("x" * (MAX_HEAD + 1), b"x")), Bound.FORM_HEAD_BYTES),
        (form(part("prompt", b"x" * (MAX_VALUE + 1))), Bound.FORM_FIELD_BYTES),
    ],
)
def test_bounds_are_named_and_the_largest_form_passes(body: bytes, bound: Bound) -> None:
    with pytest.raises(BadRequestError) as caught:
        read_form(body, TYPE)
    assert caught.value.bound is bound
    largest = form(*[part("image[]", b"x")] * (MAX_PARTS - 1), part("prompt", b"x" * MAX_VALUE))
    assert len(read_form(largest, TYPE)) == MAX_PARTS


def test_a_name_that_would_end_its_part_is_refused() -> None:
    with pytest.raises(BadRequestError, match="boundary of the form"):
        rename_form(form(part("model", b"m")), TYPE, "--xyz")


def test_it_goes_on_with_the_boundary_that_it_was_read_by() -> None:
    given_type = 'multipart/form-data; boundary=one; boundary="a b"; charset=utf-8'
    assert form_type(given_type) == 'multipart/form-data; boundary="a b"'
    with pytest.raises(MediaTypeError):
        form_type("application/json")
