"""Workers that die, runs that are cancelled, interrupted or killed, and services with workers."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kernel_worker_ops as ops
import psutil
import pytest

from sage.kernel import (
    Batch,
    Failure,
    Flow,
    LocalEnvironment,
    OperatorError,
    Parallel,
    Resources,
    Scale,
)
from sage.kernel.scheduler import InfeasibleError, Node

SMALL = Node("small", cpus=2, memory=8 << 30, gpus=(80 << 30, 80 << 30))


def gone(pid: int) -> bool:
    """Whether a process that is nobody's child of ours has ended."""
    try:
        psutil.Process(pid).wait(timeout=30)
    except psutil.NoSuchProcess:
        return True
    return not psutil.pid_exists(pid)


def test_a_batch_whose_worker_was_lost_is_done_by_another(tmp_path: Path) -> None:
    flow, out = Flow("lost"), list[int]()
    flow.source(range(500)).map(ops.DiesOnce(tmp_path), parallelism=2).sink(out.append)
    LocalEnvironment().run_sync(flow)
    assert out == list(range(500))


def test_an_item_that_kills_its_workers_is_found_and_the_others_are_done() -> None:
    flow, out, bad = Flow("poison"), list[int](), list[Failure[int]]()
    fine = flow.source(range(60)).map_batch(
        ops.poisoned, Batch(16), parallelism=Parallel(2), on_error="divert", name="poison"
    )
    fine.sink(out.append)
    fine.diverted.sink(bad.append)
    report = LocalEnvironment().run_sync(flow)
    assert out == [x for x in range(60) if x != 13]
    assert [(one.item, one.operator) for one in bad] == [(13, "poison")]
    assert "its worker was lost 2 times: it was killed by SIGKILL" in bad[0].error
    assert (report["poison"].items_in, report["poison"].items_out, report["poison"].diverted) == (60, 59, 1)


def test_an_item_that_kills_its_workers_is_named_when_that_stops_the_run() -> None:
    flow = Flow("poison")
    flow.source(range(60)).map(ops.poison, parallelism=2).sink(print)
    with pytest.raises(OperatorError, match=r"'poison' failed on item 13 \(13\): .*lost 2 times.*SIGKILL"):
        LocalEnvironment().run_sync(flow)


async def told(pipe: Path) -> int:
    """The process that the operator tells of; reading waits for it."""
    return int(await asyncio.to_thread(pipe.read_text))


@pytest.mark.parametrize("parallelism", [1, 2])
async def test_cancelling_a_run_ends_its_workers(tmp_path: Path, parallelism: int) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    before = set(psutil.Process().children())
    flow = Flow("cancel")
    flow.source([1]).map(ops.Stuck(pipe), parallelism=parallelism).sink(print)
    run = asyncio.create_task(LocalEnvironment().run(flow))
    pid = await told(pipe)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert gone(pid)
    assert set(psutil.Process().children()) <= before


@pytest.mark.parametrize("parallelism", [1, 2])
def test_a_loop_that_ends_under_a_run_ends_its_workers(tmp_path: Path, parallelism: int) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    flow = Flow("left")
    flow.source([1]).map(ops.Stuck(pipe), parallelism=parallelism).sink(print)

    async def leaves() -> tuple[int, asyncio.Task[Any]]:
        run = asyncio.create_task(LocalEnvironment().run(flow))
        return await told(pipe), run

    pid, run = asyncio.run(leaves())  # which cancels all tasks at once, also those that look after a worker
    assert run.cancelled()
    assert not psutil.pid_exists(pid)
    gc.collect()  # says so if anything was left open


SCRIPT = """
    import sys
    from pathlib import Path
    from sage.kernel import Flow, LocalEnvironment
    sys.path.append({folder!r})
    import kernel_worker_ops as ops

    def half(x: int) -> float:
        return x / 2

    def main() -> None:
        flow = Flow("script")
        {build}
        report = LocalEnvironment().run_sync(flow)
        print(report.interrupted, [o.items_in for o in report.operators])

    {guard}main()
"""


def script(tmp_path: Path, build: str, guard: str = 'if __name__ == "__main__": ') -> list[str]:
    file = tmp_path / "script.py"
    folder = str(Path(ops.__file__).parent)
    file.write_text(textwrap.dedent(SCRIPT).format(folder=folder, build=build, guard=guard))
    return [sys.executable, str(file)]


def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    build = f"flow.source([1]).map(ops.Stuck(Path({str(pipe)!r})), parallelism=2).sink(print)"
    with subprocess.Popen(script(tmp_path, build)) as parent:
        pid = int(pipe.read_text())
        others = psutil.Process(parent.pid).children()
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    assert len(others) == 2
    assert gone(pid)
    assert all(gone(other.pid) for other in others)


