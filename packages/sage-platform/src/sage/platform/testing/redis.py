"""A real Redis server of its own for a test or a benchmark."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from sage.common.errors import NotFoundError, UnreachableError
from sage.common.ports import find_free

__all__ = ["redis_server"]


@contextmanager
def redis_server(folder: Path, *, durable: bool = True) -> Iterator[str]:
    """The URL of a server on loopback that keeps its files in `folder`; it ends with the block.

    `durable`: it writes to disk before it answers. Raises NotFoundError where no redis-server is installed.
    """
    program = shutil.which("redis-server")
    if program is None:
        raise NotFoundError("There is no redis-server on the PATH.", hint="Install Redis 7 or later.")
    port = find_free((20000, 29999))
    command = [program, "--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder), "--save", ""]
    command += ["--appendonly", "yes", "--appendfsync", "always"] if durable else []
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        _wait_for(process, port)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.kill()
        process.wait()


def _wait_for(process: subprocess.Popen[bytes], port: int) -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end and process.poll() is None:
        with closing(socket.socket()) as line:
            line.settimeout(1)
            if line.connect_ex(("127.0.0.1", port)) == 0:
                line.sendall(b"PING\r\n")
                if line.recv(16).startswith(b"+PONG"):
                    return
        time.sleep(0.01)
    raise UnreachableError(f"redis-server did not answer on port {port}.")
