"""A stack to talk to: a real server on loopback with scripted answers, and the files that it leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

ENGINES = [
    {"name": "llm-0", "kind": "transformers", "model": "tiny", "random_weights": True, "task": "generate"},
    # A kind that says nothing of its task: what an engine does is told by `task` alone.
    {"name": "embed-0", "kind": "vllm", "model": "minilm", "random_weights": False, "task": "embed"},
]


class FakeStack(ThreadingHTTPServer):
    """Answers by (method, path); what was asked stays in `asked`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: dict[tuple[str, str], tuple[int, bytes]] = {}
        self.asked: list[tuple[str, str, str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def answer(self, method: str, path: str, body: Any, status: int = 200) -> None:
        self.answers[method, path] = (status, body if isinstance(body, bytes) else json.dumps(body).encode())

    def stream(self, path: str, *events: Any) -> None:
        lines = [f"data: {json.dumps(event)}\n\n" for event in events]
        self.answer("POST", path, "".join([*lines, "data: [DONE]\n\n"]).encode())


class _Handler(BaseHTTPRequestHandler):
    server: FakeStack

    def _reply(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        plain = self.headers["Content-Type"] == "application/json"
        asked = json.loads(body) if body and plain else body or None
        self.server.asked.append((self.command, self.path, self.headers["Authorization"], asked))
        missing = json.dumps({"error": {"message": f"There is no {self.path}."}}).encode()
        status, raw = self.server.answers.get((self.command, self.path), (404, missing))
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw)))
        self.send_header("x-request-id", "req-1")
        self.end_headers()
        self.wfile.write(raw)

    do_GET = do_PUT = do_POST = do_DELETE = _reply

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@dataclass
class Sage:
    """Runs `sage` as a user would, in a home of its own."""

    home: Path
    env: dict[str, str] = field(default_factory=dict)

    @property
    def state(self) -> Path:
        return self.home / "state"

    def __call__(self, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, **self.env, "SAGE_HOME": str(self.home)}
        program = Path(sys.executable).with_name("sage")
        self.home.mkdir(exist_ok=True)
        given: dict[str, Any] = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
        return subprocess.run(
            [program, *arguments],
            env=env,
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=250,  # an engine's first start compiles torch's and transformers' modules
            check=False,
            **given,
        )

    def pretend(self, url: str, pid: int) -> None:
        """Leave the files of a running stack that listens at `url`."""
        self.state.mkdir(parents=True, exist_ok=True, mode=0o700)
        run = {"pid": pid, "version": "1", "base_url": f"{url}/v1", "admin_url": url, "health_url": url}
        (self.state / "run.json").write_text(json.dumps({**run, "started_at": time.time()}))
        for name, secret in (("default.key", "sk-sage-key"), ("admin.token", "admin-token")):
            (self.state / name).touch(0o600)
            (self.state / name).write_text(secret + "\n")


@pytest.fixture
def sage(tmp_path: Path) -> Sage:
    return Sage(tmp_path / "home")


@pytest.fixture
def stack() -> Iterator[FakeStack]:
    with FakeStack() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def running(sage: Sage, stack: FakeStack) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """`sage` with a stack that runs: its process is a real one, so that `down` can end it."""
    engines = [{**engine, "state": "ready", "url": "", "max_running": 4} for engine in ENGINES]
    stack.answer("GET", "/admin/v1/engines", {"engines": engines})
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        sage.pretend(stack.url, process.pid)
        yield sage
        process.kill()
