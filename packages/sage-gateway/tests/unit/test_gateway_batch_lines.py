"""What a line of a batch must be, and how a file is read."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage.gateway.batch.lines import (
    AT_ONCE,
    MAX_PROBLEMS,
    Inspector,
    LineBounds,
    LineError,
    Lines,
    read_line,
)

URL = "/v1/chat/completions"
GOOD: dict[str, Any] = {"custom_id": "a", "method": "POST", "url": URL, "body": {"model": "m", "n": 1.50}}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(st.text(min_size=1, max_size=20), st.dictionaries(st.text(max_size=8), JSON, max_size=5))
def test_a_body_goes_on_as_it_was_written(ident: str, body: dict[str, Any]) -> None:
    if any(0xD800 <= ord(char) <= 0xDFFF for char in json.dumps(body, ensure_ascii=False) + ident):
        return
    raw = json.dumps(body)
    text = f'{{"method": "POST", "body": {raw}, "url": "{URL}", "custom_id": {json.dumps(ident)}}}'
    line = read_line(7, text.encode(), URL)
    assert (line.number, line.custom_id, line.body.decode()) == (7, ident, raw)
    assert line.stream == bool(body.get("stream"))


@given(st.binary(max_size=60))
def test_any_bytes_are_a_line_or_are_told_why_not(raw: bytes) -> None:
    with pytest.raises(LineError):
        read_line(1, raw, URL)


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"custom_id": 5}, "missing_required_parameter", "custom_id is no string"),
        ({"custom_id": None}, "missing_required_parameter", "custom_id"),
        ({"method": None}, "missing_required_parameter", "method"),
        ({"url": 1}, "missing_required_parameter", "url"),
        ({"body": []}, "missing_required_parameter", "body is no object"),
        ({"custom_id": ""}, "invalid_custom_id", "0 of 1 to 512"),
        ({"custom_id": "x" * 513}, "invalid_custom_id", "513"),
        ({"method": "GET"}, "invalid_method", "'GET'"),
        ({"url": "/v1/embeddings"}, "invalid_url", "its endpoint"),
    ],
)
def test_what_a_line_lacks(change: dict[str, Any], code: str, words: str) -> None:
    with pytest.raises(LineError, match=words) as found:
        read_line(1, json.dumps({**GOOD, **change}).encode(), URL)
    assert found.value.code == code


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"[]", b"1", b'{"a":1,"a":2}', b'{"a":NaN}', b"\xff", b"[" * 100, b'{"a":"\\ud800"}'],
)
def test_what_is_no_object(raw: bytes) -> None:
    with pytest.raises(LineError, match="line") as found:
        read_line(1, raw, URL)
    assert found.value.code == "invalid_json_line"


def inspect(*lines: bytes | None, most: int = 10) -> Inspector:
    inspector = Inspector(URL, LineBounds(most, 100))
    for number, raw in enumerate(lines, start=1):
        inspector.look(number, raw)
    inspector.finish()
    return inspector


def named(ident: str) -> bytes:
    return json.dumps({**GOOD, "custom_id": ident}).encode()


def test_a_name_is_used_once() -> None:
    found = inspect(named("a"), named("b"), named("a"), named("b"), named("c"))
    assert [(one.code, one.line) for one in found.problems] == [
        ("duplicate_custom_id", 3),
        ("duplicate_custom_id", 4),
    ]
    assert "that of line 1" in found.problems[0].message
    assert found.total == 5


def test_bounds_of_a_file() -> None:
    assert [one.code for one in inspect().problems] == ["empty_file"]
    assert [(one.code, one.line) for one in inspect(None, named("a")).problems] == [("line_too_long", 1)]
    full = inspect(*(named(str(n)) for n in range(11)))
    assert full.full
    assert [(one.code, one.line) for one in full.problems] == [("too_many_lines", 11)]
    assert not inspect(*(named(str(n)) for n in range(10))).full


def test_problems_are_told_up_to_a_bound() -> None:
    found = inspect(*[b"{"] * 300, most=1000)
    assert found.full
    assert len(found.problems) == MAX_PROBLEMS


@given(
    st.lists(st.binary(max_size=30).map(lambda raw: raw.replace(b"\n", b"").replace(b"\r", b"")), max_size=20)
)
def test_lines_are_numbered_as_an_editor_does(rows: list[bytes]) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"\n".join(rows))
        file.flush()
        with Lines(Path(file.name), 20) as lines:
            found = [one for some in iter(lines.some, []) for one in some]
    wanted = [(n, raw) for n, raw in enumerate(rows, start=1) if raw.strip() or len(raw) > 20]
    assert found == [(n, raw if len(raw) <= 20 else None) for n, raw in wanted]


def test_a_file_is_read_a_little_at_a_time(tmp_path: Path) -> None:
    file = tmp_path / "in"
    file.write_bytes(b"x\r\n" * (AT_ONCE + 1) + b"y" * 10_000_000 + b"\nlast")
    with Lines(file, 100) as lines:
        first, second = lines.some(), lines.some()
        assert lines.some() == []
    assert first == [(n, b"x") for n in range(1, AT_ONCE + 1)]
    assert second == [(AT_ONCE + 1, b"x"), (AT_ONCE + 2, None), (AT_ONCE + 3, b"last")]
