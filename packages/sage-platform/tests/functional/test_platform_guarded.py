"""One guarded process: descriptors that it is handed, and a start that is given up."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from pathlib import Path

import psutil

from sage.platform.service import ServiceSpec
from sage.platform.service.process import GuardedProcess


def descriptors() -> list[str]:
    """What each descriptor of this process is."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(f"{entry.name}: {entry.readlink()}")
    return found


ECHO = """
import os, sys
line = os.fdopen(int(sys.argv[1]), "r+b", buffering=0)
line.write(b"got " + line.readline())
"""


async def test_a_process_gets_the_descriptors_that_it_is_handed(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    number = theirs.fileno()
    spec = ServiceSpec("echo", (sys.executable, "-c", ECHO, str(number)), "", tmp_path / "log")
    with theirs:
        process = await GuardedProcess.spawn(spec, fds=(number,))
    reader, writer = await asyncio.open_unix_connection(sock=ours)
    writer.write(b"word\n")
    assert await reader.readline() == b"got word\n"
    assert await process.exited == 0
    assert await reader.read() == b"", "nobody holds the other end any more"
    writer.close()


async def test_a_start_that_is_given_up_leaves_nothing(tmp_path: Path) -> None:
    spec = ServiceSpec("sleeper", ("sleep", "1000"), "", tmp_path / "log")
    me = psutil.Process()
    before, others = me.num_fds(), set(me.children(recursive=True))
    for turns in range(6):
        starting = asyncio.create_task(GuardedProcess.spawn(spec))
        for _ in range(turns):
            await asyncio.sleep(0)
        starting.cancel()
        done, _ = await asyncio.wait({starting})
        assert done.pop().cancelled()
    left = set(me.children(recursive=True)) - others
    assert [one for one in left if one.status() != psutil.STATUS_ZOMBIE] == []
    for _ in range(500):  # what other threads of the tests hold is let go
        if me.num_fds() <= before:
            break
        await asyncio.sleep(0.01)
    assert me.num_fds() <= before, descriptors()
