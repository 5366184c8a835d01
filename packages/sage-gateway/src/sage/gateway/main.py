"""The serving process: gateway, control plane and engines, put together here and nowhere else."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import gc
import itertools
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast, get_args

import uvloop

from sage.common import log as log_output
from sage.common.api import EngineStatus, RunInfo
from sage.common.clock import SystemClock
from sage.common.config import SageConfig
from sage.common.errors import ConfigError, NotFoundError, SageError
from sage.common.paths import SagePaths
from sage.common.settings import Loaded, load
from sage.common.version import VERSION
from sage.gateway.access import Access
from sage.gateway.admin import admin_app
from sage.gateway.app import data_app
from sage.gateway.batch.api import batch_handlers, file_handlers
from sage.gateway.batch.caller import LineCaller
from sage.gateway.batch.service import Batches, Stores
from sage.gateway.connections import Connections
from sage.gateway.conversations import Conversations
from sage.gateway.dataplane import DataPlane
from sage.gateway.door import samples
from sage.gateway.edge import Edge
from sage.gateway.health import Health, Snapshot
from sage.gateway.requests import Settings
from sage.gateway.responseroutes import response_handlers
from sage.gateway.responsestore import ResponseLimits, ResponseStore
from sage.gateway.serve import Listener, bind
from sage.gateway.telemetry import Telemetry
from sage.gateway.tokens import TokenDecoder
from sage.middleware.control_plane.classify import ParseLimits
from sage.middleware.control_plane.driver import ControlPlane
from sage.middleware.control_plane.metrics import Sample
from sage.middleware.engines.port import Route
from sage.middleware.members import make_core
from sage.middleware.pool import EnginePool
from sage.platform.state import StateDirectory
from sage.platform.storage.sqlite import Database

__all__ = ["main"]

log = logging.getLogger("sage.gateway")

LOOPBACK: Final = "127.0.0.1"
ADMIN_DRAIN_S: Final = 1.0
SECOND_SIGNAL_S: Final = 1.0
YOUNG: Final = 10_000  # objects between two collections: by the usual 700 there is one every few requests
_STOP: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclasses.dataclass(frozen=True, slots=True)
class Sockets:
    """The three listeners' sockets, all bound or none."""

    data: socket.socket
    admin: socket.socket
    health: socket.socket

    @classmethod
    def bind(cls, config: SageConfig) -> Sockets:
        """Bind all three. Raises ConflictError for the first that is in use, and keeps none."""
        bound: list[socket.socket] = []
        try:
            for host, port, key in (
                (config.gateway.host, config.ports.gateway, "ports.gateway"),
                (LOOPBACK, config.ports.admin, "ports.admin"),
                (LOOPBACK, config.ports.health, "ports.health"),
            ):
                bound.append(bind(host, port, key))
        except SageError:
            for sock in bound:
                sock.close()
            raise
        return cls(*bound)

    def close(self) -> None:
        """Free all ports."""
        for sock in (self.data, self.admin, self.health):
            sock.close()


