"""What stands before the engine: ours, a bare relay, and peers in environments of their own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

__all__ = ["ARMS", "PACKAGES", "Server", "install", "ours", "started", "upstream"]

HERE: Final = Path(__file__).parent
KEY: Final = "sk-benchmark-Zb7Qw3xKf9Lm2Pt8"
PACKAGES: Final = {  # arm to what its environment holds
    "sglang-router": ("sglang-router==0.3.2",),
    "vllm-router": ("vllm-router==0.1.17",),
    "fastapi": ("fastapi", "httpx", "uvicorn", "uvloop", "httptools"),
    "litellm": ("litellm[proxy]==1.106.0",),
}
START_S: Final = 90.0


@dataclass(frozen=True)
class Server:
    """One that runs: its process, whose children count too, its port, the key that it wants."""

    process: psutil.Process
    port: int
    key: str

    def tree(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]

    def cpu(self) -> float:
        """Seconds of user and system time so far."""
        times = [one.cpu_times() for one in self.tree()]
        return sum(one.user + one.system for one in times)

    def rss(self) -> float:
        """Resident bytes."""
        return float(sum(one.memory_info().rss for one in self.tree()))


def install(arm: str, folder: Path) -> Path:
    """The interpreter of a peer's environment, made if it is not there. Raises CalledProcessError."""
    home = folder / arm
    python = home / "bin" / "python"
    ready = home / ".ready"
    if not ready.exists():
        print(f"installing {', '.join(PACKAGES[arm])} into {home} …", flush=True)
        venv.create(home, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES[arm]], check=True)
        ready.touch()
    return python


@contextmanager
def upstream() -> Iterator[int]:
    """The engine's port."""
    with subprocess.Popen(
        [sys.executable, HERE / "upstream.py"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def _running(argv: list[object], log: Path, env: dict[str, str] | None = None) -> Iterator[psutil.Process]:
    with log.open("wb") as out:
        process = subprocess.Popen(
            [str(word) for word in argv],
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=log.parent,
            env={**os.environ, **(env or {})},
        )
    whole = psutil.Process(process.pid)
    children: list[psutil.Process] = []
    try:
        yield whole
        children = whole.children(recursive=True)
    finally:
        process.terminate()
        try:
            process.wait(10.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for child in children:
            if child.is_running():
                child.kill()


def _wait(process: psutil.Process, ready: Callable[[], bool], log: Path) -> None:
    until = time.monotonic() + START_S
    while not ready():
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE or time.monotonic() > until:
            raise RuntimeError(f"{process.pid} did not start: {log.read_text()[-2000:]}")
        time.sleep(0.1)


def _answers(port: int, path: str) -> bool:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", headers={"authorization": f"Bearer {KEY}"}
    )
    try:
        with urllib.request.urlopen(request, timeout=2.0) as answer:  # noqa: S310 - loopback
            return bool(answer.status == 200)
    except OSError:
        return False


@contextmanager
def ours(up: int, folder: Path, python: str = sys.executable, **control_plane: object) -> Iterator[Server]:
    """SAGE's own gateway before the engine on port `up`, with these settings of its control plane."""
    engine = {"name": "up-0", "kind": "openai", "model": "tiny", "url": f"http://127.0.0.1:{up}"}
    vectors = {**engine, "name": "up-1", "model": "vectors", "task": "embed", "max_running": 256}
    slow = {**vectors, "name": "up-2", "model": "slow-vectors"}
    config = {
        "ports": {"gateway": 0, "admin": 0, "health": 0},
        "engines": [{**engine, "max_running": 4096}, vectors, slow],
        "control_plane": control_plane,
        "gateway": {"max_connections_per_address": 8192},
    }
    file = folder / "sage.json"
    file.write_text(json.dumps(config))
    argv: list[object] = [python, "-m", "sage.gateway", "--config", file, "--state-dir", folder / "s"]
    log = folder / "log"
    with _running(argv, log, {"SAGE_HOME": str(folder)}) as process:
        run = folder / "s" / "run.json"
        _wait(process, run.exists, log)
        port = int(json.loads(run.read_text())["base_url"].split(":")[2].split("/")[0])
        time.sleep(1.0)  # its first look at the engine
        yield Server(process, port, (folder / "s" / "default.key").read_text().strip())


@contextmanager
def _relay(up: int, folder: Path) -> Iterator[Server]:
    port = _free_port()
    log = folder / "log"
    with _running([sys.executable, HERE / "relay.py", up, port], log) as process:
        _wait(process, lambda: _answers(port, "/health"), log)
        yield Server(process, port, KEY)


@contextmanager
def _peer(arm: str, up: int, folder: Path, python: Path) -> Iterator[Server]:
    port, log = _free_port(), folder / "log"
    url = f"http://127.0.0.1:{up}"
    env: dict[str, str] = {}
    path = "/health"
    if arm == "fastapi":
        argv: list[object] = [python, HERE / "proxy.py", up, port]
    elif arm == "litellm":
        file = folder / "litellm.yaml"
        at = {"api_base": f"{url}/v1", "api_key": "none"}
        models = [
            {"model_name": name, "litellm_params": {"model": f"openai/{name}", **at}}
            for name in ("tiny", "vectors", "slow-vectors")
        ]
        file.write_text(json.dumps({"model_list": models}))
        argv = [python.with_name("litellm"), "--config", file, "--port", port, "--host", "127.0.0.1"]
        argv += ["--num_workers", 1, "--telemetry", "False"]
        env = {"LITELLM_MASTER_KEY": KEY, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
        path = "/health/liveliness"
    else:
        module = "sglang_router.launch_router" if arm == "sglang-router" else "vllm_router.launch_router"
        argv = [python, "-m", module, "--worker-urls", url, "--host", "127.0.0.1", "--port", port]
        argv += ["--policy", "round_robin", "--prometheus-port", _free_port()]
    with _running(argv, log, env) as process:
        _wait(process, lambda: _answers(port, path), log)
        time.sleep(2.0)  # until it has seen its worker
        yield Server(process, port, KEY)


ARMS: Final = ("hybrid", "fifo", "relay", *PACKAGES)


@contextmanager
def started(arm: str, up: int, environments: Path) -> Iterator[Server]:
    """One arm before the engine on port `up`: a policy of ours, `relay`, or a peer that was installed.

    `POLICY@PYTHON` is ours as it is installed for another interpreter: another version of it, or of Python.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arm == "relay":
            with _relay(up, folder) as server:
                yield server
        elif arm in PACKAGES:
            with _peer(arm, up, folder, install(arm, environments)) as server:
                yield server
        else:
            policy, _, python = arm.partition("@")
            with ours(up, folder, python or sys.executable, policy=policy) as server:
                yield server
