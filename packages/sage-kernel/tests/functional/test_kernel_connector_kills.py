"""Runs on real connectors, killed with SIGKILL at random moments and gone on with: nothing is lost or
doubled."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import apsw

from sage.kernel.connectors import Csv, Jsonl, Parquet
from sage.kernel.testing.connectors import gathered
from sage.kernel.testing.kafka import KafkaCluster
from sage.platform.queue import Message, QueueOptions
from sage.platform.queue.sqlite import SqliteQueue
from sage.platform.storage.sqlite import Database

RECORDS = [{"n": n, "text": f'line {n}, "ä"\n'} for n in range(4000)]
FILES = """
import asyncio, sys
from pathlib import Path
from sage.kernel import Checkpoints, Flow, LocalEnvironment, use

async def same(record):
    await asyncio.sleep(0)
    return record

folder = Path(sys.argv[1])
flow = Flow("files")
records = flow.source(use("jsonl", path=str(folder / "in.jsonl"), block=1000)).map(same, order="input")
records.sink(use("jsonl", path=str(folder / "out.jsonl")), name="jsonl")
records.sink(use("csv", path=str(folder / "out.csv")), name="csv")
records.sink(use("parquet", folder=str(folder / "parquet"), group=50), name="parquet")
records.sink(use("sql", url=f"sqlite:///{folder}/out.db", table="numbers"), name="sql")
LocalEnvironment(checkpoints=Checkpoints(folder / "checkpoints", every=0.02)).run_sync(flow)
"""
QUEUES = """
import sys
from pathlib import Path
from sage.kernel import Checkpoints, Flow, LocalEnvironment, use

folder = Path(sys.argv[1])
flow = Flow("queues")
queue = f"sqlite:///{folder}/queues/queues.db"
records = flow.source(use("queue", queue=queue, name="in", wait=1.0, lease=0.6, batch=20))
records.sink(use("queue", queue=queue, name="out"))
LocalEnvironment(checkpoints=Checkpoints(folder / "checkpoints", every=0.02)).run_sync(flow)
"""
KAFKA = """
import asyncio, sys
from pathlib import Path
from sage.kernel import Checkpoints, Flow, LocalEnvironment, use

async def same(record):
    await asyncio.sleep(0)
    return record

folder = Path(sys.argv[1])
servers, topic, out = (folder / "kafka").read_text().split()
flow = Flow("kafka")
messages = flow.source(use("kafka", servers=servers, topic=topic, end="latest", batch=20))
records = messages.map(same, order="input")
records.sink(use("jsonl", path=str(folder / "out.jsonl")), name="jsonl")
records.sink(use("kafka", servers=servers, topic=out), name="out")
LocalEnvironment(checkpoints=Checkpoints(folder / "checkpoints", every=0.02)).run_sync(flow)
"""


def survive(program: str, folder: Path, *, kills: int, seed: int) -> int:
    """Run to the end, killed so often at most, each time soon after a checkpoint; how often it was."""
    chance = random.Random(seed)  # noqa: S311 - not a secret
    killed = 0
    while True:
        before = kept(folder)
        child = subprocess.Popen([sys.executable, "-c", program, str(folder)], stderr=subprocess.PIPE)
        if killed < kills:
            while child.poll() is None and kept(folder) == before:
                time.sleep(0.001)  # of another process's checkpoint no event tells
            with suppress(subprocess.TimeoutExpired):
                child.wait(0.02 * chance.random())
            child.kill()
        _, errors = child.communicate()
        if child.returncode == 0:
            return killed
        assert child.returncode == -signal.SIGKILL, errors.decode()
        killed += 1


def kept(folder: Path) -> set[str]:
    """The files of its checkpoints."""
    return {str(file) for file in (folder / "checkpoints").rglob("*")}


async def test_files_and_tables_are_as_if_nothing_had_been(tmp_path: Path) -> None:
    lines = "".join(f"{json.dumps(record)}\n" for record in RECORDS)
    (tmp_path / "in.jsonl").write_text(lines)
    database = apsw.Connection(str(tmp_path / "out.db"))
    database.execute("CREATE TABLE numbers (n INTEGER PRIMARY KEY, text TEXT)")
    assert survive(FILES, tmp_path, kills=5, seed=1) > 0
    assert await gathered(Jsonl(tmp_path / "out.jsonl")) == RECORDS
    assert await gathered(Parquet(tmp_path / "parquet")) == RECORDS
    texts = [{"n": str(record["n"]), "text": record["text"]} for record in RECORDS]
    assert await gathered(Csv(tmp_path / "out.csv")) == texts
    rows = [tuple(record.values()) for record in RECORDS]
    assert database.execute("SELECT n, text FROM numbers ORDER BY n").fetchall() == rows
    database.close()
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".part")]


async def test_messages_are_moved_once(tmp_path: Path) -> None:
    (tmp_path / "queues").mkdir()
    messages = [Message(json.dumps(record).encode()) for record in RECORDS[:1500]]
    database = Database(tmp_path / "queues" / "queues.db")
    queue = await SqliteQueue.open(database, "in", QueueOptions(max_attempts=20))
    await queue.put_many(messages)
    await database.close()
    assert await asyncio.to_thread(survive, QUEUES, tmp_path, kills=4, seed=2) > 0
    database = Database(tmp_path / "queues" / "queues.db")
    out = await SqliteQueue.open(database, "out")
    found = [json.loads(lease.body) for lease in await out.get(10_000, wait=0)]
    left = await (await SqliteQueue.open(database, "in")).stats()
    await database.close()
    assert sorted(record["n"] for record in found) == list(range(1500))
    assert (left.items, left.dead) == (0, 0)


async def test_a_topic_is_read_once_and_written_once_where_transactions_are_kept(
    kafka: KafkaCluster, tmp_path: Path
) -> None:
    topic, out = kafka.topic(), kafka.topic()
    for number in range(4):
        mine = RECORDS[number::4]
        kafka.put(topic, [json.dumps(record).encode() for record in mine], number)
    (tmp_path / "kafka").write_text(f"{kafka.servers} {topic} {out}")
    assert await asyncio.to_thread(survive, KAFKA, tmp_path, kills=5, seed=3) > 0
    read = [record["n"] for record in await gathered(Jsonl(tmp_path / "out.jsonl"))]
    assert sorted(read) == list(range(len(RECORDS)))
    assert [n for n in read if n % 4 == 2] == list(range(2, len(RECORDS), 4))
    written = [json.loads(message.value() or b"")["n"] for message in kafka.messages(out)]
    assert set(written) == set(read)
    if kafka.remembers and kafka.hides:
        assert len(written) == len(read)