class Gateway:
    """One serving process. `run` returns when it was told to stop and everything is down."""

    def __init__(
        self,
        loaded: Loaded,
        paths: SagePaths,
        state: StateDirectory,
        sockets: Sockets,
        control_plane: ControlPlane,
        access: Access,
        telemetry: Telemetry,
        responses: ResponseStore,
        stores: Stores,
    ) -> None:
        config = loaded.config
        self._config = config
        self._paths = paths
        self._state = state
        self._sockets = sockets
        self._clock = SystemClock()
        self._started = self._clock.wall()
        self._stopping = False
        self._signal = asyncio.Event()
        self._control_plane = control_plane
        self._access = access
        self._telemetry = telemetry
        self._responses = responses
        self._pool = EnginePool(config, paths.logs, self._control_plane, kinds=telemetry.kind)
        self._health = Health(sockets.health)
        self._data = self._data_listener(stores)
        self._admin = self._admin_listener(loaded)

    def _data_listener(self, stores: Stores) -> Listener:
        gateway = self._config.gateway
        bodies = {
            Route.CHAT: gateway.max_body_bytes,
            Route.COMPLETIONS: gateway.max_body_bytes,
            Route.MESSAGES: gateway.max_body_bytes,
            Route.COUNT_TOKENS: gateway.max_body_bytes,
            Route.RESPONSES: gateway.max_body_bytes,
            Route.EMBEDDINGS: gateway.max_embedding_body_bytes,
            Route.RERANK: gateway.max_embedding_body_bytes,
            Route.SCORE: gateway.max_embedding_body_bytes,
            Route.TOKENIZE: gateway.max_body_bytes,
            Route.DETOKENIZE: gateway.max_body_bytes,
        }
        limits = ParseLimits.of(gateway, self._config.control_plane)
        core = self._control_plane.core
        watch = self._telemetry.watch()
        handler = DataPlane(
            self._control_plane,
            limits,
            TokenDecoder(),
            lambda: core.policy.traits.prefixes,
            self._access.accounts,
            watch,
            Conversations(self._responses, gateway.max_body_bytes),
        )
        caller = LineCaller(handler, self._access.ring, bodies, self._control_plane.decision)
        self._batches = Batches(stores, caller, self._access.accounts, self._clock, self._config, bodies)
        edge = Edge(
            self._access.ring,
            hosts=gateway.allowed_hosts,
            bodies=bodies,
            max_file=gateway.max_file_bytes,
        )
        settings = Settings(
            edge,
            self._telemetry.around(handler, self._clock.now),
            watch=watch,
            connections=Connections(gateway.max_connections, gateway.max_connections_per_address),
            standing=self._access.standing,
        )
        others = {
            **file_handlers(stores.files),
            **batch_handlers(self._batches),
            **response_handlers(self._responses),
        }
        app = data_app(self._models, self._known_models, others=others)
        return Listener(app, settings, on_beat=self._beat)

    def _admin_listener(self, loaded: Loaded) -> Listener:
        edge = Edge(
            self._access.ring, hosts=self._config.gateway.allowed_hosts, bodies={}, admin_only=True, hot={}
        )
        app = admin_app(
            loaded.config,
            dict(loaded.origin),
            self._control_plane,
            self._pool.statuses,
            lambda: self._clock.wall() - self._started,
            self._access,
            self._samples,
        )
        return Listener(app, Settings(edge, watch=self._telemetry.watch()))

    def _samples(self) -> Iterable[Sample]:
        """What is counted beside the control plane."""
        door = samples({"data": self._data, "admin": self._admin}, self._control_plane.core)
        return itertools.chain(door, self._access.accounts.samples(), self._batches.samples())

    def _models(self) -> list[dict[str, Any]]:
        created = int(self._started)
        return [
            {"id": model, "object": "model", "created": created, "owned_by": "sage"}
            for model in self._control_plane.models()
        ]

    def _known_models(self) -> set[str]:
        """With those whose engines are not ready."""
        return {engine.model for engine in self._control_plane.engines()}

    def _beat(self) -> None:
        self._access.beat()
        self._health.publish(Snapshot(time.monotonic(), self._missing()))

    def _missing(self) -> tuple[str, ...]:
        if self._stopping:
            return ("the gateway is shutting down",)
        return not_ready(self._pool.statuses())

    # ---- life ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until a signal comes, then drain, stop the engines and remove `run.json`."""
        loop = asyncio.get_running_loop()
        for number in _STOP:
            loop.add_signal_handler(number, self._on_signal, number)
        self._health.start()
        gc.collect()
        gc.freeze()  # what is here stays: no later collection need walk through it
        gc.set_threshold(YOUNG)
        servers = [
            asyncio.create_task(self._data.serve([self._sockets.data])),
            asyncio.create_task(self._admin.serve([self._sockets.admin])),
        ]
        engines = asyncio.create_task(self._pool.start())
        keeper = asyncio.create_task(self._access.keep())
        try:
            await self._batches.start()
            self._announce()
            await self._wait(engines, servers)
        finally:
            await self._stop(engines, servers)
            await self._access.close()
            await keeper

    async def _wait(self, engines: asyncio.Task[None], servers: list[asyncio.Task[None]]) -> None:
        """Until a signal; a fault of a server or of the start of the engines is raised."""
        stop = asyncio.create_task(self._signal.wait())
        watched: set[asyncio.Task[Any]] = {stop, engines, *servers}
        while not stop.done():
            done, watched = await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()

    def _on_signal(self, number: int) -> None:
        """The first: drain. The second: answer what is open with an error and go; engines die with us."""
        if not self._stopping:
            log.info("%s: finishing what is under way", signal.Signals(number).name)
            self._stopping = True
            self._beat()
            self._signal.set()
            return
        log.warning("%s again: stopping now", signal.Signals(number).name)
        self._data.hurry()
        self._admin.hurry()
        asyncio.get_running_loop().call_later(SECOND_SIGNAL_S, self._leave_now, number)

    def _leave_now(self, number: int) -> None:
        self._paths.run_file.unlink(missing_ok=True)
        os._exit(128 + number)

    async def _stop(self, engines: asyncio.Task[None], servers: list[asyncio.Task[None]]) -> None:
        self._stopping = True
        self._beat()
        self._data.begin_drain(self._config.gateway.drain_s)
        self._batches.begin_drain(self._config.gateway.drain_s)
        await asyncio.gather(servers[0], return_exceptions=True)
        await self._batches.close()
        engines.cancel()
        await asyncio.gather(engines, return_exceptions=True)
        await self._control_plane.close(0.0)
        await self._pool.close()
        await self._telemetry.close()
        self._admin.begin_drain(ADMIN_DRAIN_S)
        await asyncio.gather(servers[1], return_exceptions=True)
        self._health.stop()
        self._paths.run_file.unlink(missing_ok=True)
        log.info("stopped")

    def _announce(self) -> None:
        """Tell where we listen; whoever reads that may ask at once."""
        self._beat()
        host = self._config.gateway.host
        base = f"http://{_reachable(host)}:{_port(self._sockets.data)}"
        info = RunInfo(
            pid=os.getpid(),
            version=VERSION,
            base_url=f"{base}/v1",
            admin_url=f"http://{LOOPBACK}:{_port(self._sockets.admin)}",
            health_url=f"http://{LOOPBACK}:{_port(self._sockets.health)}",
            started_at=self._started,
        )
        self._state.write_atomic(self._paths.run_file, info.model_dump_json(indent=2).encode())
        log.info("serving %s, admin %s, health %s", info.base_url, info.admin_url, info.health_url)


