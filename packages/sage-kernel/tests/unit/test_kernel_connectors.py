"""The kernel's own sources and sinks, and the channel between stages."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from sage.common.errors import BadRequestError, NotFoundError
from sage.kernel import Flow, LocalEnvironment, OperatorError, use
from sage.kernel.connectors import Document, JsonlFile, files, lines, read_jsonl, to_json


def test_files_are_read_in_order_and_relative(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "z.md").write_text("z")
    (tmp_path / "a.md").write_text("ä", encoding="utf-8")
    (tmp_path / "c.txt").write_text("c")
    assert list(files(tmp_path, "**/*.md")) == [Document("a.md", "ä"), Document("b/z.md", "z")]


def test_missing_and_empty_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nowhere' does not exist"):
        files(tmp_path / "nowhere")
    with pytest.raises(NotFoundError, match=r"no file that matches '\*\.md'"):
        files(tmp_path, "*.md")
    (tmp_path / "x").write_bytes(b"\xff\xfe")
    with pytest.raises(NotFoundError, match="is a file, not a folder"):
        files(tmp_path / "x")
    with pytest.raises(BadRequestError, match="is not utf-8 text"):
        list(files(tmp_path))


async def test_a_missing_folder_is_the_error_of_the_run(tmp_path: Path) -> None:
    flow = Flow("docs")
    flow.source(use("files", folder=str(tmp_path / "nowhere"))).sink(use("stdout"))
    flow.check()
    with pytest.raises(NotFoundError, match="nowhere") as caught:
        await LocalEnvironment().run(flow)
    assert caught.value.exit_code == 5


def test_lines_and_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n\n0\nnull\n')
    assert list(lines(path)) == ['{"a": 1}', "", "0", "null"]
    assert list(read_jsonl(path)) == [{"a": 1}, 0, None]
    path.write_text("1\n{oops}\n")
    with pytest.raises(BadRequestError, match=r"x\.jsonl:2:2: not JSON"):
        list(read_jsonl(path))
    for source in (lines, read_jsonl):
        with pytest.raises(NotFoundError, match="gone' does not exist"):
            source(tmp_path / "gone")


@dataclass
class Point:
    x: int
    path: Path


def test_records_become_json() -> None:
    assert json.loads(to_json({"p": Point(0, Path("a"))})) == {"p": {"x": 0, "path": "a"}}
    assert json.loads(to_json([{1}, "é"])) == [[1], "é"]
    with pytest.raises(TypeError, match="object cannot be written as JSON"):
        to_json(object())
    with pytest.raises(ValueError, match="JSON compliant"):
        to_json(float("nan"))


async def test_a_jsonl_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    target.write_text("old\n")
    for bad in (True, False):
        flow = Flow("out")
        source = flow.source([1, 2, 0])
        (source.map(lambda x: 1 // x) if bad else source).sink(JsonlFile(target))
        if bad:
            with pytest.raises(OperatorError):
                await LocalEnvironment(batch=1).run(flow)
            assert target.read_text() == "old\n"
        else:
            await LocalEnvironment().run(flow)
            assert target.read_text() == "1\n2\n0\n"
        assert os.listdir(tmp_path) == ["out.jsonl"]
    mask = os.umask(0)
    os.umask(mask)
    assert target.stat().st_mode & 0o777 == 0o666 & ~mask


async def test_a_jsonl_file_needs_its_folder(tmp_path: Path) -> None:
    flow = Flow("out")
    flow.source([1]).sink(use("jsonl", path=str(tmp_path / "no" / "out.jsonl")))
    with pytest.raises(NotFoundError, match=r"where 'out\.jsonl' would go, does not exist"):
        await LocalEnvironment().run(flow)
