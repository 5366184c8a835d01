"""What changes on the disk by itself is found, and never answered with."""

from __future__ import annotations

import random
from pathlib import Path

import apsw

from sage.common.errors import SageError
from sage.platform.storage.sqlite import Database

PAGE = 4096
KINDS = {2: "index interior", 5: "table interior", 10: "index leaf", 13: "table leaf"}
BITS = 24  # of a page, and as many of its first 100 bytes

Rows = list[tuple[object, ...]]


async def _store(path: Path) -> None:
    """A closed database that has every kind of page."""
    database = Database(path)

    def fill(db: apsw.Connection) -> None:
        db.execute("CREATE TABLE rows (id INTEGER PRIMARY KEY, name TEXT, data BLOB) STRICT")
        db.execute("CREATE INDEX by_name ON rows (name)")
        rng = random.Random(4)  # noqa: S311
        rows = [(row, f"name {rng.random()}" * 4, bytes([row % 256]) * 200) for row in range(1500)]
        db.executemany("INSERT INTO rows VALUES (?, ?, ?)", rows)
        db.executemany(
            "INSERT INTO rows VALUES (?, 'long', ?)", [(10_000 + i, b"L" * 9000) for i in range(4)]
        )

    await database.write(fill)
    await database.write(lambda db: db.execute("DELETE FROM rows WHERE id BETWEEN 300 AND 600"))
    await database.close()


def _number(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 4], "big")


def _pages(data: bytes) -> dict[str, list[int]]:
    """The pages of each kind, numbered from 0."""
    kinds: dict[str, list[int]] = {"first": [0]}
    free: set[int] = set()
    trunk = _number(data, 32)
    while trunk:
        begin = (trunk - 1) * PAGE
        leaves = [_number(data, begin + 8 + 4 * i) - 1 for i in range(_number(data, begin + 4))]
        kinds.setdefault("free trunk", []).append(trunk - 1)
        kinds.setdefault("free leaf", []).extend(leaves)
        free |= {trunk - 1, *leaves}
        trunk = _number(data, begin)
    for page in set(range(1, len(data) // PAGE)) - free:
        kinds.setdefault(KINDS.get(data[page * PAGE], "overflow"), []).append(page)
    return kinds


def _everything(db: apsw.Connection) -> Rows:
    """All rows, by the table and by the index."""
    by_table: Rows = db.execute("SELECT id, name, data FROM rows ORDER BY id").fetchall()
    by_index: Rows = db.execute("SELECT name, id FROM rows INDEXED BY by_name ORDER BY name, id").fetchall()
    return by_table + by_index


async def _answer(path: Path) -> tuple[Rows | None, bool]:
    """What reading all of it gives, and whether anything was found to be wrong."""
    try:
        database = Database(path)
    except SageError:
        return None, True
    try:
        rows = await database.read(_everything)
        return rows, bool(await database.integrity())
    except SageError:
        return None, True
    finally:
        await database.close()


async def test_each_flipped_bit_is_found_whatever_the_page_is(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    await _store(path)
    sound = path.read_bytes()
    kinds = _pages(sound)
    assert set(kinds) == {*KINDS.values(), "first", "overflow", "free trunk", "free leaf"}
    truth, wrong = await _answer(path)
    assert truth
    assert not wrong
    rng = random.Random(5)  # noqa: S311
    for kind, pages in kinds.items():
        for page in rng.sample(pages, min(2, len(pages))):
            for bit in rng.sample(range(8 * PAGE), BITS) + rng.sample(range(8 * 100), BITS):
                flipped = bytearray(sound)
                flipped[page * PAGE + bit // 8] ^= 1 << bit % 8
                path.write_bytes(flipped)
                rows, wrong = await _answer(path)
                assert wrong, f"bit {bit} of page {page} ({kind}) was not found"
                assert rows in (None, truth), f"bit {bit} of page {page} ({kind}) was answered with"


async def test_a_page_that_was_written_to_another_place_is_found(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    await _store(path)
    changed = bytearray(path.read_bytes())
    first, second = (
        slice(page * PAGE, (page + 1) * PAGE) for page in _pages(bytes(changed))["table leaf"][:2]
    )
    changed[first], changed[second] = changed[second], changed[first]
    path.write_bytes(changed)
    assert await _answer(path) == (None, True)


async def test_a_file_that_lost_its_end_is_found(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    await _store(path)
    sound = path.read_bytes()
    truth, _ = await _answer(path)
    for cut in (1, PAGE, 3 * PAGE, len(sound) // 2):
        path.write_bytes(sound[:-cut])
        rows, wrong = await _answer(path)
        assert wrong
        assert rows in (None, truth)
