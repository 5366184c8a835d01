"""Sources that always have a next record: whoever else is in the process has its turn all the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from sage.kernel import Flow, LocalEnvironment
from sage.kernel.options import Checkpoints


async def endless() -> AsyncIterator[int]:
    for number in count():
        yield number


class Numbered:
    """Positions and records, one after the other, without a wait."""

    def read(self, position: Any) -> Iterator[tuple[int, list[int]]]:
        for number in count(position or 0):
            yield number, [number]


RESTLESS: dict[str, Any] = {"iterator": count, "async iterator": endless, "replayable": Numbered}


def flow_of(kind: str) -> Flow:
    flow = Flow("restless")
    source = RESTLESS[kind]
    flow.source(source() if kind == "replayable" else source, name="numbers").sink(lambda item: None)
    return flow


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", RESTLESS)
async def test_others_on_the_loop_come_up(kind: str) -> None:
    run = await LocalEnvironment().start(flow_of(kind))
    await asyncio.sleep(0.01)
    await run.stop()
    assert (await run.wait()).interrupted


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", RESTLESS)
async def test_the_threads_that_write_checkpoints_come_up(kind: str, tmp_path: Path) -> None:
    # A thread that waits for the interpreter's lock begins anew each time the loop gives it up for a moment.
    environment = LocalEnvironment(checkpoints=Checkpoints(tmp_path, every=0))
    run = await environment.start(flow_of(kind))
    for epoch in range(1, 21):
        assert await run.checkpoint() == epoch
    await run.stop(drain=False)
