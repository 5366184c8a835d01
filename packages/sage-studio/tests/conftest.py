"""A small real admin API on a socket, and a real studio in front of it."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sage.common.api import Decision, DecisionList, EngineStatus, QueueStatus, RunInfo, StackStatus
from sage.common.paths import SagePaths
from sage.studio.feed import stack_source
from sage.studio.server import Studio, listen

TOKEN = "sk-sage-admin.secret"


def engine(name: str, **changes: Any) -> EngineStatus:
    base = {"name": name, "kind": "transformers", "model": "tiny", "state": "ready", "max_running": 8}
    fixed = {"task": "generate", "url": "http://127.0.0.1:1"}
    return EngineStatus.model_validate({**base, **fixed, **changes})


def decision(number: int, **changes: Any) -> Decision:
    base = {
        "request_id": f"req-{number}",
        "at": 1_790_000_000.0 + number,
        "request_class": "chat",
        "tenant": "default",
        "model": "tiny",
        "route": "chat/completions",
        "policy": "least_load",
        "engine": "llm-0",
        "reason": "fewest running requests of 1 engine that serves tiny",
        "outcome": "done",
        "queue_s": 0.0004,
        "ttft_s": 0.031,
        "latency_s": 1.24,
        "prompt_tokens": 12,
        "completion_tokens": 48,
    }
    return Decision.model_validate({**base, **changes})


@dataclass
class Admin:
    """Answers like the stack's admin API; `asked` counts calls."""

    engines: list[EngineStatus] = field(
        default_factory=lambda: [
            engine("llm-0", random_weights=True, running=3, served=128, cores=[0]),
            engine(
                "embed-0", kind="embedding", task="embed", model="all-MiniLM-L6-v2", served=942, cores=[1]
            ),
        ]
    )
    decisions: list[Decision] = field(
        default_factory=lambda: [
            decision(2),
            decision(1, outcome="rejected", engine=None, reason="queue of chat is full", ttft_s=None),
        ]
    )
    asked: int = 0

    def answer(self, path: str) -> str:
        self.asked += 1
        if path == "/admin/v1/status":
            counts = {"waiting": 2, "waiting_bytes": 2048, "oldest_s": 0.2}
            ends = {"shed": 1, "completed": 99, "failed": 0}
            names = ("chat", "embed_interactive")
            queues = [QueueStatus(request_class=name, **counts, **ends) for name in names]
            status = StackStatus(
                version="26.11.0", uptime_s=754.0, policy="least_load", engines=self.engines, queues=queues
            )
            return status.model_dump_json()
        return DecisionList(decisions=self.decisions).model_dump_json()


@pytest.fixture
def admin() -> Admin:
    return Admin()


@pytest.fixture
def paths(admin: Admin, tmp_path: Path) -> Iterator[SagePaths]:
    """The paths of a stack that seems to run here: its `run.json` leads to the double."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.headers["Authorization"] == f"Bearer {TOKEN}"
            body = (admin.answer(self.path) if known else '{"error": {"message": "no"}}').encode()
            self.send_response(200 if known else 401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    where = SagePaths(state=tmp_path / "state", cache=tmp_path / "cache", config=tmp_path / "config")
    where.state.mkdir()
    where.admin_token_file.write_text(TOKEN)
    where.admin_token_file.chmod(0o600)
    url = f"http://127.0.0.1:{server.server_port}"
    run = RunInfo(
        pid=os.getpid(),
        version="26.11.0",
        base_url=f"{url}/v1",
        admin_url=url,
        health_url=url,
        started_at=time.time(),
    )
    where.run_file.write_text(run.model_dump_json())
    yield where
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
async def studio(paths: SagePaths) -> AsyncIterator[Studio]:
    sock = listen(0)
    server = Studio(stack_source(paths), sock.getsockname()[1], period=0.05)
    serving = asyncio.create_task(server.serve(sockets=[sock]))
    yield server
    server.should_exit = True
    await asyncio.wait_for(serving, 60)
