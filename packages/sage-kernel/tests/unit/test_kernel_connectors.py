"""The kernel's own sources and sinks, and the channel between stages."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from sage.common.errors import BadRequestError, ConfigError, NotFoundError
from sage.kernel import (
    Flow,
    LocalEnvironment,
    OperatorError,
    PlanError,
    Stream,
    default_registry,
    parse_yaml,
    use,
)
from sage.kernel.connectors import Document, Files, Jsonl, JsonlFile, Lines, Sql, to_json
from sage.kernel.connectors.extras import needed
from sage.kernel.registry import BUILT_IN


def everything(source: Files | Lines | Jsonl) -> list[Any]:
    return [record for _, records in source.read(None) for record in records]


def test_files_are_read_in_order_and_relative(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "z.md").write_text("z")
    (tmp_path / "a.md").write_text("ä", encoding="utf-8")
    (tmp_path / "c.txt").write_text("c")
    assert everything(Files(tmp_path, "**/*.md")) == [Document("a.md", "ä"), Document("b/z.md", "z")]


def test_missing_and_empty_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nowhere' does not exist"):
        Files(tmp_path / "nowhere")
    with pytest.raises(NotFoundError, match=r"no file that matches '\*\.md'"):
        Files(tmp_path, "*.md")
    (tmp_path / "x").write_bytes(b"\xff\xfe")
    with pytest.raises(NotFoundError, match="is a file, not a folder"):
        Files(tmp_path / "x")
    with pytest.raises(BadRequestError, match="is not utf-8 text"):
        everything(Files(tmp_path))


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
    assert everything(Lines(path)) == ['{"a": 1}', "", "0", "null"]
    assert everything(Jsonl(path)) == [{"a": 1}, 0, None]
    path.write_text("1\n{oops}\n")
    with pytest.raises(BadRequestError, match=r"x\.jsonl:2:2: not JSON"):
        everything(Jsonl(path))
    for source in (Lines, Jsonl):
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


HEAVY = ("aiohttp", "apsw", "confluent_kafka", "psycopg", "pyarrow", "redis", "sqlalchemy")


def test_a_library_is_imported_by_the_connector_that_needs_it() -> None:
    code = f"import sys, sage.kernel.connectors; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_library_that_is_missing_is_named_with_its_extra() -> None:
    with pytest.raises(
        ConfigError, match="package no_such_library is needed here and not installed"
    ) as caught:
        needed("no_such_library.part", "parquet")
    assert "sage-kernel[parquet]" in str(caught.value)


@pytest.mark.parametrize(("role", "name"), sorted(BUILT_IN))
def test_every_name_has_typed_parameters(role: Literal["source", "sink"], name: str) -> None:
    found = default_registry().get(name, role)
    with pytest.raises(BadRequestError, match="unknown parameter 'colour'"):
        found.bind({"colour": 1})
    hints = found._hints()
    assert all(parameter in hints for parameter in inspect.signature(found.factory).parameters)


def test_streams_have_the_type_of_their_source(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("a")
    lines: Stream[str] = Flow("typed").source(Lines(tmp_path / "x"))
    documents: Stream[Document] = Flow("typed").source(Files(tmp_path))
    rows: Stream[dict[str, Any]] = Flow("typed").source(Sql("sqlite:///x.db", "SELECT 1 AS n", "n"))
    assert lines.port == documents.port == rows.port


def test_connectors_in_a_plan_are_checked_before_it_runs() -> None:
    text = """
    name: wrong
    steps:
      - source: {use: csv, with: {path: a.csv, columns: {a: 1}}}
      - sink: {use: sql, with: {url: "sqlite:///x.db"}}
    """
    with pytest.raises(PlanError) as caught:
        parse_yaml(text).check()
    assert "parameter 'columns' is {'a': 1} (dict), not list" in str(caught.value)
    assert "parameter 'table' is missing" in str(caught.value)
