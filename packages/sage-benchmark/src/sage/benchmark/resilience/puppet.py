"""An engine that does what each request asks of it: `python -m sage.benchmark.resilience.puppet --name NAME`.

It trusts its client, prints its port and serves until it is ended. `GET /puppet` tells what it sees;
`POST /puppet/release` lets held answers go on, `/puppet/drop` closes idle connections, `/puppet/freeze` stops
it from accepting connections until `/puppet/thaw`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import signal
import socket
import time
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, Final

import msgspec

from sage.benchmark.resilience import answers
from sage.benchmark.resilience.acts import Act, acts_of
from sage.benchmark.resilience.reports import Seen

__all__ = ["main"]

BACKLOG: Final = 1024
FILLERS: Final = 4
MODELS: Final = msgspec.json.encode({"object": "list", "data": [{"id": "llm", "object": "model"}]})


class _Engine:
    """What all connections share."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.seen = Seen()
        self.connections: set[_Connection] = set()
        self.released = asyncio.Event()
        self.random = random.Random(name)  # noqa: S311 - which answers fail
        self._accepting: asyncio.Task[None] | None = None
        self._fillers: list[socket.socket] = []

    def listen(self, port: int) -> int:
        """Begin to accept; the port."""
        self._socket = socket.create_server(("127.0.0.1", port), backlog=BACKLOG)
        self._socket.setblocking(False)
        self._accepting = asyncio.create_task(self._accept())
        return int(self._socket.getsockname()[1])

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            sock, _ = await loop.sock_accept(self._socket)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.connect_accepted_socket(lambda: _Connection(self), sock)

    def freeze(self) -> None:
        """Accept nothing more: whoever connects waits. Connections that are open go on."""
        if self._accepting is not None:
            self._accepting.cancel()
        self.drop()
        self._socket.listen(0)
        for _ in range(FILLERS):  # the queue of the system takes one or two before it is full
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(self._socket.getsockname())
            self._fillers.append(filler)

    def thaw(self) -> None:
        """Accept again."""
        while self._fillers:
            self._fillers.pop().close()
        self._socket.listen(BACKLOG)
        self._accepting = asyncio.create_task(self._accept())

    def drop(self) -> None:
        """Close idle connections."""
        for connection in list(self.connections):
            connection.drop_if_idle()

    def release(self) -> None:
        """Let what is held go on."""
        self.released.set()
        self.released = asyncio.Event()

    def control(self, path: str) -> bytes:
        """Do what a control path says, and tell what was seen since the last time."""
        if path != "/puppet":
            getattr(self, path.removeprefix("/puppet/"))()
        seen = msgspec.structs.replace(self.seen, open=len(self.connections) - 1)  # not this one
        self.seen.closes = []
        return msgspec.json.encode(seen)


class _Connection(asyncio.Protocol):
    """Answers whole requests, one after the other."""

    def __init__(self, engine: _Engine) -> None:
        self._engine = engine
        self._buffer = b""
        self._transport: Any = None
        self._task: asyncio.Task[None] | None = None
        self._ours = False  # it is we who end the connection
        self._controls = False  # it belongs to who controls us
        self._tags: list[str] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._engine.connections.add(self)

    def connection_lost(self, _exc: Exception | None) -> None:
        """Note when the client went away from an answer that was not complete."""
        self._engine.connections.discard(self)
        if self._task is not None and not self._ours:
            self._engine.seen.closes.append((self._tags, time.monotonic()))
            self._task.cancel()

    def drop_if_idle(self) -> None:
        if self._task is None and not self._buffer and not self._controls:
            self._close()

    def _close(self) -> None:
        self._ours = True
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, separator, rest = self._buffer.partition(b"\r\n\r\n")
        length = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line[15:])
        if not separator or len(rest) < length:
            return
        self._buffer = b""
        path = head.split(b" ", 2)[1].decode()
        if path.startswith("/puppet"):
            self._controls = True
            self._transport.write(answers.whole(self._engine.control(path)))
        elif head.startswith(b"GET"):
            self._transport.write(answers.whole(MODELS))
        else:
            self._begin(path, rest)

    def _begin(self, path: str, body: bytes) -> None:
        acts, fields = acts_of(body)
        self._tags = [act.tag for act in acts]
        seen = self._engine.seen
        seen.requests += 1
        seen.active += 1
        seen.texts += len(acts)
        self._task = asyncio.get_running_loop().create_task(self._answer(path, acts, fields))
        self._task.add_done_callback(lambda task: self._over(task, len(acts)))

    def _over(self, task: asyncio.Task[None], texts: int) -> None:
        if self._task is task:  # the next one may have begun
            self._task = None
        seen = self._engine.seen
        seen.active -= 1
        seen.texts -= texts
        if not task.cancelled() and task.exception() is None:
            seen.served += 1

    async def _answer(self, path: str, acts: Sequence[Act], fields: dict[str, Any]) -> None:
        act = acts[0]
        if act.hold == -1:
            await self._engine.released.wait()
        await asyncio.sleep(act.first_ms / 1000)
        if act.refuse and self._engine.random.random() < act.refuse:
            self._transport.write(answers.whole(b'{"error": {"message": "told to fail"}}', 500))
        elif act.say:
            self._transport.write(answers.NONSENSE[act.say]())
            if act.say != "second answer":
                self._close()
        elif path.endswith("embeddings"):
            texts = fields["input"] if isinstance(fields["input"], list) else [fields["input"]]
            self._transport.write(answers.whole(answers.vectors([str(text) for text in texts])))
        else:
            await self._speak(act, bool(fields.get("stream")))

    async def _speak(self, act: Act, stream: bool) -> None:
        pieces = answers.parts(self._engine.name, act.words, stream=stream)
        length = f"content-length: {len(pieces[0])}"
        kind = "text/event-stream" if stream else "application/json"
        self._transport.write(answers.head(200, kind, "transfer-encoding: chunked" if stream else length))
        sent = 0
        for index, piece in enumerate(cycle(pieces[: act.words]) if act.endless else pieces):
            if index == act.hold:
                await self._engine.released.wait()
            last = _at(act)
            if last is not None and sent + len(piece) > last and _mine(act):
                self._end(act, _chunk(piece[: last - sent], stream))
                return
            sent += len(piece)
            self._transport.write(_chunk(piece, stream))
            await asyncio.sleep(act.gap_ms / 1000)
            while self._transport.get_write_buffer_size() > 1 << 20:  # noqa: ASYNC110 - a slow reader
                await asyncio.sleep(0.01)
            if self._transport.is_closing():
                return
            self._engine.seen.sent += len(piece)
        if stream:
            self._transport.write(b"0\r\n\r\n")

    def _end(self, act: Act, last_words: bytes) -> None:
        """Send the last bytes, and end the connection, or everything."""
        self._transport.write(last_words)
        if act.once:
            Path(act.once).write_text(str(time.monotonic()))
        if act.kill is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        self._close()


def _at(act: Act) -> int | None:
    return act.cut if act.kill is None else act.kill


def _mine(act: Act) -> bool:
    """Whether this engine is the one that does it."""
    if not act.once:
        return True
    with contextlib.suppress(FileExistsError):
        Path(act.once).touch(exist_ok=False)
        return True
    return False


def _chunk(data: bytes, stream: bool) -> bytes:
    return answers.framed(data) if stream and data else data


async def _serve(name: str, port: int) -> None:
    print(_Engine(name).listen(port), flush=True)
    await asyncio.Event().wait()


def main() -> None:
    """The process."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--name", required=True)
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(options.name, options.port))


if __name__ == "__main__":
    main()
