"""The conformance suite of backends: subclass it in a test module with a fixture `backend`."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections import Counter
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any, Literal, Protocol

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sage.common.errors import UnavailableError
from sage.kernel import Batch, Environment, Flow, Job, Parallel, ReplyError, Run
from sage.kernel.testing.crash import random_recipe, survive
from sage.kernel.testing.plans import Recipe, build, collected, expected, hop, negated, triple
from sage.kernel.testing.replicas import OneSlow
from sage.kernel.testing.requests import random_service, service, survive_asked
from sage.kernel.testing.sinks import EpochFiles, Numbers

__all__ = ["Backend", "DataflowSuite"]


class Backend(Protocol):
    """Makes environments. `name` is the "module:function" that makes one in another process."""

    name: str

    def __call__(self, folder: Path | None, batch: int = 64, capacity: int = 1024) -> Environment:
        """An environment, with checkpoints in this folder, when asked for, if there is one."""
        ...


_RECIPES = st.integers(0, 10**9).map(lambda seed: random_recipe(Random(seed), records=40))  # noqa: S311
_SERVICES = st.integers(0, 10**9).map(lambda seed: random_service(Random(seed), 40))  # noqa: S311
_SIZES = st.integers(1, 64)
_CUTS = st.lists(st.tuples(st.integers(0, 400), st.booleans()), max_size=4)


async def _turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def _checkpoints(run: Run, pause: int) -> None:
    try:
        while True:
            await run.checkpoint()
            await _turns(pause)
    except UnavailableError:
        return


async def _ask(
    environment: Environment,
    recipe: Recipe,
    folder: Path,
    cut: int | None,
    pause: int,
    replies: dict[int, int | None],
) -> None:
    """Ask for all of a recipe, and note the replies; cut the job off after so many turns."""
    job = await environment.submit(service(recipe, folder))

    async def one(number: int) -> None:
        try:
            reply = await job.request(number, id=str(number))
        except ReplyError:
            reply = None
        except UnavailableError:
            return
        assert replies.setdefault(number, reply) == reply

    asking = [asyncio.create_task(one(number)) for number in range(recipe.records)]
    taking = asyncio.create_task(_folded(job, pause))
    if cut is None:
        await asyncio.gather(*asking)
    else:
        await _turns(cut)
    await job.stop(drain=cut is None)
    await asyncio.gather(*asking)
    await taking


async def _folded(job: Job, pause: int) -> None:
    with suppress(UnavailableError):  # it has been stopped
        while True:
            await _turns(pause + 1)
            await job.checkpoint()


def check(recipe: Recipe, folder: Path) -> None:
    """What is in the folders is what the recipe comes to."""
    found = collected(folder)
    for name, wanted in expected(recipe).items():
        assert found.get(name) == wanted, name


class DataflowSuite:
    """What every backend keeps to. The fixture `backend` is a `Backend`."""

    @settings(suppress_health_check=list(HealthCheck), max_examples=40)
    @given(_RECIPES, _SIZES, _SIZES)
    def test_a_plan_comes_to_what_lists_say(
        self, backend: Backend, recipe: Recipe, batch: int, capacity: int
    ) -> None:
        """Every record reaches its end once, whatever the batches and bounds."""
        with tempfile.TemporaryDirectory() as folder:
            asyncio.run(backend(None, batch, capacity).run(build(recipe, Path(folder))))
            check(recipe, Path(folder))

    @settings(suppress_health_check=list(HealthCheck), max_examples=40)
    @given(_RECIPES, _SIZES, _SIZES, _CUTS, st.integers(0, 40))
    def test_a_run_that_is_cut_off_goes_on(
        self,
        backend: Backend,
        recipe: Recipe,
        batch: int,
        capacity: int,
        cuts: list[tuple[int, bool]],
        pause: int,
    ) -> None:
        """Cut off or drained at any turn, as often as may be, with checkpoints at any time: exactly once."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)

            async def until(cut: tuple[int, bool] | None) -> None:
                run = await backend(folder / "checkpoints", batch, capacity).start(
                    build(recipe, folder / "sinks")
                )
                taking = asyncio.create_task(_checkpoints(run, pause))
                if cut:
                    await _turns(cut[0])
                    await run.stop(drain=cut[1])
                else:
                    await run.wait()
                await taking

            for cut in [*cuts, None]:
                asyncio.run(until(cut))
            check(recipe, folder / "sinks")

    @pytest.mark.parametrize("seed", range(3))
    def test_a_killed_run_goes_on(self, backend: Backend, seed: int, tmp_path: Path) -> None:
        """With SIGKILL, in a process of its own."""
        recipe = random_recipe(Random(seed), records=2000)  # noqa: S311
        survive(recipe, tmp_path, seed=seed, kills=3, backend=backend.name)

    @settings(suppress_health_check=list(HealthCheck), max_examples=30)
    @given(_SERVICES, st.lists(st.integers(0, 400), max_size=4), st.integers(0, 40))
    def test_requests_that_are_cut_off_are_taken_up(
        self, backend: Backend, recipe: Recipe, cuts: list[int], pause: int
    ) -> None:
        """Cut off at any turn, as often as may be, with checkpoints at any time: each has one reply."""
        with tempfile.TemporaryDirectory() as name:
            folder, replies = Path(name), dict[int, int | None]()
            for cut in [*cuts, None]:
                asyncio.run(_ask(backend(folder / "checkpoints"), recipe, folder, cut, pause, replies))
            check(recipe, folder / "sinks")
            given = Counter(reply for reply in replies.values() if reply is not None)
            assert given == expected(recipe)["out"]
            assert len(replies) == recipe.records

    @pytest.mark.parametrize("seed", range(2))
    def test_killed_requests_are_taken_up(self, backend: Backend, seed: int, tmp_path: Path) -> None:
        """With SIGKILL, in a process of its own."""
        recipe = random_service(Random(seed), requests=500)  # noqa: S311
        survive_asked(recipe, tmp_path, seed=seed, kills=3, backend=backend.name)

    async def test_falsy_records_and_keys_are_records_and_keys(
        self, backend: Backend, tmp_path: Path
    ) -> None:
        """None, 0, "" and () are as good as any, and a key may come from a lambda."""
        records = [0, "", None, False, 1, "a", (), 0, ""] * 3
        flow = Flow("falsy")
        keyed = flow.source(records).keyby(lambda x: x or None)
        keyed.scan(int, _numbered).sink(EpochFiles(tmp_path))
        await backend(None, 2, 3).run(flow)
        found = EpochFiles.records(tmp_path)
        assert len(found) == len(records)
        for key in {record or None for record in records}:
            count = sum((record or None) == key for record in records)
            assert [n for record, n in found if (record or None) == key] == list(range(count))

    async def test_what_has_several_inputs_ends_when_all_have(self, backend: Backend, tmp_path: Path) -> None:
        """Joins, merges and comaps over finite sources of different lengths, one of them slow, one empty."""
        flow = Flow("ends")
        short, slow, none = flow.source([1]), flow.source(range(50)).map(hop), flow.source(list[int]())
        both = short.connect(slow).comap(negated, triple)
        both.merge(none).sink(EpochFiles(tmp_path / "comap"), name="comap")
        one = short.event_time(float).keyby(lambda x: x)
        one.join(slow.event_time(float).keyby(lambda x: x), within=0).sink(
            EpochFiles(tmp_path / "join"), name="join"
        )
        await backend(None, 4, 4).run(flow)
        assert Counter(EpochFiles.records(tmp_path / "comap")) == Counter(
            [-1, *(3 * (x + 1) for x in range(50))]
        )
        assert EpochFiles.records(tmp_path / "join") == [(1, 1)]

    @pytest.mark.parametrize("kind", ["process", "thread"])
    @pytest.mark.parametrize(("order", "ahead"), [("input", 3), ("any", 24)])
    async def test_one_slow_replica_of_two(
        self,
        backend: Backend,
        tmp_path: Path,
        kind: Literal["process", "thread"],
        order: Literal["input", "any"],
        ahead: int,
    ) -> None:
        """It loses nothing and keeps the order that is asked for; meanwhile the other one goes on."""
        flow = Flow("skew")
        slow = OneSlow(tmp_path, ahead)
        numbers = flow.source(range(100)).map_batch(slow, Batch(2), parallelism=Parallel(2, kind, order))
        numbers.sink(EpochFiles(tmp_path / "out"))
        await backend(None, 4, 16).run(flow)
        found = EpochFiles.records(tmp_path / "out")
        records = [record for record, _ in found]
        replicas = [replica for _, replica in found]
        late = (tmp_path / "slow").read_text()
        assert sorted(records) == list(range(100))
        assert len(set(replicas)) == 2
        assert len(found) - replicas.count(late) >= ahead
        if order == "input":
            assert records == list(range(100))
        else:  # what the other did meanwhile has not waited
            assert replicas.index(late) >= ahead - 1

    @pytest.mark.parametrize("checkpoints", [False, True])
    async def test_a_slow_sink_costs_no_record_and_no_memory(
        self, backend: Backend, tmp_path: Path, checkpoints: bool
    ) -> None:
        """An endless source of large records: what this process holds stays flat, and nothing is dropped."""
        seen, held = [0], [0, 0]
        stop = asyncio.Event()

        async def slow(number: int) -> None:
            assert number == seen[0]
            seen[0] += 1
            await asyncio.sleep(0)
            if seen[0] in (3_000, 12_000):
                held[seen[0] // 12_000] = _resident()
            if seen[0] == 12_000:
                stop.set()

        flow = Flow("memory")
        large = flow.source(Numbers(10**9)).map(_large).map(_later, order="input", concurrency=16)
        large.map(_number_of).sink(slow)
        environment = backend(tmp_path / "checkpoints" if checkpoints else None, 16, 64)
        run = await environment.start(flow)
        taking = asyncio.create_task(_checkpoints(run, 100)) if checkpoints else None
        stopping = asyncio.create_task(stop.wait())
        failing = asyncio.create_task(run.wait())
        await asyncio.wait([stopping, failing], return_when=asyncio.FIRST_COMPLETED)
        failing.cancel()
        assert stop.is_set(), "the run ended early"
        await run.stop(drain=False)
        if taking:
            await taking
        assert held[1] - held[0] < 40 << 20  # what 9,000 records more would be is 180 MB


def _numbered(count: int, record: Any) -> tuple[int, tuple[Any, int]]:
    return count + 1, (record, count)


def _large(number: int) -> tuple[int, bytes]:
    return number, bytes(20_000)


async def _later(record: tuple[int, bytes]) -> tuple[int, bytes]:
    await asyncio.sleep(0)
    return record[0], bytes(20_000)


def _number_of(record: tuple[int, bytes]) -> int:
    return record[0]


def _resident() -> int:
    """Bytes of memory that this process holds."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
