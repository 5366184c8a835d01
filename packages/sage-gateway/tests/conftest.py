"""A front door on a real socket with a handler that tests steer, and a raw HTTP client."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest
import pytest_asyncio

from sage.common.api import RunInfo
from sage.common.errors import OverloadedError
from sage.gateway.app import Handlers, data_app
from sage.gateway.edge import Edge
from sage.gateway.keys import KeyRing, new_admin_token, new_default_key
from sage.gateway.reply import Answer as Replied
from sage.gateway.reply import Reply
from sage.gateway.requests import HotRequest, Over, Settings
from sage.gateway.serve import Listener, bind
from sage.gateway.testing import idle_handlers, ring_of
from sage.gateway.testing.wire import Answer, Wire
from sage.middleware.engines.port import Route

BODY_LIMIT = 64 * 1024


@dataclass(frozen=True)
class Keys:
    default: str
    admin: str


@dataclass
class Steered:
    """A handler that does what the body's `do` says, and waits on events."""

    requests: list[HotRequest] = field(default_factory=list)
    cancelled: int = 0
    release: asyncio.Event = field(default_factory=asyncio.Event)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    written: int = 0

    def begin(self, _request: HotRequest, _reply: Reply, _over: Over) -> bool:
        return False

    async def __call__(self, request: HotRequest, reply: Replied) -> None:
        self.requests.append(request)
        await self._notify()
        asked = msgspec.json.decode(request.body) if request.body.startswith(b"{") else {}
        try:
            await self._do(asked.get("do", "echo"), request, reply)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            await self._notify()

    async def _do(self, what: str, request: HotRequest, reply: Replied) -> None:
        if what == "boom":
            raise ValueError("a fault of ours")
        if what == "overloaded":
            reply.fail(OverloadedError("Too busy.", retry_after=2.4))
            return
        if what == "nothing":
            return
        if what == "wait":
            await self.release.wait()
        reply.configure(stream=what in ("stream", "flood", "stall"))
        if what in ("stream", "stall"):
            reply.head(200, "text/event-stream")
            reply.data(b"data: 1\n\n")
            if what == "stall":
                await self.release.wait()
            reply.data(b"data: [DONE]\n\n")
        elif what == "flood":
            await self._flood(reply)
        else:
            reply.head(200, "application/json")
            reply.data(request.body[:10])
            reply.data(request.body[10:])
        reply.end()

    async def _flood(self, reply: Replied) -> None:
        reply.head(200, "text/event-stream")
        for _ in range(512):
            if reply.full:
                await self._notify()
                await reply.drain()
            reply.data(b"x" * 65536)
            self.written += 65536

    async def _notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60), self.changed:
            await self.changed.wait_for(condition)


@dataclass
class Front:
    """A running front door."""

    keys: Keys
    ring: KeyRing
    handler: Steered
    listener: Listener
    port: int
    task: asyncio.Task[None]
    wires: list[Wire] = field(default_factory=list)

    async def connect(self) -> Wire:
        wire = Wire(*await asyncio.open_connection("127.0.0.1", self.port))
        self.wires.append(wire)
        return wire

    def post(self, body: bytes = b"{}", path: str = "/v1/chat/completions", **headers: str | None) -> bytes:
        return self.request("POST", path, body, **headers)

    def request(self, method: str, path: str, body: bytes = b"", **headers: str | None) -> bytes:
        """A request with the usual headers; a header set to None is left out."""
        fields: dict[str, str | None] = {
            "host": f"127.0.0.1:{self.port}",
            "authorization": f"Bearer {self.keys.default}",
        }
        if body or method != "GET":
            fields |= {"content-type": "application/json", "content-length": str(len(body))}
        fields |= {name.replace("_", "-"): value for name, value in headers.items()}
        lines = [f"{name}: {value}\r\n" for name, value in fields.items() if value is not None]
        return f"{method} {path} HTTP/1.1\r\n{''.join(lines)}\r\n".encode() + body

    async def ask(self, data: bytes) -> Answer:
        wire = await self.connect()
        await wire.send(data)
        return await wire.answer()

    async def stop(self) -> None:
        for wire in self.wires:
            wire.abort()
        self.listener.begin_drain(0.0)
        await self.task


MakeFront = Callable[..., Awaitable[Front]]


@pytest.fixture(scope="session")
def keys() -> Keys:
    return Keys(new_default_key(), new_admin_token())


@pytest.fixture
async def make_front(keys: Keys) -> AsyncIterator[MakeFront]:
    """Makes front doors; keyword arguments are those of `Settings`, and `files`, which serve files."""
    fronts: list[Front] = []

    async def make(files: Handlers | None = None, **settings: Any) -> Front:
        sock = bind("127.0.0.1", 0, "ports.gateway")
        handler = Steered()
        ring = ring_of(keys.default, admin_token=keys.admin)
        bodies = dict.fromkeys(Route, BODY_LIMIT)
        edge = Edge(ring, hosts=("127.0.0.1", "localhost", "[::1]"), bodies=bodies, max_file=16 * BODY_LIMIT)
        tiny = {"id": "org/tiny", "object": "model", "created": 1, "owned_by": "sage"}
        others = idle_handlers() | (files or {})
        guards = Settings(edge, handler, **settings)
        known = ["org/tiny", "org/coming"]
        app = data_app(lambda: [tiny], lambda: known, others=others, met=guards.watch.met)
        listener = Listener(app, guards)
        port, task = sock.getsockname()[1], asyncio.create_task(listener.serve([sock]))
        front = Front(keys, ring, handler, listener, port, task)
        await listener.ready.wait()
        fronts.append(front)
        return front

    yield make
    for front in fronts:
        await front.stop()