def test_ctrl_c_drains_what_the_workers_have(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    build = (
        "from itertools import count; "
        f"flow.source(count(50)).map(ops.Waits(Path({str(pipe)!r})), parallelism=2).sink(lambda x: None)"
    )
    command = script(tmp_path, build)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as parent:
        assert pipe.read_text() == "here"  # the first item is done
        os.killpg(parent.pid, signal.SIGINT)
        said, _ = parent.communicate(timeout=60)
    assert parent.returncode == 0
    interrupted, _, inputs = said.partition(" ")
    assert interrupted == "True"
    taken = [int(x) for x in inputs.strip(" []\n").split(",")]
    assert taken[1] == taken[2] > 0


def test_functions_of_the_main_script_run_in_processes(tmp_path: Path) -> None:
    build = "flow.source([1, 2]).map(half, parallelism=2).sink(print)"
    done = subprocess.run(script(tmp_path, build), capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split("\n")[:3] == ["0.5", "1.0", "False [0, 2, 2]"]
    bare = subprocess.run(
        script(tmp_path, build, ""), capture_output=True, text=True, check=False, timeout=60
    )
    assert bare.returncode == 1
    assert "if __name__ == '__main__':" in bare.stderr


def test_more_workers_than_the_machine_has_room_for_are_refused_at_the_start() -> None:
    flow, read = Flow("big"), list[int]()

    def numbers() -> Iterator[int]:
        read.append(1)
        yield 1

    flow.source(numbers).map(ops.increase, parallelism=3, resources=Resources(cpu=1)).sink(print)
    with pytest.raises(InfeasibleError, match=r"flow 'big' cannot start here: .*want cpu 3; 1 node has 2"):
        LocalEnvironment(machine=SMALL).run_sync(flow)
    assert read == []
    flow = Flow("gpu")
    flow.source([1]).map(ops.increase, resources=Resources(gpu=4), name="embed").sink(print)
    with pytest.raises(InfeasibleError, match=r"'embed/0' fits no node.*gpu 4 \(has 2\)"):
        LocalEnvironment(machine=SMALL).run_sync(flow)


def test_a_process_sees_the_devices_that_it_was_given() -> None:
    flow, out = Flow("devices"), list[str]()
    stream = flow.source(range(200)).map(
        ops.devices, parallelism=Parallel(2, order="any"), resources=Resources(cpu=0.5, gpu=1)
    )
    stream.sink(out.append)
    LocalEnvironment(machine=SMALL).run_sync(flow)
    assert set(out) <= {"0", "1"}


@pytest.mark.parametrize("kind", ["process", "thread"])
async def test_requests_are_done_by_workers_each_for_itself(kind: Any) -> None:
    flow, parallel = Flow("service"), Parallel(2, kind)
    grown = flow.requests(int).map(ops.increase, parallelism=parallel)
    tenfold = grown.map_batch(ops.total, Batch(8), parallelism=parallel)
    flow.reply(tenfold.map(ops.brittle, parallelism=parallel))
    async with await LocalEnvironment().submit(flow) as job:
        replies = await asyncio.gather(*(job.request(x) for x in range(50)), return_exceptions=True)
        wrong = [x for x, reply in enumerate(replies) if isinstance(reply, OperatorError)]
        assert wrong == [x for x in range(50) if (x + 1) % 7 == 0]
        assert all(replies[x] == (x + 1) * 10 for x in range(50) if x not in wrong)
        with pytest.raises(
            OperatorError, match=r"operator 'total' failed on item \d+ .*: ValueError: a hundred"
        ):
            await job.request(99)
        assert job.report()["increase"].items_in == 51
    assert job.report()["increase"].in_flight == 0


async def test_a_service_withstands_the_loss_of_a_worker(tmp_path: Path) -> None:
    flow = Flow("service")
    flow.reply(flow.requests(int).map(ops.DiesOnce(tmp_path), parallelism=1).map(ops.poison, parallelism=1))
    async with await LocalEnvironment().submit(flow) as job:
        found = await asyncio.gather(*(job.request(x) for x in range(10, 16)), return_exceptions=True)
        assert [one for one in found if not isinstance(one, OperatorError)] == [10, 11, 12, 14, 15]
        assert "lost 2 times" in str(found[3])


async def test_a_service_adds_workers_while_requests_queue(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    flow = Flow("service")
    waits = flow.requests(int).map(ops.Waits(pipe), parallelism=1, scale=Scale(1, 2, target_wait=0.01))
    flow.reply(waits)
    async with await LocalEnvironment().submit(flow) as job:
        first = asyncio.create_task(job.request(0))
        await asyncio.sleep(0)
        assert await asyncio.gather(first, *(job.request(x) for x in (7, 50))) == [0, 7, 50]
