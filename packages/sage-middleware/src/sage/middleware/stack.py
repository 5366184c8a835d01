"""Start, find and stop the serving process of this machine: gateway, control plane and engines."""

from __future__ import annotations

import json
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from sage.common.api import EngineStatus, RunInfo
from sage.common.config import EngineConfig, PortsConfig, SageConfig
from sage.common.errors import ConflictError, NotFoundError, SageError, UnauthorizedError, UnreachableError
from sage.common.paths import SagePaths
from sage.common.ports import is_free
from sage.middleware.admin import AdminClient
from sage.middleware.jobs import JobClient
from sage.middleware.models import MINILM, NANO, minilm_folder, resolve
from sage.middleware.rest import Rest
from sage.platform.daemon import alive, spawn, terminate
from sage.platform.runs import read_run, recorded_run
from sage.platform.service.logs import LogMark
from sage.platform.state import explain, read_secret, write_atomic

__all__ = [
    "QUICK_PORTS",
    "admin_client",
    "client_key",
    "interruptible",
    "job_client",
    "quick_config",
    "read_run",
    "start",
    "stop",
]

GATEWAY = (sys.executable, "-m", "sage.gateway")
QUICK_PORTS = ("gateway", "health", "admin")
"""Those that `quick_config` may choose."""

_POLL_S = 0.1
_KILL_AFTER_S = 10.0
_AGAIN_S = 0.01
_STOP_MARGIN_S = 15.0  # beside the drain: for the engines and the admin API
_REASON_LINES = 3


def quick_config(
    model: str | None,
    engine: str,
    paths: SagePaths,
    *,
    engine_python: Path | None = None,
    base: SageConfig | None = None,
) -> SageConfig:
    """A stack that needs no configuration file: one LLM engine `llm-0` and one embedding engine `embed-0`.

    `model` is a hub name or a folder; None is SAGE Nano, which comes as a package.
    `engine_python` is the interpreter of another environment, in which the LLM engine is installed.
    Everything else comes from `base`. Default ports that are in use are replaced by free ones.
    Raises NotFoundError for a folder that holds no model, and for an interpreter that is not there.
    """
    python = _interpreter(engine_python) if engine_python else ""
    found = resolve(model or NANO, paths.cache)
    llm = EngineConfig(
        name="llm-0",
        kind=engine,
        model=found.path_or_id,
        served_as=found.served_as,
        python=python,
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
    recipe: str = "",
    gateway_timeout: float = 30.0,
) -> RunInfo:
    """Start the stack in the background and return once every engine is ready.

    `on_progress` gets one line per change. `command` is the serving program, called with `--config FILE
    --state-dir DIR`, and with `--recipe` where there is one: how it makes its configuration anew
    when it is to load it again. It has `gateway_timeout` seconds beside what its slowest engine may take.
    Raises ConflictError when a stack already runs here, and SageError with the reason from the log when this
    one does not come up; then nothing of it is left running. Of two that start at once one wins, as one
    process owns the state directory; the other fails and leaves the winner's files alone.
    """
    try:
        paths.state.mkdir(parents=True, exist_ok=True, mode=0o700)
        paths.logs.mkdir(exist_ok=True, mode=0o700)
    except OSError as exc:
        raise explain(exc, paths.state) from exc
    _refuse_second(paths)
    # Under a name of its own: two starts may run at once, and only the one that comes up may be `effective`.
    draft = paths.state / f"effective-{secrets.token_hex(4)}.yaml"
    write_atomic(draft, json.dumps(config.model_dump(mode="json"), indent=2).encode())  # JSON is YAML
    log = paths.logs / "gateway.log"
    mark = LogMark.now(log)
    patience = gateway_timeout + max((e.start_timeout_s for e in config.engines), default=0.0)
    again = ("--recipe", recipe) if recipe else ()
    pid = 0
    try:
        pid = spawn((*command, "--config", str(draft), "--state-dir", str(paths.state), *again), log)
        on_progress(f"gateway: starting (pid {pid}, log {log})")
        run = _wait_ready(pid, paths, time.monotonic() + patience, on_progress)
        draft.replace(paths.effective_file)
    except BaseException as exc:
        if pid:
            terminate(pid, _KILL_AFTER_S)
            _forget(paths, pid)
        draft.unlink(missing_ok=True)
        if isinstance(exc, _DiedError):
            raise SageError(_reason(mark.text()), hint=f"The whole log is {log}.") from None
        raise
    return run


