"""What is written is what is read, whatever it is; and what is no line, JSON or CSV is told with its
place."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage.common.errors import BadRequestError, ConflictError, NotFoundError
from sage.kernel.connectors import Csv, CsvFile, Files, Jsonl, JsonlFile, Lines, LinesFile
from sage.kernel.connectors.appended import AppendedFile
from sage.kernel.testing.connectors import gathered

BLOCKS = st.integers(1, 40)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(
    ["", "\r", '"', "a\r\nb", "\n\n", " ", "\ufeff", "x" * 3000, "\x85\u2028\x0b", "nul \0"]
)
LINES = st.lists(TEXT.filter(lambda line: "\n" not in line and not line.endswith("\r")), max_size=12)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
ROWS = st.lists(TEXT, min_size=1, max_size=4, unique=True).flatmap(
    lambda names: st.lists(st.fixed_dictionaries(dict.fromkeys(names, TEXT)), min_size=1, max_size=8)
)


async def write(sink: AppendedFile, batches: Sequence[Sequence[Any]]) -> None:
    """An epoch for each batch."""
    sink.setup()
    for epoch, batch in enumerate(batches, 1):
        await sink.write(epoch, batch)
        await sink.commit(epoch)
    sink.close()


def halves(records: list[Any]) -> list[list[Any]]:
    return [records[: len(records) // 2], records[len(records) // 2 :]]


async def same_from_every_position(source: Any, records: list[Any]) -> None:
    assert await gathered(source) == records
    passed = 0
    for position, batch in source.read(None):
        passed += len(batch)
        assert await gathered(source, position) == records[passed:]


@settings(max_examples=60)
@given(LINES, BLOCKS)
def test_lines_come_back(lines: list[str], block: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        asyncio.run(write(LinesFile(path), halves(lines)))
        asyncio.run(same_from_every_position(Lines(path, block=block), lines))


@settings(max_examples=60)
@given(st.lists(JSON, max_size=8), BLOCKS)
def test_json_comes_back(values: list[Any], block: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        asyncio.run(write(JsonlFile(path), halves(values)))
        asyncio.run(same_from_every_position(Jsonl(path, block=block), values))


@settings(max_examples=60)
@given(ROWS, BLOCKS, st.sampled_from([",", ";", "\t", "ä"]))
def test_csv_comes_back(rows: list[dict[str, str]], block: int, delimiter: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        asyncio.run(write(CsvFile(path, delimiter=delimiter), halves(rows)))
        source = Csv(path, delimiter=delimiter, encoding="utf-8", block=block)
        asyncio.run(same_from_every_position(source, rows))


async def test_encodings(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes("ä\r\nö".encode("latin-1"))
    assert await gathered(Lines(path, "latin-1")) == ["ä", "ö"]
    with pytest.raises(BadRequestError, match=r"x:1:1: not utf-8 text \(byte 0xe4\)"):
        await gathered(Lines(path))
    path.write_bytes(b"one\ntwo\nthr\xffee\n")
    with pytest.raises(BadRequestError, match=r"x:3:4: not utf-8 text"):
        await gathered(Lines(path, block=5))
    path.write_bytes("\ufeffa\nb".encode())
    assert await gathered(Lines(path, "utf-8-sig", block=1)) == ["a", "b"]
    for encoding, said in (("utf-16", "more than one byte"), ("klingon", "'klingon' is unknown")):
        with pytest.raises(BadRequestError, match=said):
            Lines(path, encoding)
    sink = LinesFile(tmp_path / "out", "latin-1")
    with pytest.raises(BadRequestError, match="'€' cannot be written in latin-1"):
        await sink.write(1, ["€"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('1\n\n{"a": }\n', "x:3:7: not JSON: Expecting value"),
        ("1 2\n", "x:1:3: not JSON: Extra data"),
        ("1\n[1,\n2]\n", "x:2:4: not JSON: Expecting value"),
    ],
)
@pytest.mark.parametrize("block", [1, 1000])
async def test_what_is_no_json_is_told_with_its_place(
    tmp_path: Path, text: str, said: str, block: int
) -> None:
    (tmp_path / "x").write_text(text)
    with pytest.raises(BadRequestError, match=said):
        await gathered(Jsonl(tmp_path / "x", block=block))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('a,b\n1,2\n"x\ny",2,3\n', "x:3: 3 fields; the header has 2"),
        ('a,b\n"1\n",2\n"x"y,2\n', "x:4: not CSV: ',' expected after '\"'"),
        ('a,b\n1,"2\n', "x:2: not CSV: unexpected end of data"),
        ("a,a\n", "x:1 has the column 'a' twice"),
        ("\na\n", "x:1: the first line names no columns"),
        ("a\nb\rc\n", "x:2: not CSV: new-line character seen"),
    ],
)
@pytest.mark.parametrize("block", [1, 1000])
async def test_what_is_no_csv_is_told_with_its_line(tmp_path: Path, text: str, said: str, block: int) -> None:
    (tmp_path / "x").write_text(text)
    with pytest.raises(BadRequestError, match=said):
        await gathered(Csv(tmp_path / "x", block=block))


async def test_csv_without_a_header(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("1;2\n3;4\n")
    assert await gathered(Csv(path, ["a", "b"], ";")) == [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]
    path.write_text("")
    assert await gathered(Csv(path)) == []
    for wrong in ("", "::", '"'):
        with pytest.raises(BadRequestError, match="the delimiter is"):
            Csv(path, delimiter=wrong)


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"a": 1}, "record 1 has the columns a; the file has a, b"),
        ({"a": 1, "b": [2]}, "record 1 has list in the column 'b'"),
        (3, "a record is int, which has no columns"),
        ({"a": "\ud800", "b": 0}, "cannot be written in UTF-8"),
    ],
)
async def test_what_does_not_fit_into_csv(tmp_path: Path, record: Any, said: str) -> None:
    sink = CsvFile(tmp_path / "x")
    await sink.write(1, [{"a": None, "b": 1.5}])
    with pytest.raises(BadRequestError, match=said):
        await sink.write(1, [record])
    sink.close()


@pytest.mark.parametrize(
    ("record", "said"), [("a\nb", "a line end in it"), ("a\r", "a line end"), (1, "is int")]
)
async def test_what_is_no_line(tmp_path: Path, record: Any, said: str) -> None:
    with pytest.raises(BadRequestError, match=f"record 2 .*{said}"):
        LinesFile(tmp_path / "x").encode(["a", record], first=1)


async def test_a_file_that_changed_since_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("one\ntwo\nthr")
    *_, (position, _) = Lines(path, block=4).read(None)
    assert position == {"offset": 11, "line": 3}
    path.write_text("one\ntwo\n")
    with pytest.raises(ConflictError, match="up to byte 11, line 3; now it has 8 bytes"):
        await gathered(Lines(path), position)
    path.write_text("one\ntwo\nthree\n")
    with pytest.raises(ConflictError, match="that line goes on behind it"):
        await gathered(Lines(path), position)
    path.write_text("one\ntwo\nthr\nfour\n")
    with pytest.raises(ConflictError):
        await gathered(Lines(path), position)


async def test_a_file_that_grew_is_read_on(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("one\ntwo\n")
    *_, (position, _) = Lines(path).read(None)
    with path.open("a") as file:
        file.write("three\n")
    assert await gathered(Lines(path), position) == ["three"]


async def test_a_written_file_that_changed_since_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "x"
    sink = LinesFile(path)
    await sink.write(1, ["one"])
    prepared = await sink.prepare(1)
    await sink.commit(1)
    for damage, found in ((lambda: path.write_text(""), "has 0 bytes"), (path.unlink, "is gone")):
        damage()
        with pytest.raises(ConflictError, match=f"{found}; the checkpoint was taken when it had 4"):
            await LinesFile(path).recover(1, prepared)
    with pytest.raises(NotFoundError, match="where 'x' would go"):
        LinesFile(tmp_path / "no" / "x").setup()


async def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    killed = LinesFile(tmp_path / "x")
    await killed.write(7, ["seven"])
    other = LinesFile(tmp_path / "xy")
    await other.write(1, ["of another file"])
    await LinesFile(tmp_path / "x").recover(0, None)
    assert os.listdir(tmp_path) == [".xy.1.part"]


async def test_an_epoch_begins_when_the_one_before_is_prepared(tmp_path: Path) -> None:
    sink = LinesFile(tmp_path / "x")
    await sink.write(1, ["a"])
    with pytest.raises(BadRequestError, match="epoch 2 is written while epoch 1 is not prepared"):
        await sink.write(2, ["b"])
    sink.close()


async def test_a_folder_is_gone_on_with_behind_the_last_name(tmp_path: Path) -> None:
    for name in ("b", "c", "d"):
        (tmp_path / name).write_text(name)
    source = Files(tmp_path)
    (tmp_path / "b").write_text("changed")
    (tmp_path / "a").write_text("comes late, with a name before")
    (tmp_path / "c").unlink()
    assert [document.path for document in await gathered(source, {"path": "b"})] == ["d"]
