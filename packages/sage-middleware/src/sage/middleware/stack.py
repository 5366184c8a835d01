"""Start, find and stop the serving process of this machine: gateway, control plane and engines."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import ValidationError

from sage.common.api import EngineStatus, RunInfo
from sage.common.config import EngineConfig, PortsConfig, SageConfig
from sage.common.errors import ConflictError, NotFoundError, SageError, UnauthorizedError, UnreachableError
from sage.common.paths import SagePaths
from sage.common.ports import is_free
from sage.middleware.admin import AdminClient

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
    Raises NotFoundError for a folder that does not exist.
    """
    from sage.middleware.models import minilm_folder, random_model  # they load tensors when first asked

    if model is None:
        llm = EngineConfig(
            name="llm-0", kind=engine, model=str(random_model(paths.cache)), random_weights=True
        )
    else:
        llm = EngineConfig(name="llm-0", kind=engine, model=_existing(model))
    embed = EngineConfig(
        name="embed-0",
        kind="embedding",
        model=str(minilm_folder()),
        served_as="all-MiniLM-L6-v2",
        task="embed",
    )
    base = base or SageConfig()
    return base.model_copy(update={"engines": (llm, embed), "ports": _free_ports(base.ports)})


def start(
    config: SageConfig,
    paths: SagePaths,
    *,
    on_progress: Callable[[str], None],
    command: Sequence[str] = GATEWAY,
) -> RunInfo:
    """Start the stack in the background and return once every engine is ready.

    `on_progress` gets one line per change. `command` is the serving program, called with `--config FILE
    --state-dir DIR`. Raises ConflictError when a stack already runs here, and SageError with the reason from the
    log when this one does not come up; then nothing of it is left running.
    """
    from sage.platform.daemon import spawn

    _refuse_second(paths)
    paths.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    paths.logs.mkdir(exist_ok=True, mode=0o700)
    file = paths.state / "effective.yaml"
    _write_private(file, json.dumps(config.model_dump(mode="json"), indent=2))  # JSON is YAML
    log = paths.logs / "gateway.log"
    skip = log.stat().st_size if log.exists() else 0
    argv = (*command, "--config", str(file), "--state-dir", str(paths.state))
    pid = spawn(argv, log=log, env=_environment())
    on_progress(f"gateway: starting (pid {pid}, log {log})")
    deadline = time.monotonic() + 30 + max((e.start_timeout_s for e in config.engines), default=0.0)
    try:
        return _wait_ready(pid, paths, deadline, on_progress)
    except BaseException as exc:
        _end(pid, grace=_KILL_AFTER_S)
        paths.run_file.unlink(missing_ok=True)
        if isinstance(exc, _Died):
            raise SageError(_reason(log, skip), hint=f"The whole log is {log}.") from None
        raise


def stop(paths: SagePaths, *, grace: float = 45.0) -> bool:
    """Stop the stack of this state directory: True once it is gone, False when none ran.

    It gets `grace` seconds to finish its streams (SIGTERM), then SIGKILL. A stale `run.json` is removed.
    """
    run = _read(paths)
    if run is None:
        return False
    alive = _alive(run)
    if alive:
        _end(run.pid, grace=grace)
    paths.run_file.unlink(missing_ok=True)
    return alive


def read_run(paths: SagePaths) -> RunInfo:
    """Where the running stack listens. Raises UnreachableError when none runs, also for a stale `run.json`."""
    run = _read(paths)
    if run is None:
        raise UnreachableError(f"No stack is running for {paths.state}.", hint="Start one with `sage up`.")
    if not _alive(run):
        raise UnreachableError(
            f"The stack that ran for {paths.state} (pid {run.pid}) ended without a word.",
            hint=f"Its last words are in {paths.logs / 'gateway.log'}; start a new one with `sage up`.",
        )
    return run


def admin_client(paths: SagePaths, *, timeout: float = 10.0) -> AdminClient:
    """A client of the stack that runs here. Raises UnreachableError, or UnauthorizedError without its token."""
    return AdminClient(read_run(paths), _secret(paths.admin_token_file), timeout=timeout)