def stop(paths: SagePaths, *, grace: float | None = None) -> bool:
    """Stop the stack of this state directory: True once it is gone, False when none ran.

    It gets `grace` seconds to finish its streams (SIGTERM), then SIGKILL; None is what its configuration
    gives it to drain, and some more to end its engines. A stale `run.json` is removed.
    """
    run = recorded_run(paths)
    if run is None:
        return False
    ran = alive(run.pid, run.started_at)
    if ran:
        terminate(run.pid, _grace(paths) if grace is None else grace, run.started_at)
    _forget(paths, run.pid)
    return ran


def admin_client(paths: SagePaths, *, timeout: float = 10.0) -> AdminClient:
    """A client of the stack that runs here. Raises UnreachableError or UnauthorizedError (no token)."""
    return AdminClient(read_run(paths), read_secret(paths.admin_token_file), timeout=timeout)


def job_client(paths: SagePaths, *, timeout: float = 120.0) -> JobClient:
    """A client of the jobs of the stack that runs here. Raises as `admin_client` does."""
    url = read_run(paths).admin_url
    return JobClient(Rest(url, read_secret(paths.admin_token_file), timeout=timeout))


def client_key(paths: SagePaths) -> str:
    """The default API key of this state directory. Raises UnauthorizedError when it cannot be read."""
    return read_secret(paths.default_key_file)


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP end what is inside like Ctrl-C, so that it can clean up. Main thread only.

    A signal that is ignored, as SIGHUP below `nohup`, stays so.
    """

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    def dropped(unraisable: sys.UnraisableHookArgs) -> None:
        # A signal that arrives in a finaliser or a weak reference's callback (an import has some) raises
        # there, where Python prints the exception and goes on: it comes once more, a moment later.
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)
        else:
            hook(unraisable)

    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in (*numbers, signal.SIGALRM)}
    hook, sys.unraisablehook = sys.unraisablehook, dropped
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


# ---- start -------------------------------------------------------------------------------------------------


def _refuse_second(paths: SagePaths) -> None:
    run = recorded_run(paths)
    if run is not None and alive(run.pid, run.started_at):
        raise ConflictError(
            f"A stack already runs for {paths.state} (pid {run.pid}, {run.base_url}).",
            hint="Use it, or stop it with `sage down`.",
        )


def _forget(paths: SagePaths, pid: int) -> None:
    """Remove `run.json` if it speaks of this process, not of another one that came since."""
    run = recorded_run(paths)
    if run is not None and run.pid == pid:
        paths.run_file.unlink(missing_ok=True)


def _grace(paths: SagePaths) -> float:
    """How long the running stack may take to stop."""
    try:
        config = SageConfig.model_validate_json(paths.effective_file.read_bytes())
    except (OSError, ValueError):
        config = SageConfig()  # not started by `start`, or by another version: what is usual
    return config.gateway.drain_s + _STOP_MARGIN_S


class _DiedError(Exception):
    """The serving process ended before it was ready."""


def _wait_ready(pid: int, paths: SagePaths, deadline: float, on_progress: Callable[[str], None]) -> RunInfo:
    seen: dict[str, str] = {}
    while time.monotonic() < deadline:
        if not alive(pid):
            raise _DiedError
        run, engines = _look(pid, paths)
        if run is not None:
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
            if all(e.state in ("ready", "stopped") for e in engines):  # stopped = sleeps until asked for
                return run
        time.sleep(_POLL_S)
    waiting = ", ".join(f"{name} {state}" for name, state in seen.items()) or "gateway not listening"
    raise SageError(
        f"The stack was not ready in time ({waiting}).",
        hint=f"Raise start_timeout_s of the engine if it only needs longer; the logs are in {paths.logs}.",
    )


def _look(pid: int, paths: SagePaths) -> tuple[RunInfo | None, list[EngineStatus]]:
    """Where process `pid` listens and its engines; None while it does not, whoever else may."""
    try:
        run = read_run(paths)
        if run.pid != pid:
            return None, []
        token = read_secret(paths.admin_token_file)
        return run, AdminClient(run, token).engines().engines
    except (UnreachableError, UnauthorizedError):
        return None, []


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


def _interpreter(python: Path) -> str:
    """Its absolute path, links kept: an environment is known by the link in its own `bin`."""
    path = python.expanduser().absolute()
    if not path.is_file():
        raise NotFoundError(
            f"There is no Python interpreter at {path}.",
            hint="Name the one of the environment that has the engine, such as .venv-vllm/bin/python.",
        )
    return str(path)


def _free_ports(ports: PortsConfig) -> PortsConfig:
    """A default that is in use gives way to any free port (0); one that somebody chose stays."""
    usual = PortsConfig()
    mine = {name: getattr(ports, name) for name in QUICK_PORTS}
    busy = {name: 0 for name, port in mine.items() if port == getattr(usual, name) and not is_free(port)}
    return ports.model_copy(update=busy)
