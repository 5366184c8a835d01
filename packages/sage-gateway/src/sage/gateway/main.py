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
from sage.common.errors import ConfigError, ConflictError, SageError
from sage.common.paths import SagePaths
from sage.common.settings import Loaded, load
from sage.common.version import VERSION
from sage.gateway.admin import admin_app
from sage.gateway.app import data_app
from sage.gateway.batch.api import batch_handlers, file_handlers
from sage.gateway.batch.caller import LineCaller
from sage.gateway.batch.service import Batches
from sage.gateway.checks import check_models
from sage.gateway.door import samples
from sage.gateway.front import Front
from sage.gateway.hangup import Terminal
from sage.gateway.health import Health, Snapshot
from sage.gateway.jobs import job_handlers
from sage.gateway.reload import Parts, Reloader
from sage.gateway.responseroutes import response_handlers
from sage.gateway.serve import Listener
from sage.gateway.services import Services
from sage.gateway.sockets import LOOPBACK, Sockets, port_of
from sage.middleware.control_plane.classify import ParseLimits
from sage.middleware.control_plane.inprocess import InProcessClient
from sage.middleware.control_plane.metrics import Sample
from sage.middleware.live_pool import LivePool
from sage.middleware.pipelines.pool import Pipelines
from sage.middleware.recipe import Recipe
from sage.platform.state import StateDirectory

__all__ = ["main"]

log = logging.getLogger("sage.gateway")

ADMIN_DRAIN_S: Final = 1.0
JOBS_DRAIN_S: Final = 5.0  # for the last checkpoints
SECOND_SIGNAL_S: Final = 1.0
YOUNG: Final = 10_000  # objects between two collections: by the usual 700 there is one every few requests
_STOP: Final = (signal.SIGTERM, signal.SIGINT)


class Sources:
    """Where the configuration came from, to be asked again.

    With a `recipe` the configuration file is one that `sage up` made by it: what comes later is made anew.
    """

    def __init__(
        self, flags: Mapping[str, object], file: Path | None, paths: SagePaths, recipe: Recipe | None
    ) -> None:
        self._flags = flags
        self._file = file
        self._paths = paths
        self._recipe = recipe
        self.first = self._load()

    def again(self, running: SageConfig) -> Loaded:
        """What they say now. Raises ConfigError with all that is wrong."""
        return self._load() if self._recipe is None else self._recipe.again(running)

    def _load(self) -> Loaded:
        return load(self._flags, self._file, cwd=Path.cwd(), env=os.environ, paths=self._paths)


