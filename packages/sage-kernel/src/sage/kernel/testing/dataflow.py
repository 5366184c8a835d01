"""The conformance suite of backends: subclass it in a test module with a fixture `backend`."""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, Protocol

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sage.common.errors import UnavailableError
from sage.kernel import Flow, OperatorError, Run, RunReport
from sage.kernel.testing.crash import random_recipe, survive
from sage.kernel.testing.plans import Recipe, build, collected, expected
from sage.kernel.testing.sinks import EpochFiles, Numbers

__all__ = ["Backend", "DataflowSuite", "Runs"]


class Runs(Protocol):
    """What a backend gives: an environment."""

    async def run(self, flow: Flow, *, stop: asyncio.Event | None = None) -> RunReport:
        """Run to the end."""
        ...

    async def start(self, flow: Flow) -> Run:
        """Start it."""
        ...


class Backend(Protocol):
    """Makes environments. `name` is the "module:function" that makes one in another process."""

    name: str

    def __call__(self, folder: Path | None, batch: int = 64, capacity: int = 1024) -> Runs:
        """An environment, with checkpoints in this folder, when asked for, if there is one."""
        ...


_RECIPES = st.integers(0, 10**9).map(lambda seed: random_recipe(Random(seed), records=40))  # noqa: S311
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


def check(recipe: Recipe, folder: Path) -> None:
    """What is in the folders is what the recipe comes to."""
    found = collected(folder)
    for name, wanted in expected(recipe).items():
        assert found.get(name) == wanted, name


class DataflowSuite:
    """What every backend keeps to. The fixture `backend` is a `Backend`."""

    @settings(suppress_health_check=list(HealthCheck), max_examples=60)
    @given(_RECIPES, _SIZES, _SIZES)
    def test_a_plan_comes_to_what_lists_say(
        self, backend: Backend, recipe: Recipe, batch: int, capacity: int
    ) -> None:
        """Every record reaches its end once, whatever the batches and bounds."""
        with tempfile.TemporaryDirectory() as folder:
            asyncio.run(_whole(backend(None, batch, capacity), build(recipe, Path(folder))))
            found = {path.name for path in Path(folder).iterdir()}
            assert found == set(expected(recipe))

    @settings(suppress_health_check=list(HealthCheck), max_examples=60)
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
                run = await backend(folder / "checkpoints", batch, capacity).start(build(recipe, folder / "sinks"))
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


async def _whole(environment: Runs, flow: Flow) -> RunReport:
    return await environment.run(flow)
