"""Start, find and stop the serving process of this machine: gateway, control plane and engines."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence

from sage.common.api import EngineStatus, RunInfo
from sage.common.config import EngineConfig, PortsConfig, SageConfig
from sage.common.errors import ConflictError, SageError, UnauthorizedError, UnreachableError
from sage.common.paths import SagePaths
from sage.common.ports import is_free
from sage.middleware.admin import AdminClient
from sage.middleware.models import MINILM, RANDOM, minilm_folder, resolve
from sage.platform.daemon import alive, spawn, terminate
from sage.platform.runs import read_run, recorded_run
from sage.platform.service.logs import LogMark
from sage.platform.state import explain, read_secret, write_atomic

__all__ = ["admin_client", "client_key", "quick_config", "read_run", "start", "stop"]

GATEWAY = (sys.executable, "-m", "sage.gateway")
_POLL_S = 0.1
_KILL_AFTER_S = 10.0
_REASON_LINES = 3


def quick_config(
    model: str | None, engine: str, paths: SagePaths, *, base: SageConfig | None = None
) -> SageConfig:
    """A stack that needs no configuration file: one LLM engine `llm-0` and one embedding engine `embed-0`.

    `model` is a hub name or a folder; None makes a small random-weight model once under the cache directory.
    Everything else comes from `base`. Default ports that are in use are replaced by free ones.
    Raises NotFoundError for a folder that holds no model.
    """
    found = resolve(model or RANDOM, paths.cache)
    llm = EngineConfig(
        name="llm-0",
        kind=engine,
        model=found.path_or_id,
        served_as=found.served_as,
        random_weights=found.random_weights,
    )
    embed = EngineConfig(
        name="embed-0", kind="embedding", model=str(minilm_folder()), served_as=MINILM, task="embed"
    )
    base = base or SageConfig()
    return base.model_copy(update={"engines": (llm, embed), "ports": _free_ports(base.ports)})


def start(
    config: SageConfig,
    paths: SagePaths,
    *,
    on_progress: Callable[[str], None],
    command: Sequence[str] = GATEWAY,
    gateway_timeout: float = 30.0,
) -> RunInfo:
    """Start the stack in the background and return once every engine is ready.

    `on_progress` gets one line per change. `command` is the serving program, called with `--config FILE
    --state-dir DIR`; it has `gateway_timeout` seconds beside what its slowest engine may take. Raises
    ConflictError when a stack already runs here, and SageError with the reason from the log when this one
    does not come up; then nothing of it is left running.
    """
    try:
        paths.state.mkdir(parents=True, exist_ok=True, mode=0o700)
        paths.logs.mkdir(exist_ok=True, mode=0o700)
    except OSError as exc:
        raise explain(exc, paths.state) from exc
    _refuse_second(paths)
    file = paths.state / "effective.yaml"
    write_atomic(file, json.dumps(config.model_dump(mode="json"), indent=2).encode())  # JSON is YAML
    log = paths.logs / "gateway.log"
    mark = LogMark.now(log)
    argv = (*command, "--config", str(file), "--state-dir", str(paths.state))
    pid = spawn(argv, log)
    on_progress(f"gateway: starting (pid {pid}, log {log})")
    patience = gateway_timeout + max((e.start_timeout_s for e in config.engines), default=0.0)
    try:
        return _wait_ready(pid, paths, time.monotonic() + patience, on_progress)
    except BaseException as exc:
        terminate(pid, _KILL_AFTER_S)
        paths.run_file.unlink(missing_ok=True)
        if isinstance(exc, _DiedError):
            raise SageError(_reason(mark.text()), hint=f"The whole log is {log}.") from None
        raise


def stop(paths: SagePaths, *, grace: float = 45.0) -> bool:
    """Stop the stack of this state directory: True once it is gone, False when none ran.

    It gets `grace` seconds to finish its streams (SIGTERM), then SIGKILL. A stale `run.json` is removed.
    """
    run = recorded_run(paths)
    if run is None:
        return False
    ran = alive(run.pid, run.started_at)
    if ran:
        terminate(run.pid, grace, run.started_at)
    paths.run_file.unlink(missing_ok=True)
    return ran


def admin_client(paths: SagePaths, *, timeout: float = 10.0) -> AdminClient:
    """A client of the stack that runs here. Raises UnreachableError or UnauthorizedError (no token)."""
    return AdminClient(read_run(paths), read_secret(paths.admin_token_file), timeout=timeout)


def client_key(paths: SagePaths) -> str:
    """The default API key of this state directory. Raises UnauthorizedError when it cannot be read."""
    return read_secret(paths.default_key_file)


# ---- start -------------------------------------------------------------------------------------------------


def _refuse_second(paths: SagePaths) -> None:
    run = recorded_run(paths)
    if run is not None and alive(run.pid, run.started_at):
        raise ConflictError(
            f"A stack already runs for {paths.state} (pid {run.pid}, {run.base_url}).",
            hint="Use it, or stop it with `sage down`.",
        )
    paths.run_file.unlink(missing_ok=True)


class _DiedError(Exception):
    """The serving process ended before it was ready."""


def _wait_ready(pid: int, paths: SagePaths, deadline: float, on_progress: Callable[[str], None]) -> RunInfo:
    seen: dict[str, str] = {}
    while time.monotonic() < deadline:
        if not alive(pid):
            raise _DiedError
        engines = _engines(paths)
        if engines is not None:
            for engine in engines:
                _report(engine, seen, on_progress)
            failed = [e for e in engines if e.state == "failed"]
            if failed:
                raise SageError(
                    " ".join(
                        f"Engine {e.name} did not start: {e.detail or 'no reason given'}" for e in failed
                    ),
                    hint=f"Its log is in {paths.logs}.",
                )
            if all(e.state in ("ready", "degraded") for e in engines):
                return read_run(paths)
        time.sleep(_POLL_S)
    waiting = ", ".join(f"{name} {state}" for name, state in seen.items()) or "gateway not listening"
    raise SageError(
        f"The stack was not ready in time ({waiting}).",
        hint=f"Raise start_timeout_s of the engine if it only needs longer; the logs are in {paths.logs}.",
    )


def _engines(paths: SagePaths) -> list[EngineStatus] | None:
    """None while the gateway does not listen yet."""
    try:
        return admin_client(paths).engines().engines
    except (UnreachableError, UnauthorizedError):
        return None


def _report(engine: EngineStatus, seen: dict[str, str], on_progress: Callable[[str], None]) -> None:
    if seen.get(engine.name) != engine.state:
        seen[engine.name] = engine.state
        detail = f": {engine.detail}" if engine.detail else ""
        on_progress(f"{engine.name} ({engine.kind}, {engine.model}): {engine.state}{detail}")


def _reason(said: str) -> str:
    """The last words of a process that did not come up, from what it logged."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    if not lines:
        return "The gateway ended at once and said nothing."
    errors = [line for line in lines if line.lower().startswith("error:")]
    if errors:
        return errors[-1][len("error:") :].strip()
    return "The gateway ended before it was ready: " + " / ".join(lines[-_REASON_LINES:])


def _free_ports(ports: PortsConfig) -> PortsConfig:
    """A default that is in use gives way to any free port (0); one that somebody chose stays."""
    usual = PortsConfig()
    mine = {name: getattr(ports, name) for name in ("gateway", "health", "admin")}
    busy = {name: 0 for name, port in mine.items() if port == getattr(usual, name) and not is_free(port)}
    return ports.model_copy(update=busy)
