"""The conformance suite of the supervisor, on real processes and for every event loop.

Subclass it in a test module and give it the fixture `bench`, or call its tests one by one.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sage.common.errors import ConflictError, NotFoundError, UnavailableError
from sage.common.ports import is_free
from sage.platform.daemon import alive
from sage.platform.leases import PortLease, lease_port
from sage.platform.service import (
    Drain,
    ResourceLimits,
    RestartPolicy,
    Rotation,
    ServiceSpec,
    ServiceStatus,
    Supervisor,
)
from sage.platform.testing import scripted_service

__all__ = ["Bench", "SupervisorSuite"]

_FAST = RestartPolicy(first=0.01, factor=1.0, cap=0.01, window=60)
_PATIENCE_S = 30.0
_PORTS = (25000, 29999)  # a service that restarts must find its port: away from where others look first


class Bench:
    """A supervisor whose status changes can be waited for, and scripted services for it; to be closed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: list[ServiceStatus] = []
        self._changed = asyncio.Event()
        self._leases: list[PortLease] = []
        self.supervisor = Supervisor(self._record, restarts=_FAST, watch_every=0.02)

    def _record(self, status: ServiceStatus) -> None:
        self.seen.append(status)
        self._changed.set()

    def spec(self, name: str = "svc", *, script: dict[str, Any] | None = None, **fields: Any) -> ServiceSpec:
        """A scripted service on a free port; `script` are options of `scripted_service`."""
        self._leases.append(lease_port(_PORTS))
        port = self._leases[-1].port
        fields.setdefault("argv", scripted_service(port, **(script or {})))
        fields.setdefault("probe_url", f"http://127.0.0.1:{port}/health")
        return ServiceSpec(name=name, log=self.folder / f"{name}.log", **fields)

    async def close(self) -> None:
        """Stop all services and give their ports back."""
        await self.supervisor.close()
        for lease in self._leases:
            lease.release()

    async def up(self, spec: ServiceSpec) -> ServiceStatus:
        """Start it and wait until it is ready."""
        await self.supervisor.start(spec)
        return await self.supervisor.wait_ready(spec.name)

    async def until(self, test: Callable[[ServiceStatus], bool]) -> ServiceStatus:
        """Wait until some status from now on, or the last one so far, passes."""
        looked_at = max(0, len(self.seen) - 1)
        async with asyncio.timeout(_PATIENCE_S):
            while True:
                for status in self.seen[looked_at:]:
                    if test(status):
                        return status
                looked_at = len(self.seen)
                self._changed.clear()
                await self._changed.wait()

    async def get(self, spec: ServiceSpec, path: str) -> Any:
        """GET from a scripted service: the JSON it answers, None if it closed the line instead."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(spec))
        writer.write(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        body = answer.partition(b"\r\n\r\n")[2]
        return json.loads(body) if body else None


def port_of(spec: ServiceSpec) -> int:
    """The port that it listens on."""
    return int(spec.probe_url.split(":")[2].split("/")[0])


class SupervisorSuite:
    """What a supervisor keeps to."""

    async def test_it_starts_is_ready_and_stops(self, bench: Bench) -> None:
        """Stopping twice does nothing, and nothing is left of it."""
        spec = bench.spec()
        await bench.supervisor.start(spec)
        assert bench.supervisor.status("svc").state == "starting"
        status = await bench.supervisor.wait_ready("svc")
        await bench.supervisor.stop("svc")
        await bench.supervisor.stop("svc")
        assert [seen.state for seen in bench.seen] == ["starting", "ready", "stopped"]
        assert not alive(status.pid or 0)
        assert is_free(port_of(spec))
        with pytest.raises(UnavailableError, match="Service svc is stopped: stopped on request"):
            await bench.supervisor.wait_ready("svc")

    async def test_an_exit_before_it_was_ready_is_failed_with_the_last_log_line(self, bench: Bench) -> None:
        """That is a wrong command: it is not tried again."""
        with pytest.raises(UnavailableError, match="code 4 before it was ready; last log line: script"):
            await bench.up(bench.spec(script={"exit_code": 4}))
        status = bench.supervisor.status("svc")
        assert (status.state, status.pid, status.restarts) == ("failed", None, 0)

    async def test_never_ready_is_failed_at_the_timeout_and_killed(self, bench: Bench) -> None:
        """With what the probe said."""
        spec = bench.spec(script={"ready": False}, start_timeout=0.6)
        with pytest.raises(UnavailableError, match=r"not ready after 0.6 s: "):
            await bench.up(spec)
        assert is_free(port_of(spec))

    async def test_a_crash_is_restarted_and_a_crash_loop_ends(self, bench: Bench) -> None:
        """A restart by hand begins anew."""
        first = await bench.up(bench.spec(max_restarts=1))
        os.kill(first.pid or 0, signal.SIGKILL)
        again = await bench.until(lambda status: status.state == "ready" and status.restarts == 1)
        assert again.pid != first.pid
        os.kill(again.pid or 0, signal.SIGKILL)
        failed = await bench.until(lambda status: status.state == "failed")
        assert failed.detail.endswith("gave up after 1 restarts")
        await bench.supervisor.restart("svc")
        status = await bench.supervisor.wait_ready("svc")
        assert (status.state, status.restarts) == ("ready", 0)

    async def test_one_that_stops_answering_is_degraded_until_it_answers(self, bench: Bench) -> None:
        """The same process, all the time."""
        spec = bench.spec()
        ready = await bench.up(spec)
        await bench.get(spec, "/hurt")
        degraded = await bench.until(lambda status: status.state == "degraded")
        assert degraded.pid == ready.pid
        assert "503" in degraded.detail
        await bench.get(spec, "/heal")
        healed = await bench.until(lambda status: status.state == "ready")
        assert (healed.pid, healed.detail) == (ready.pid, "")

    async def test_a_name_and_a_port_have_one_holder(self, bench: Bench) -> None:
        """The second is refused, in words."""
        spec = bench.spec()
        await bench.up(spec)
        with pytest.raises(ConflictError, match="Service svc is already ready"):
            await bench.supervisor.start(spec)
        with pytest.raises(ConflictError, match=f"Port {port_of(spec)} on 127.0.0.1 is in use, and b needs"):
            await bench.supervisor.start(replace(spec, name="b"))
        with pytest.raises(NotFoundError, match="There is no service 'b'; there are: svc"):
            bench.supervisor.status("b")

    async def test_a_whole_family_ends(self, bench: Bench) -> None:
        """Also what ignores SIGTERM and left the session."""
        spec = bench.spec(script={"ignore_term": True, "family": True}, stop_timeout=0.2)
        await bench.up(spec)
        pids = (await bench.get(spec, "/about"))["pids"]
        assert len(pids) == 3
        await bench.supervisor.close()
        assert not any(alive(pid) for pid in pids)
        assert [status.state for status in bench.supervisor.statuses()] == ["stopped"]

    async def test_it_is_drained_before_it_ends(self, bench: Bench) -> None:
        """It answers until its work is done, and only then gets SIGTERM."""
        done = asyncio.Event()

        async def finish() -> None:
            await done.wait()

        spec = bench.spec(drain=Drain(finish))
        ready = await bench.up(spec)
        stopping = asyncio.create_task(bench.supervisor.stop("svc"))
        draining = await bench.until(lambda status: status.state == "draining")
        assert draining.pid == ready.pid
        assert await bench.get(spec, "/about")
        with pytest.raises(UnavailableError, match="Service svc is draining"):
            await bench.supervisor.wait_ready("svc")
        done.set()
        await stopping
        assert [seen.state for seen in bench.seen] == ["starting", "ready", "draining", "stopped"]
        assert bench.seen[-1].detail == "stopped on request"

    async def test_a_drain_has_an_end(self, bench: Bench) -> None:
        """Its time is over, it fails, or the service is gone: the service is stopped, and why is told."""

        async def never() -> None:
            await asyncio.Event().wait()

        async def broken() -> None:
            raise RuntimeError("who is it")

        await bench.up(bench.spec("slow", drain=Drain(never, timeout=0.05)))
        await bench.up(bench.spec("broken", drain=Drain(broken)))
        gone = await bench.up(bench.spec("gone", drain=Drain(never)))
        closing = asyncio.create_task(bench.supervisor.close())
        await bench.until(lambda status: (status.name, status.state) == ("gone", "draining"))
        os.kill(gone.pid or 0, signal.SIGKILL)
        await closing
        assert {status.name: status.detail for status in bench.supervisor.statuses()} == {
            "slow": "stopped on request, with work left after 0.05 s",
            "broken": "stopped on request, not drained: who is it",
            "gone": "stopped on request, and ended while it was drained",
        }

    async def test_the_log_changes_while_it_runs_and_loses_no_line(self, bench: Bench) -> None:
        """Each file ends with a line, and the number of files is bounded."""
        spec = bench.spec(rotation=Rotation(max_bytes=20_000, keep=50))
        await bench.up(spec)
        await bench.get(spec, "/say/50000")
        await bench.supervisor.stop("svc")
        numbers = sorted((int(file.suffix[1:]) for file in bench.folder.glob("svc.log.*")), reverse=True)
        files = [spec.log.with_name(f"svc.log.{number}") for number in numbers] + [spec.log]
        assert len(files) > 20
        assert all(file.stat().st_size <= 20_000 and file.read_bytes().endswith(b"\n") for file in files)
        said = "".join(file.read_text() for file in files).splitlines()
        assert said == ["scripted service starts", *(f"line {number}" for number in range(50_000))]

    async def test_a_limit_that_is_hit_is_told(self, bench: Bench) -> None:
        """In the status, beside how it ended."""
        for what, limits, told in (
            ("memory", ResourceLimits(memory_bytes=300_000_000), "memory_bytes=300000000; last log line"),
            ("files", ResourceLimits(open_files=64), "open_files=64; last log line: OSError"),
        ):
            spec = bench.spec(what, limits=limits, max_restarts=0)
            await bench.up(spec)
            await bench.get(spec, f"/hog/{what}")
            failed = await bench.until(lambda status: status.state == "failed")
            assert failed.name == what
            assert f"exited with code 1; it ran into its limit {told}" in failed.detail
