from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from sage.common.errors import ConflictError, NotFoundError, SageError, UnavailableError, UsageError
from sage.platform.service import Drain, ResourceLimits, RestartPolicy, Supervisor
from sage.platform.service.probe import probe
from sage.platform.service.process import environment


def _port(spec: Any) -> int:
    return int(spec.probe_url.split(":")[2].split("/")[0])


def _gone(pids: list[int]) -> bool:
    return not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids)


async def test_cores_environment_and_log_reach_the_process(bench: Any) -> None:
    core = min(os.sched_getaffinity(0))
    spec = bench.spec(cores=(core,), env={"MKL_NUM_THREADS": "7", "MARK": "ä b"})
    await bench.supervisor.start(spec)
    await bench.supervisor.wait_ready("svc")
    about = await bench.get(spec, "/about")
    assert about["cores"] == [core]
    assert about["env"]["OMP_NUM_THREADS"] == "1"
    assert about["env"]["MKL_NUM_THREADS"] == "7"
    assert about["env"]["MARK"] == "ä b"
    assert about["env"]["PATH"] == os.environ["PATH"]
    await bench.supervisor.stop("svc")  # then all that it said is in the log
    assert spec.log.read_text() == "scripted service starts\n"
    assert spec.log.stat().st_mode & 0o777 == 0o600


def test_without_cores_the_thread_counts_are_left_alone(bench: Any) -> None:
    spec = bench.spec(env={"A": "2"})
    assert environment(spec, {"A": "1", "OMP_NUM_THREADS": "3"}) == {"A": "2", "OMP_NUM_THREADS": "3"}


async def test_a_program_that_does_not_exist(bench: Any) -> None:
    await bench.supervisor.start(bench.spec(argv=("/no/such/program",)))
    with pytest.raises(UnavailableError, match="Cannot start /no/such/program: No such file or directory"):
        await bench.supervisor.wait_ready("svc")


async def test_a_crash_is_restarted_and_counted(bench: Any) -> None:
    spec = bench.spec()
    await bench.supervisor.start(spec)
    first = await bench.supervisor.wait_ready("svc")
    os.kill(first.pid, signal.SIGKILL)
    again = await bench.until(lambda status: status.state == "ready" and status.restarts == 1)
    assert again.pid != first.pid
    (crash,) = [seen for seen in bench.seen if "was ended by signal 9;" in seen.detail and seen.pid is None]
    assert crash.state == "starting"
    await bench.get(spec, "/exit/3")
    await bench.until(lambda status: status.state == "ready" and status.restarts == 2)
    assert any("exited with code 3; last log line: told to exit" in seen.detail for seen in bench.seen)


async def test_a_crash_takes_the_family_along(bench: Any) -> None:
    spec = bench.spec(script={"family": True}, max_restarts=0)
    await bench.supervisor.start(spec)
    await bench.supervisor.wait_ready("svc")
    pids = (await bench.get(spec, "/about"))["pids"]
    os.kill(pids[0], signal.SIGKILL)
    await bench.until(lambda s: s.state == "failed")
    assert _gone(pids)


async def test_a_killed_guard_takes_the_service_along(bench: Any) -> None:
    await bench.supervisor.start(bench.spec())
    first = await bench.supervisor.wait_ready("svc")
    os.kill(psutil.Process(first.pid).ppid(), signal.SIGKILL)
    again = await bench.until(lambda s: s.state == "ready" and s.restarts == 1)
    assert _gone([first.pid])
    assert again.pid != first.pid


async def test_stop_right_after_start_ends_the_wait_and_is_quick(bench: Any) -> None:
    spec = bench.spec(script={"ready": False})
    await bench.supervisor.start(spec)
    pid = bench.supervisor.status("svc").pid
    waiting = asyncio.create_task(bench.supervisor.wait_ready("svc"))
    async with asyncio.timeout(spec.stop_timeout / 2):  # SIGTERM was enough
        await bench.supervisor.stop("svc")
    with pytest.raises(UnavailableError, match="is stopped"):
        await waiting
    assert _gone([pid])


async def test_stop_while_it_waits_for_a_restart(bench: Any) -> None:
    crashed = asyncio.Event()
    patient = Supervisor(
        lambda status: crashed.set() if "starts again in 60 s" in status.detail else None,
        restarts=RestartPolicy(first=60, cap=60),
    )
    spec = bench.spec()
    await patient.start(spec)
    os.kill((await patient.wait_ready("svc")).pid or 0, signal.SIGKILL)
    async with asyncio.timeout(20):
        await crashed.wait()
        await patient.close()
    assert patient.status("svc").state == "stopped"


