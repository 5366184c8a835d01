from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from sage.common.ports import find_free
from sage.platform.service import RestartPolicy, ServiceSpec, ServiceStatus, Supervisor
from sage.platform.testing import scripted_service

FAST = RestartPolicy(first=0.01, factor=1.0, cap=0.01, window=60)


class Bench:
    """A supervisor whose status changes can be waited for, and scripted services for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: list[ServiceStatus] = []
        self._changed = asyncio.Event()
        self.supervisor = Supervisor(self._record, restarts=FAST, watch_every=0.02)

    def _record(self, status: ServiceStatus) -> None:
        self.seen.append(status)
        self._changed.set()

    def spec(self, name: str = "svc", *, script: dict[str, Any] | None = None, **fields: Any) -> ServiceSpec:
        port = find_free((20000, 29999))
        fields.setdefault("argv", scripted_service(port, **(script or {})))
        fields.setdefault("probe_url", f"http://127.0.0.1:{port}/health")
        return ServiceSpec(name=name, log=self.folder / f"{name}.log", **fields)

    async def until(self, test: Callable[[ServiceStatus], bool]) -> ServiceStatus:
        """Wait until some status from now on, or the last one so far, passes."""
        looked_at = max(0, len(self.seen) - 1)
        async with asyncio.timeout(30):
            while True:
                for status in self.seen[looked_at:]:
                    if test(status):
                        return status
                looked_at = len(self.seen)
                self._changed.clear()
                await self._changed.wait()

    async def get(self, spec: ServiceSpec, path: str) -> Any:
        """GET from a scripted service: the JSON it answers, None if it closed the line instead."""
        port = int(spec.probe_url.split(":")[2].split("/")[0])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        body = answer.partition(b"\r\n\r\n")[2]
        return json.loads(body) if body else None


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    yield made
    await made.supervisor.close()