def not_ready(engines: Iterable[EngineStatus]) -> tuple[str, ...]:
    """The engines that get no work, for callers without a key: `detail` with its paths is the admin API's.

    One that is stopped sleeps: it is started when somebody asks for its model.
    """
    awake = (one for one in engines if one.state not in ("ready", "stopped"))
    return tuple(f"engine {one.name} is {one.state}" for one in awake)


def _port(sock: socket.socket) -> int:
    return int(sock.getsockname()[1])


def _reachable(host: str) -> str:
    """The address by which this machine reaches a listener on `host`."""
    if host in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        return LOOPBACK
    return f"[{host}]" if ":" in host else host


def check_models(config: SageConfig) -> None:
    """Raise NotFoundError for an engine whose model is a folder that is not there."""
    for engine in config.engines:
        if engine.kind == "openai" or not engine.model.startswith(("/", "./", "../", "~")):
            continue
        folder = Path(engine.model).expanduser()
        if not folder.is_dir():
            raise NotFoundError(
                f"The model folder {folder} of engine {engine.name!r} does not exist.",
                hint="Give a folder with a config.json, or a hub name such as Qwen/Qwen3-0.6B.",
            )


def serve(loaded: Loaded, paths: SagePaths) -> None:
    """Check, bind, own the state directory, then run; nothing is left behind if a step fails."""
    check_models(loaded.config)
    with StateDirectory(paths.state) as state:
        sockets = Sockets.bind(loaded.config)
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(_run(loaded, paths, state, sockets))
        finally:
            sockets.close()


async def _run(loaded: Loaded, paths: SagePaths, state: StateDirectory, sockets: Sockets) -> None:
    config, clock = loaded.config, SystemClock()
    control_plane = ControlPlane(config.control_plane, clock, core=make_core(config))

    def known(model: str) -> bool:
        return any(load.spec.model == model for load in control_plane.core.engines)

    telemetry = Telemetry(config.telemetry, os.environ)
    database = Database(paths.gateway_database)
    try:
        access = await Access.open(database, state, paths, clock, known=known)
        responses = await ResponseStore.open(database, ResponseLimits.of(config.gateway), clock)
        async with await Stores.open(paths, config, clock) as stores:
            await Gateway(
                loaded, paths, state, sockets, control_plane, access, telemetry, responses, stores
            ).run()
    finally:
        await database.close()


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m sage.gateway", description="Serve the OpenAI API.")
    parser.add_argument("--config", type=Path, metavar="FILE", help="configuration file (YAML)")
    parser.add_argument("--state-dir", type=Path, metavar="DIR", help="state directory; one process owns it")
    parser.add_argument("--host", help="address of the data plane")
    for name in ("port", "admin-port", "health-port"):
        parser.add_argument(f"--{name}", type=int, metavar="N", help="0 = any free port")
    parser.add_argument("--policy", metavar="NAME", help="scheduling policy")
    return parser.parse_args(argv)


def _flags(options: argparse.Namespace) -> dict[str, object]:
    """The flags by the dotted keys of the configuration; None = not given."""
    state = options.state_dir
    return {
        "state_dir": None if state is None else str(state.expanduser().resolve()),
        "gateway.host": options.host,
        "ports.gateway": options.port,
        "ports.admin": options.admin_port,
        "ports.health": options.health_port,
        "control_plane.policy": options.policy,
    }


def configure_logs(env: Mapping[str, str]) -> None:
    """Logs to stderr, redacted, by `SAGE_LOG_LEVEL` and `SAGE_LOG_STYLE`. Raises ConfigError for a value
    that is neither.
    """
    level = _choice(env, "SAGE_LOG_LEVEL", ("info", "debug", "warning", "error"))
    style = _choice(env, "SAGE_LOG_STYLE", get_args(log_output.LogStyle))
    log_output.configure(level, style=cast(log_output.LogStyle, style))
    logging.getLogger("uvicorn").setLevel(logging.WARNING)  # what it says of its life is said here


def _choice(env: Mapping[str, str], name: str, valid: Sequence[str]) -> str:
    """The value of a variable; the first valid one if it is not set."""
    value = env.get(name, "").lower() or valid[0]
    if value not in valid:
        raise ConfigError(f"env {name}: found {value!r}, valid is one of {', '.join(valid)}.")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Run the serving process; the exit code is that of the error which stopped it, 0 after a signal."""
    options = _arguments(argv)
    paths = SagePaths.default()
    try:
        configure_logs(os.environ)
        loaded = load(_flags(options), options.config, cwd=Path.cwd(), env=os.environ, paths=paths)
        if loaded.config.state_dir is not None:
            paths = dataclasses.replace(paths, state=loaded.config.state_dir.expanduser().resolve())
        serve(loaded, paths)
    except SageError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0