@pytest.fixture
async def front(make_front: MakeFront) -> Front:
    return await make_front()


@pytest.fixture(scope="session")
def encodings() -> Path:
    """The folder of encodings that litellm carries; found without importing litellm."""
    spec = importlib.util.find_spec("litellm")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "litellm_core_utils" / "tokenizers"


# ---- the real process --------------------------------------------------------------------------------------


@dataclass
class Process:
    """A running `python -m sage.gateway`."""

    process: asyncio.subprocess.Process
    state: Path
    run: RunInfo

    @property
    def keys(self) -> Keys:
        read = (self.state / name for name in ("default.key", "admin.token"))
        return Keys(*(file.read_text().strip() for file in read))

    async def http(
        self,
        method: str,
        url: str,
        *,
        key: str = "",
        body: Any = None,
        media: str = "application/json",
        **headers: str,
    ) -> Answer:
        """One request on a connection of its own; bytes go as they are."""
        parts = urlsplit(url)
        assert parts.hostname is not None
        wire = Wire(*await asyncio.open_connection(parts.hostname, parts.port))
        raw = b"" if body is None else body if isinstance(body, bytes) else msgspec.json.encode(body)
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        lines = [f"{method} {target} HTTP/1.1", f"host: {parts.netloc}", "connection: close"]
        lines += [f"authorization: Bearer {key}"] if key else []
        lines += [f"content-type: {media}", f"content-length: {len(raw)}"] if body is not None else []
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        try:
            await wire.send("\r\n".join([*lines, "", ""]).encode() + raw)
            return await wire.answer()
        finally:
            wire.abort()

    async def admin(self, method: str, path: str, body: Any = None) -> Answer:
        return await self.http(method, f"{self.run.admin_url}/admin/v1{path}", key=self.keys.admin, body=body)

    async def until_ready(self, seconds: float = 100) -> None:
        await self.until_health(200, seconds)

    async def until_health(self, status: int, seconds: float = 100) -> Answer:
        """Poll another process: there is no event to wait on."""
        async with asyncio.timeout(seconds):
            while True:
                answer = await self.http("GET", f"{self.run.health_url}/readyz")
                if answer.status == status:
                    return answer
                await asyncio.sleep(0.02)

    async def until_refused(self) -> None:
        """Poll: readiness goes first and the listener a moment later, of which no event tells."""
        url = urlsplit(self.run.base_url)
        async with asyncio.timeout(60):
            with contextlib.suppress(ConnectionRefusedError):
                while True:
                    _, writer = await asyncio.open_connection(url.hostname, url.port)
                    writer.transport.abort()
                    await asyncio.sleep(0.02)

    async def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process.returncode is None:
            self.process.send_signal(number)
        async with asyncio.timeout(60):
            return await self.process.wait()


@dataclass
class Spawner:
    """Starts gateways below one folder and stops what is left of them."""

    folder: Path
    environment: dict[str, str]
    started: list[asyncio.subprocess.Process] = field(default_factory=list)

    async def launch(self, config: dict[str, Any], *arguments: str) -> asyncio.subprocess.Process:
        file = self.folder / f"sage-{len(self.started)}.yaml"
        file.write_bytes(msgspec.json.encode({"ports": {"gateway": 0, "admin": 0, "health": 0}, **config}))
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "sage.gateway", "--config", str(file), "--state-dir", str(self.state), *arguments),
            cwd=self.folder,
            env=self.environment,
            stderr=asyncio.subprocess.PIPE,
            limit=2**26,  # of its log, which is read at the end: a full pipe would hold it up
        )
        self.started.append(process)
        return process

    @property
    def state(self) -> Path:
        return self.folder / "state"

    async def start(self, config: dict[str, Any]) -> Process:
        process = await self.launch(config)
        run_file = self.state / "run.json"
        async with asyncio.timeout(60):
            while not (run_file.exists() and f'"pid": {process.pid}' in run_file.read_text()):
                if process.returncode is not None:
                    assert process.stderr is not None
                    pytest.fail((await process.stderr.read()).decode())
                await asyncio.sleep(0.02)
        return Process(process, self.state, RunInfo.model_validate_json(run_file.read_bytes()))

    async def refused(self, config: dict[str, Any], *arguments: str) -> tuple[int, str]:
        """Exit code and words of a gateway that does not start."""
        process = await self.launch(config, *arguments)
        async with asyncio.timeout(60):
            _, words = await process.communicate()
        assert process.returncode is not None
        return process.returncode, words.decode()

    async def stop(self) -> None:
        for process in self.started:
            if process.returncode is None:
                process.kill()
            # communicate also ends the pipe's transport, which would warn when it is collected
            await process.communicate()


def _spawner(folder: Path, encodings: Path) -> Spawner:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SAGE_")}
    own = {"SAGE_HOME": str(folder / "home"), "TIKTOKEN_CACHE_DIR": str(encodings), "HF_HUB_OFFLINE": "1"}
    return Spawner(folder, kept | own)


@pytest.fixture
async def spawner(tmp_path: Path, encodings: Path) -> AsyncIterator[Spawner]:
    spawner = _spawner(tmp_path, encodings)
    yield spawner
    await spawner.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def module_spawner(tmp_path_factory: pytest.TempPathFactory, encodings: Path) -> AsyncIterator[Spawner]:
    spawner = _spawner(tmp_path_factory.mktemp("gateway"), encodings)
    yield spawner
    await spawner.stop()
