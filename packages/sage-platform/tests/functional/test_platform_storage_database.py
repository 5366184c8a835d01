from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import apsw
import pytest

from sage.common.errors import ConflictError, SageError, UsageError
from sage.platform.state import StateDirectory
from sage.platform.storage.sqlite import FORMAT, Database

TABLE = "CREATE TABLE IF NOT EXISTS rows (id INTEGER PRIMARY KEY, data BLOB)"


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    made = Database(tmp_path / "store.db")
    await made.write(lambda db: db.execute(TABLE))
    yield made
    await made.close()


async def _insert(database: Database, row: int) -> None:
    await database.write(lambda db: db.execute("INSERT INTO rows VALUES (?, ?)", (row, b"x" * 100)))


async def _ids(database: Database) -> list[object]:
    return await database.read(lambda db: [row for (row,) in db.execute("SELECT id FROM rows ORDER BY id")])


async def test_64_tasks_share_commits(database: Database) -> None:
    await asyncio.gather(*(_insert(database, row) for row in range(640)))
    assert await _ids(database) == list(range(640))
    assert await database.integrity() == []


async def test_a_write_that_fails_does_not_touch_its_neighbours(database: Database) -> None:
    rows = [7, 8, 7, 9]
    results = await asyncio.gather(*(_insert(database, row) for row in rows), return_exceptions=True)
    assert [type(result) for result in results] == [type(None), type(None), apsw.ConstraintError, type(None)]
    assert await _ids(database) == [7, 8, 9]


async def test_a_function_that_ends_the_transaction_fails_and_the_next_works(database: Database) -> None:
    with pytest.raises(SageError, match=r"store\.db"):
        await database.write(lambda db: db.execute("ROLLBACK"))
    await _insert(database, 1)
    assert await _ids(database) == [1]


async def test_a_read_keeps_its_snapshot_and_cannot_write(database: Database) -> None:
    await _insert(database, 1)

    def twice(db: apsw.Connection) -> list[object]:
        sql = "SELECT count(*) FROM rows"
        first = db.execute(sql).fetchall()
        database.write_sync(lambda db: db.execute("INSERT INTO rows VALUES (2, NULL)"))
        return [*first, *db.execute(sql).fetchall()]

    assert await database.read(twice) == [(1,), (1,)]
    assert await _ids(database) == [1, 2]
    with pytest.raises(SageError):
        await database.read(lambda db: db.execute("DELETE FROM rows"))


async def test_files_are_private_and_a_closed_database_says_so(tmp_path: Path) -> None:
    database = Database(tmp_path / "deep" / "store.db")
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "deep").iterdir()} == {0o600}
    await database.close()
    await database.close()
    with pytest.raises(UsageError, match="closed"):
        await database.write(lambda db: None)


async def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    database = Database(tmp_path / "store.db")
    await database.write(lambda db: db.pragma("user_version", FORMAT + 1))
    await database.close()
    with pytest.raises(ConflictError, match=f"has format {FORMAT + 1}"):
        Database(tmp_path / "store.db")
    with StateDirectory(tmp_path):  # what was refused holds nothing
        pass


async def test_the_owner_of_a_folder_opens_databases_in_it(tmp_path: Path) -> None:
    with StateDirectory(tmp_path):
        database = Database(tmp_path / "store.db")
        await database.close()
        with pytest.raises(ConflictError):
            StateDirectory(tmp_path).acquire()


def _child(script: str, *args: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


OPEN = "import sys; from pathlib import Path; from sage.platform.storage.sqlite import Database\n"


async def test_a_second_process_is_refused_and_this_one_may_share(database: Database) -> None:
    other = Database(database.path.with_name("other.db"))
    child = _child(OPEN + "Database(Path(sys.argv[1]))", database.path)
    _, error = await asyncio.to_thread(child.communicate)
    assert f"in use by process {os.getpid()}" in error
    await other.close()


KILLED = (
    OPEN  # noqa: S608
    + """
import asyncio
async def main():
    database = Database(Path(sys.argv[1]))
    await database.write(lambda db: db.execute(sys.argv[2]))
    async def write(first):
        for row in range(first, 10**6, 16):
            await database.write(lambda db: db.execute("INSERT INTO rows VALUES (?, NULL)", (row,)))
            print(row, flush=True)
    await asyncio.gather(*map(write, range(16)))
asyncio.run(main())
"""
)


@pytest.mark.parametrize("lines", [1, 300, 2000])
async def test_what_was_acknowledged_is_there_after_kill_9(tmp_path: Path, lines: int) -> None:
    child = _child(KILLED, tmp_path / "store.db", TABLE)
    assert child.stdout is not None
    said = [child.stdout.readline() for _ in range(lines)]
    child.send_signal(signal.SIGKILL)
    # from the same buffer: communicate() reads the pipe itself, and loses what readline() had read ahead
    rest = await asyncio.to_thread(child.stdout.read)
    await asyncio.to_thread(child.communicate)
    acknowledged = {
        int(line) for line in "".join([*said, rest]).splitlines(keepends=True) if line.endswith("\n")
    }
    database = Database(tmp_path / "store.db")
    assert acknowledged <= set(await _ids(database))
    assert await database.integrity() == []
    await database.close()


FULL = (
    OPEN  # noqa: S608
    + """
import resource, signal
from sage.common.errors import SageError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
database = Database(Path(sys.argv[1]))
database.write_sync(lambda db: db.execute(sys.argv[2]))
SQL = "INSERT INTO rows VALUES (?, zeroblob(9000))"
put = lambda row: database.write_sync(lambda db: db.execute(SQL, (row,)))
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, hard))
row = 0
try:
    for row in range(1000):
        put(row)
except SageError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
put(5000)
ids = database.read_sync(lambda db: [row for (row,) in db.execute("SELECT id FROM rows ORDER BY id")])
print(row > 0 and ids == [*range(row), 5000])
"""
)


async def test_a_full_disk_is_said_and_it_works_again_without_a_restart(tmp_path: Path) -> None:
    child = _child(FULL, tmp_path / "store.db", TABLE)
    out, error = await asyncio.to_thread(child.communicate)
    assert error == ""
    assert str(tmp_path / "store.db") in out
    assert out.endswith("True\n")
