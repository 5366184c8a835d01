"""The worker process: `python -m sage.kernel.runtime.replicas.worker SOCKET REQUESTS ANSWERS PARENT`.

It takes a first message with the operators, answers "ready" or what failed, and from then on batches, one at
a time. It ends when the socket does, on SIGTERM, and with its parent, however that ends.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from multiprocessing import spawn
from typing import Any

from sage.common.errors import UnavailableError
from sage.kernel.runtime.replicas.bench import Bench, portable_error
from sage.kernel.runtime.replicas.recipe import importing
from sage.kernel.runtime.replicas.wire import Area, message, pack, receive, unpack

__all__ = ["main"]

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serve one run."""
    fd, requests, answers, parent = map(int, sys.argv[1:5])
    _die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the run drains or cancels; it says so
    signal.signal(signal.SIGTERM, _exit)
    for inherited in (fd, requests, answers):
        os.set_inheritable(inherited, False)
    with socket.socket(fileno=fd) as sock:
        _Serving(sock, Area(requests), Area(answers)).go()


def _die_with(parent: int) -> None:
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)


def _exit(*_: object) -> None:
    raise SystemExit(0)


class _Serving:
    """The conversation with the run."""

    def __init__(self, sock: socket.socket, requests: Area, answers: Area) -> None:
        self._sock = sock
        self._requests = requests
        self._answers = answers

    def go(self) -> None:
        """Until the socket ends."""
        first = receive(self._sock.recv, self._requests)
        if first is None:
            return
        try:
            bench = _bench(unpack(first))
            bench.setup()
        except Exception as error:
            self._send(_plain(error))
            return
        try:
            self._send(None)
            self._serve(bench)
        except BaseException:
            bench.close()
            raise
        try:
            bench.close()
            self._send(None)
        except Exception as error:
            self._send(_plain(error))

    def _serve(self, bench: Bench) -> None:
        while (parts := receive(self._sock.recv, self._requests)) is not None:
            one_by_one, items = unpack(parts)
            done = bench.each(items) if one_by_one else [bench.run(items)]
            if any(one.broken for one in done):
                done = [
                    one._replace(broken=portable_error(one.broken)) if one.broken else one for one in done
                ]
            try:
                answer = pack([tuple(one) for one in done])  # a named tuple costs ten times as much there
            except Exception:
                answer = pack([tuple(bench.sendable(one)) for one in done])
            self._sock.sendall(message(answer, self._answers))

    def _send(self, value: Any) -> None:
        self._sock.sendall(message(pack(value), self._answers))


def _bench(first: dict[str, Any]) -> Bench:
    """The operators; where they are code of the main script, that is imported first, as `__mp_main__`."""
    sys.path[:] = first["path"]
    if first["main"]:
        importing.set()
        spawn.prepare(first["main"])
        importing.clear()
    return Bench(unpack([first["ops"]]), time.process_time_ns)


def _plain(error: Exception) -> Exception:
    try:
        unpack(pack(error))
    except Exception:
        return UnavailableError(f"{type(error).__name__}: {error}")
    return error


if __name__ == "__main__":
    main()