def client_key(paths: SagePaths) -> str:
    """The default API key of this state directory. Raises UnauthorizedError when it cannot be read."""
    return _secret(paths.default_key_file)


# ---- what is running -------------------------------------------------------------------------------------------


def _read(paths: SagePaths) -> RunInfo | None:
    try:
        return RunInfo.model_validate_json(paths.run_file.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as exc:
        raise SageError(
            f"{paths.run_file} is not what a stack of this version writes ({exc.error_count()} problems).",
            hint="If no stack runs, delete the file; else stop it with the version that started it.",
        ) from exc


def _alive(run: RunInfo) -> bool:
    import psutil

    try:
        process = psutil.Process(run.pid)
        # A process that began after the stack did has only inherited its number. 2 s: clocks of the kernel.
        return process.status() != psutil.STATUS_ZOMBIE and process.create_time() < run.started_at + 2
    except psutil.NoSuchProcess:
        return False


def _refuse_second(paths: SagePaths) -> None:
    run = _read(paths)
    if run is not None and _alive(run):
        raise ConflictError(
            f"A stack already runs for {paths.state} (pid {run.pid}, {run.base_url}).",
            hint="Use it, or stop it with `sage down`.",
        )
    paths.run_file.unlink(missing_ok=True)


# ---- start ---------------------------------------------------------------------------------------------------


class _Died(Exception):
    """The serving process ended before it was ready."""


def _wait_ready(pid: int, paths: SagePaths, deadline: float, on_progress: Callable[[str], None]) -> RunInfo:
    seen: dict[str, str] = {}
    while time.monotonic() < deadline:
        if not _running(pid):
            raise _Died
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


def _reason(log: Path, skip: int) -> str:
    """The last words of a process that did not come up, from byte `skip` of its log."""
    with log.open("rb") as file:
        file.seek(skip)
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    if not lines:
        return "The gateway ended at once and said nothing."
    said = [line for line in lines if line.lower().startswith("error:")]
    if said:
        return said[-1][len("error:") :].strip()
    return "The gateway ended before it was ready: " + " / ".join(lines[-_REASON_LINES:])


def _environment() -> dict[str, str]:
    """Ours without the settings, which the configuration file already holds: else they would win over flags."""
    return {k: v for k, v in os.environ.items() if not (k.startswith("SAGE_") and "__" in k)}


def _existing(model: str) -> str:
    looks_like_path = model.startswith(("/", ".", "~")) or Path(model).is_dir()
    if not looks_like_path:
        return model
    folder = Path(model).expanduser().resolve()
    if not folder.is_dir():
        raise NotFoundError(
            f"The model folder {folder} does not exist.",
            hint="Give a folder with a config.json, or a hub name such as Qwen/Qwen3-0.6B.",
        )
    return str(folder)


def _free_ports(ports: PortsConfig) -> PortsConfig:
    busy = {name: 0 for name in ("gateway", "health", "admin") if not is_free(getattr(ports, name))}
    return ports.model_copy(update=busy)


# ---- processes and files ---------------------------------------------------------------------------------------


def _running(pid: int) -> bool:
    import psutil

    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _end(pid: int, *, grace: float) -> None:
    """SIGTERM, wait, SIGKILL; children die with it (the supervisor's promise)."""
    _signal(pid, signal.SIGTERM)
    deadline = time.monotonic() + grace
    while _running(pid):
        if time.monotonic() > deadline:
            _signal(pid, signal.SIGKILL)
            deadline = float("inf")
        time.sleep(_POLL_S / 2)


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _write_private(file: Path, text: str) -> None:
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as out:
        out.write(text)


def _secret(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        raise UnauthorizedError(
            f"{file} does not exist.", hint="It is made at first start: `sage up`."
        ) from None
    except PermissionError:
        raise UnauthorizedError(
            f"{file} belongs to another user.", hint="Only the user who started the stack may look after it."
        ) from None
