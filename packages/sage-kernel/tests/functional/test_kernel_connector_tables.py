"""Tables of SQL databases and of Parquet files: what fits, what does not, and what is said then."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import apsw
import pytest

from sage.common.errors import BadRequestError, ConflictError, NotFoundError, UnavailableError, UsageError
from sage.kernel import Flow, LocalEnvironment, OperatorError, use
from sage.kernel.connectors import Parquet, ParquetFolder, Sql, SqlTable
from sage.kernel.connectors.databases import Database, connect
from sage.kernel.testing.connectors import gathered


@dataclass
class Person:
    name: str
    age: int


@pytest.fixture
def url(tmp_path: Path) -> str:
    database = apsw.Connection(str(tmp_path / "people.db"))
    database.execute("CREATE TABLE people (name TEXT PRIMARY KEY, age INTEGER, note TEXT)")
    database.execute("INSERT INTO people VALUES ('ann', 1, 'x'), ('bob', 1, NULL), ('cid', NULL, '')")
    database.close()
    return f"sqlite:///{tmp_path}/people.db"


async def read(source: Sql) -> list[Any]:
    source.setup()
    try:
        return [row async for _, rows in source.read(None) for row in rows]
    finally:
        await source.close()


def rows(database: Database, sql: str) -> list[tuple[Any, ...]]:
    with database.transaction(write=False) as transaction:
        return [tuple(row.values()) for row in transaction.rows(sql, {})]


async def test_rows_come_in_the_order_of_the_key(url: str) -> None:
    assert [row["name"] for row in await read(Sql(url, "SELECT * FROM people", "name", batch=2))] == [
        "ann",
        "bob",
        "cid",
    ]
    assert await read(Sql(url, "SELECT * FROM people WHERE age > 5;", "name")) == []


@pytest.mark.parametrize(
    ("query", "key", "said"),
    [
        ("SELECT * FROM people", "age", "gives rows whose 'age' is NULL"),
        ("SELECT * FROM people WHERE age = 1", "age", "gives several rows whose 'age' is 1"),
        (
            "SELECT CAST(name AS BLOB) AS k FROM people",
            "k",
            "the key 'k' is bytes; valid is a number or a text",
        ),
    ],
)
@pytest.mark.parametrize("batch", [1, 2, 100])
async def test_a_key_that_is_none(url: str, query: str, key: str, said: str, batch: int) -> None:
    with pytest.raises(BadRequestError, match=said):
        await read(Sql(url, query, key, batch=batch))


async def test_a_query_that_is_none_is_the_error_of_the_run(url: str) -> None:
    flow = Flow("rows")
    flow.source(use("sql", url=url, query="SELECT * FROM pets", key="name"), name="pets").sink(print)
    flow.check()
    with pytest.raises(OperatorError, match=r"source 'pets' failed .*no such table: pets"):
        await LocalEnvironment().run(flow)


@pytest.mark.parametrize(
    ("where", "error", "said"),
    [
        ("mysql://x/y", BadRequestError, "the scheme 'mysql'"),
        ("people.db", BadRequestError, "the scheme 'none'"),
        ("sqlite:///nowhere.db", UnavailableError, "'nowhere.db' does not exist"),
        ("postgresql://127.0.0.1:1/x", UnavailableError, "the database failed"),
    ],
)
async def test_what_is_no_database(where: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        await SqlTable(where, "people").setup()
    with pytest.raises(UsageError, match="not set up"):
        await SqlTable(where, "people").recover(0, None)


async def test_dataclasses_are_rows_and_a_key_replaces(url: str) -> None:
    people = [Person("ann", 7), Person("dee", 8), Person("dee", 9)]
    flow = Flow("people")
    flow.source(people).sink(use("sql", url=url, table="people", key=["name"]))
    await LocalEnvironment(batch=1).run(flow)
    found = rows(connect(url), "SELECT name, age, note FROM people ORDER BY name")
    assert found == [("ann", 7, "x"), ("bob", 1, None), ("cid", None, ""), ("dee", 9, None)]
    assert rows(connect(url), "SELECT count(*) FROM sqlite_schema WHERE name LIKE '%stage%'") == [(0,)]


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([{"name": "x", "size": 3}], "the column 'size'; table 'people' has name, age, note"),
        ([{"name": "x"}, {"name": "y", "age": 1}], "has the columns name, age; the first one had name"),
        ([{"name": None}], "has no key; name must not be None"),
        (["x"], "a record is str, which has no columns"),
    ],
)
async def test_records_that_are_no_rows(url: str, records: list[Any], said: str) -> None:
    flow = Flow("people")
    flow.source(records).sink(SqlTable(url, "people", ["name"]))
    with pytest.raises(BadRequestError, match=said):
        await LocalEnvironment().run(flow)
    assert len(rows(connect(url), "SELECT 1 AS one FROM people")) == 3


async def test_a_table_or_a_key_that_is_not_there(url: str) -> None:
    for sink, error, said in (
        (SqlTable(url, "pets"), NotFoundError, "no table 'pets'"),
        (SqlTable(url, "people", ["id"]), BadRequestError, "has no column 'id', which is of its key"),
    ):
        with pytest.raises(error, match=said):
            await sink.setup()
        await sink.close()


async def test_a_stage_of_other_columns_is_made_anew(url: str) -> None:
    killed = SqlTable(url, "people")
    await killed.setup()
    await killed.write(1, [{"name": "never"}])
    await killed.prepare(1)
    flow = Flow("people")
    flow.source([Person("dee", 8)]).sink(SqlTable(url, "people"))
    await LocalEnvironment().run(flow)
    names = rows(connect(url), "SELECT name FROM people ORDER BY name")
    assert names == [("ann",), ("bob",), ("cid",), ("dee",)]


async def test_postgres_keeps_types_and_defaults_and_refuses_a_double(postgres_url: str) -> None:
    database = connect(postgres_url)
    with database.transaction(write=True) as transaction:
        transaction.run('CREATE SCHEMA "Shop"', {})
        columns = (
            "id serial PRIMARY KEY, day date, tags text[], who text UNIQUE, made timestamptz DEFAULT now()"
        )
        transaction.run(f'CREATE TABLE "Shop".orders ({columns})', {})
    record = {"day": date(2026, 1, 2), "tags": ["a", "b"], "who": 'O\'Neil "x" :y %s'}
    for again in (False, True):
        flow = Flow("orders")
        flow.source([record]).sink(SqlTable(postgres_url, "Shop.orders"))
        if again:
            with pytest.raises(ConflictError, match="the database refused a row: duplicate key"):
                await LocalEnvironment().run(flow)
        else:
            await LocalEnvironment().run(flow)
    found = await read(
        Sql(postgres_url, "SELECT id, day, tags, who, 'a:b' AS c, 1::text AS d FROM \"Shop\".orders", "id")
    )
    assert found == [{"id": 1, **record, "c": "a:b", "d": "1"}]
    assert rows(database, 'SELECT count(*) FROM "Shop".orders WHERE made IS NULL') == [(0,)]
    database.close()


async def written(folder: Path, records: list[Any], schema: dict[str, str] | None = None) -> list[Any]:
    flow = Flow("parquet")
    flow.source(records).sink(ParquetFolder(folder, schema, group=2))
    await LocalEnvironment().run(flow)
    return await gathered(Parquet(folder))


async def test_parquet_keeps_types(tmp_path: Path) -> None:
    records = [{"n": 1, "day": date(2026, 1, 2), "tags": ["a"], "raw": b"\0"} for _ in range(5)]
    assert await written(tmp_path / "a", records) == records
    schema = {"name": "string", "age": "float32", "note": "string"}
    people = [Person("ann", 1), Person("bob", 2)]
    assert await written(tmp_path / "b", people, schema) == [
        {"name": "ann", "age": 1.0, "note": None},
        {"name": "bob", "age": 2.0, "note": None},
    ]
    assert await gathered(Parquet(tmp_path / "b", ["age"])) == [{"age": 1.0}, {"age": 2.0}]


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([{"a": 1}, {"a": 1, "b": 2}], "has the column 'b'; '.*' has a"),
        ([{"a": 1}, {"a": "x"}], "does not fit the columns"),
        ([{"a": 1}, {"a": 1}, {"a": 1.5}], "does not fit the columns"),
    ],
)
async def test_records_that_do_not_fit_into_parquet(tmp_path: Path, records: list[Any], said: str) -> None:
    with pytest.raises(BadRequestError, match=said):
        await written(tmp_path / "x", records)
    assert list((tmp_path / "x").iterdir()) == []


async def test_what_is_no_parquet(tmp_path: Path) -> None:
    for path, error, said in (
        (tmp_path / "gone", NotFoundError, "does not exist"),
        (tmp_path, NotFoundError, r"no file that matches '\*\.parquet'"),
    ):
        with pytest.raises(error, match=said):
            Parquet(path)
    (tmp_path / "x.parquet").write_text("text")
    with pytest.raises(BadRequestError, match=r"x\.parquet: not a Parquet file"):
        await gathered(Parquet(tmp_path))
    (tmp_path / "x.parquet").unlink()
    await written(tmp_path / "in", [{"a": 1}])
    with pytest.raises(BadRequestError, match="has no column 'b'; it has a"):
        await gathered(Parquet(tmp_path / "in", ["b"]))
    with pytest.raises(ConflictError, match="up to row 2 of row group 0, which has 1 now"):
        await gathered(Parquet(tmp_path / "in"), {"file": "epoch-000001.parquet", "group": 0, "row": 2})
    with pytest.raises(ConflictError, match=r"has no file 'other\.parquet' any more"):
        await gathered(Parquet(tmp_path / "in"), {"file": "other.parquet", "group": 0, "row": 2})
    with pytest.raises(BadRequestError, match="a type that pyarrow does not know"):
        ParquetFolder(tmp_path / "out", {"a": "colour"})
    with pytest.raises(NotFoundError, match="cannot be made"):
        ParquetFolder(tmp_path / "no" / "out").setup()
