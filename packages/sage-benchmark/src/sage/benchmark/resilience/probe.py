"""A client in a process of its own that asks again and again over one connection, and times each answer.

`python -m sage.benchmark.resilience.probe PORT PER_S` reads the request's bytes from its standard input. It
uses a blocking socket, so that what it times is the server and the machine, not an event loop of its own.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sage.benchmark.load.worker import raise_priority
from sage.benchmark.resilience.stage import Stage
from sage.benchmark.resilience.wire import CHAT, request

__all__ = ["main", "probing"]


@asynccontextmanager
async def probing(stage: Stage, body: bytes, per_s: float) -> AsyncIterator[list[tuple[int, float]]]:
    """Ask for a chat so many times a second meanwhile; the list has status and seconds of each at the end."""
    found: list[tuple[int, float]] = []
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", __name__, str(stage.port), str(per_s)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(request(stage.port, stage.key, CHAT, body))
    process.stdin.close()
    await process.stdout.readline()  # it is connected
    try:
        yield found
    finally:
        process.kill()
        lines, _ = await process.communicate()
        for line in lines.splitlines(keepends=True):
            status, _, seconds = line.partition(b" ")
            if seconds.endswith(b"\n"):
                found.append((int(status), float(seconds)))


def _answer(sock: socket.socket) -> int:
    """Read one answer; its status. Raises ConnectionError when the server ends the connection."""
    data = b""
    while b"\r\n\r\n" not in data:
        if not (more := sock.recv(65536)):
            raise ConnectionError
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    if b"transfer-encoding" in head.lower():
        while not body.endswith(b"\r\n0\r\n\r\n"):
            body += sock.recv(65536)
        return int(head.split(b" ", 2)[1])
    left = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0]) - len(body)
    while left > 0:
        left -= len(sock.recv(left))
    return int(head.split(b" ", 2)[1])


def main() -> None:
    """The process; it ends when it is killed."""
    port, per_s = int(sys.argv[1]), float(sys.argv[2])
    message = sys.stdin.buffer.read()
    raise_priority(level=2)
    sock = socket.create_connection(("127.0.0.1", port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    print("connected", flush=True)
    due = time.perf_counter()
    while True:
        began = time.perf_counter()
        sock.sendall(message)
        status = _answer(sock)
        print(status, time.perf_counter() - began, flush=True)
        due = max(due + 1 / per_s, time.perf_counter())
        time.sleep(max(0.0, due - time.perf_counter()))


if __name__ == "__main__":
    main()