async def test_a_name_and_a_port_have_one_holder(bench: Any) -> None:
    spec = bench.spec()
    await bench.supervisor.start(spec)
    with pytest.raises(ConflictError, match="Service svc is already starting"):
        await bench.supervisor.start(spec)
    await bench.supervisor.wait_ready("svc")
    with pytest.raises(ConflictError, match=f"Port {_port(spec)} on 127.0.0.1 is in use, and b needs it"):
        await bench.supervisor.start(bench.spec("b", argv=spec.argv, probe_url=spec.probe_url))
    with pytest.raises(NotFoundError, match="There is no service 'b'; there are: svc"):
        bench.supervisor.status("b")
    await bench.supervisor.stop("svc")
    await bench.supervisor.start(spec)
    await bench.supervisor.wait_ready("svc")


async def test_two_starts_at_once_start_one(bench: Any) -> None:
    specs = [bench.spec(), bench.spec()]
    done = await asyncio.gather(*(bench.supervisor.start(spec) for spec in specs), return_exceptions=True)
    assert [type(outcome) for outcome in done] == [type(None), ConflictError]
    assert (await bench.supervisor.wait_ready("svc")).state == "ready"


async def test_nice_is_set_and_a_limit_that_cannot_be_is_told(bench: Any) -> None:
    most = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    spec = bench.spec(limits=ResourceLimits(nice=os.nice(0) + 3, processes=most if most > 0 else 10_000))
    await bench.up(spec)
    assert (await bench.get(spec, "/about"))["nice"] == os.nice(0) + 3
    with pytest.raises(UnavailableError, match=r"the limit open_files=\d+ is more than the \d+ that this"):
        await bench.up(bench.spec("greedy", limits=ResourceLimits(open_files=2**40)))


async def test_a_second_stop_does_not_wait_for_a_drain_that_was_given_up(bench: Any) -> None:
    async def never() -> None:
        await asyncio.Event().wait()

    await bench.up(bench.spec(drain=Drain(never, timeout=3600)))
    stopping = asyncio.create_task(bench.supervisor.stop("svc"))
    await bench.until(lambda status: status.state == "draining")
    stopping.cancel()
    async with asyncio.timeout(20):
        await bench.supervisor.stop("svc")
    assert bench.supervisor.status("svc").state == "stopped"


async def test_without_a_probe_it_is_ready_when_it_runs(bench: Any) -> None:
    command = (
        sys.executable,
        "-I",
        "-S",
        "-c",
        "import sys; sys.stdin.read(); import signal; signal.pause()",
    )
    await bench.supervisor.start(bench.spec(argv=command, probe_url=""))
    status = await bench.supervisor.wait_ready("svc")
    assert psutil.pid_exists(status.pid)


async def test_what_cannot_be_started_leaves_nothing_half_started(bench: Any, tmp_path: Path) -> None:
    (tmp_path / "svc.log").mkdir()
    with pytest.raises(SageError, match="Cannot write the log"):
        await bench.supervisor.start(bench.spec())
    with pytest.raises(UsageError, match="valid is http://HOST:PORT/PATH"):
        await bench.supervisor.start(bench.spec("b", probe_url="https://127.0.0.1:1/"))
    assert bench.supervisor.statuses() == []


async def test_several_services_stop_together_and_the_guards_are_small(bench: Any) -> None:
    specs = [bench.spec("a")]
    await bench.supervisor.start(specs[0])
    await bench.supervisor.wait_ready("a")
    specs.append(bench.spec("b"))
    await bench.supervisor.start(specs[1])
    await bench.supervisor.wait_ready("b")
    pids = [status.pid for status in bench.supervisor.statuses()]
    for pid in pids:
        guard = psutil.Process(psutil.Process(pid).ppid())
        assert guard.memory_info().rss < 20e6
    await bench.supervisor.close()
    assert _gone(pids)
    assert [status.state for status in bench.supervisor.statuses()] == ["stopped", "stopped"]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"HTTP/1.1 204 No Content\r\n\r\n", ""),
        (b"HTTP/1.1 503 Busy\r\n\r\n", "answered 'HTTP/1.1 503 Busy'"),
        (b"HTTP/1.1 2000 Odd\r\n\r\n", "answered 'HTTP/1.1 2000 Odd'"),
        (b"SSH-2.0-x\r\n", "answered 'SSH-2.0-x'"),
        (b"x" * 200_000, "(an endless line)"),
        (b"", "answered ''"),
        (None, "no answer at"),
    ],
)
async def test_probe_answers(answer: bytes | None, expected: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if answer is None:
            await reader.read()
        with contextlib.suppress(ConnectionError):
            writer.write(answer or b"")
            writer.close()
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        said = await probe(
            f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/x?y=1",
            timeout=0.2 if answer is None else 20,
        )
    assert expected in said
    assert bool(said) == bool(expected)


async def test_probe_of_a_closed_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert await probe(f"http://127.0.0.1:{port}/") != ""