class Gateway:
    """One serving process. `run` returns when it was told to stop and everything is down."""

    def __init__(
        self,
        source: Sources,
        paths: SagePaths,
        state: StateDirectory,
        sockets: Sockets,
        services: Services,
    ) -> None:
        config = source.first.config
        self._paths = paths
        self._state = state
        self._sockets = sockets
        self._clock = SystemClock()
        self._started = self._clock.wall()
        self._stopping = False
        self._signal = asyncio.Event()
        self._control_plane = services.control_plane
        self._router = services.router
        self._access = services.access
        self._pool = LivePool(config, paths.logs, services.control_plane, kinds=services.telemetry.kind)
        limits = ParseLimits.of(config.gateway, config.control_plane)
        # Whoever asks a pipeline is told of overload at once, as by any model, and comes back by Retry-After.
        client = InProcessClient(services.control_plane, door=services.router, limits=limits, patience_s=0.0)
        self._pipelines = Pipelines(services.control_plane, client, tracer=services.telemetry.tracer)
        self._front = Front(config, services, self._clock.now)
        caller = LineCaller(
            self._front.handler, services.access.ring, self._front.bodies, services.router.decision
        )
        self._batches = Batches(
            services.stores, caller, services.access.accounts, self._clock, config, self._front.bodies
        )
        self._jobs = services.jobs
        parts = Parts(
            services.control_plane, services.router, self._front, self._pool, self._pipelines, client
        )
        self._reloader = Reloader(source.first, source.again, parts, self._keep)
        self._reloads: set[asyncio.Task[None]] = set()
        self._terminal = Terminal()
        self._health = Health(sockets.health)
        self._data, self._admin = self._listeners(services)

    def _listeners(self, services: Services) -> tuple[Listener, Listener]:
        others = {
            **file_handlers(services.stores.files),
            **batch_handlers(self._batches),
            **response_handlers(services.responses),
        }
        data = data_app(self._models, self._router.known, others=others, met=self._front.data.watch.met)
        admin = admin_app(
            self._reloader,
            self._control_plane,
            lambda: [*self._pool.statuses(), *self._pipelines.statuses()],
            lambda: self._clock.wall() - self._started,
            {**self._access.admin, **job_handlers(self._jobs)},
            self._samples,
            met=self._front.admin.watch.met,
        )
        return Listener(data, self._front.data, on_beat=self._beat), Listener(admin, self._front.admin)

    def _samples(self) -> Iterable[Sample]:
        """What is counted beside the control plane."""
        door = samples({"data": self._data, "admin": self._admin}, self._control_plane.core)
        accounts = self._access.accounts.samples()
        stored = itertools.chain(self._batches.samples(), self._jobs.samples())
        return itertools.chain(door, accounts, stored, self._router.samples())

    def _models(self) -> list[dict[str, Any]]:
        created = int(self._started)
        return [
            {"id": model, "object": "model", "created": created, "owned_by": "sage"}
            for model in self._router.models()
        ]

    def _beat(self) -> None:
        self._access.beat()
        self._health.publish(Snapshot(time.monotonic(), self._missing()))

    def _missing(self) -> tuple[str, ...]:
        if self._stopping:
            return ("the gateway is shutting down",)
        return not_ready(self._pool.awaited())

    # ---- life ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until a signal comes, then drain, stop the engines and remove `run.json`."""
        loop = asyncio.get_running_loop()
        for number in _STOP:
            loop.add_signal_handler(number, self._on_signal, number)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
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
        engines.add_done_callback(self._start_jobs)
        self._pipelines.apply(self._reloader.loaded.config.pipelines)
        try:
            await self._batches.start()
            self._announce()
            await self._wait(engines, *servers)
        finally:
            await self._stop(engines, servers)
            await self._access.close()
            await keeper

    def _start_jobs(self, engines: asyncio.Task[None]) -> None:
        """Jobs go on once the models that they may ask for are there."""
        if not self._stopping and not engines.cancelled() and engines.exception() is None:
            self._jobs.start()

    async def _wait(self, *tasks: asyncio.Task[None]) -> None:
        """Until a signal; a fault of a server or of the start of the engines is raised."""
        stop = asyncio.create_task(self._signal.wait())
        watched: set[asyncio.Task[Any]] = {stop, *tasks}
        while not stop.done():
            done, watched = await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()

    def _on_hangup(self) -> None:
        """Load the configuration again; where it says that our terminal was closed, end like by SIGTERM."""
        if self._stopping:  # kernel and shell may both tell of a closed terminal: that is no hurry
            return
        if self._terminal.gone:
            self._on_signal(signal.SIGHUP)
            return
        task = asyncio.create_task(self._reload_unasked(), name="reload")
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)

    async def _reload_unasked(self) -> None:
        """What is wrong is in the log alone: nobody waits for the answer."""
        try:
            await self._reloader.reload()
        except ConflictError as error:
            log.warning("the configuration was not loaded again: %s", error)
        except SageError:
            return  # which the reloader has told

    def _keep(self, config: SageConfig) -> None:
        """Whoever stops us reads there how long we may take."""
        file = self._paths.effective_file
        if file.exists():
            self._state.write_atomic(file, config.model_dump_json(indent=2).encode())

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
        await self._jobs.close(JOBS_DRAIN_S)
        drain_s = self._reloader.loaded.config.gateway.drain_s
        self._data.begin_drain(drain_s)
        self._batches.begin_drain(drain_s)
        await asyncio.gather(servers[0], return_exceptions=True)
        await self._batches.close()
        engines.cancel()
        await asyncio.gather(engines, return_exceptions=True)
        await self._pipelines.close()
        await self._control_plane.close(0.0)
        await self._pool.close()
        self._admin.begin_drain(ADMIN_DRAIN_S)
        await asyncio.gather(servers[1], return_exceptions=True)
        self._health.stop()
        self._paths.run_file.unlink(missing_ok=True)
        log.info("stopped")

    def _announce(self) -> None:
        """Tell where we listen; whoever reads that may ask at once."""
        self._beat()
        host = self._reloader.loaded.config.gateway.host
        info = RunInfo(
            pid=os.getpid(),
            version=VERSION,
            base_url=self._sockets.base_url(host),
            admin_url=f"http://{LOOPBACK}:{port_of(self._sockets.admin)}",
            health_url=f"http://{LOOPBACK}:{port_of(self._sockets.health)}",
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


def serve(source: Sources, paths: SagePaths) -> None:
    """Check, bind, own the state directory, then run; nothing is left behind if a step fails."""
    check_models(source.first.config)
    with StateDirectory(paths.state) as state:
        sockets = Sockets.bind(source.first.config)
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(_run(source, paths, state, sockets))
        finally:
            sockets.close()


async def _run(source: Sources, paths: SagePaths, state: StateDirectory, sockets: Sockets) -> None:
    config = source.first.config
    base_url = sockets.base_url(config.gateway.host)
    async with Services.open(config, paths, state, base_url) as services:
        await Gateway(source, paths, state, sockets, services).run()


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m sage.gateway", description="Serve the OpenAI API.")
    parser.add_argument("--config", type=Path, metavar="FILE", help="configuration file (YAML)")
    parser.add_argument("--state-dir", type=Path, metavar="DIR", help="state directory; one process owns it")
    parser.add_argument("--host", help="address of the data plane")
    for name in ("port", "admin-port", "health-port"):
        parser.add_argument(f"--{name}", type=int, metavar="N", help="0 = any free port")
    parser.add_argument("--policy", metavar="NAME", help="scheduling policy")
    parser.add_argument("--recipe", type=Recipe.parse, help=argparse.SUPPRESS)  # of `sage up`: see Recipe
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
        source = Sources(_flags(options), options.config, paths, options.recipe)
        if (state := source.first.config.state_dir) is not None:
            paths = dataclasses.replace(paths, state=state.expanduser().resolve())
        serve(source, paths)
    except SageError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0
