"""The supervisor on the event loop of the standard library, and on the one that the gateway uses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
import uvloop

from sage.platform.testing.supervision import Bench, SupervisorSuite

LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]


@pytest.mark.parametrize("case", [name for name in dir(SupervisorSuite) if name.startswith("test_")])
@pytest.mark.parametrize("loop", LOOPS, ids=["asyncio", "uvloop"])
def test_supervisor(case: str, loop: Callable[[], asyncio.AbstractEventLoop], tmp_path: Path) -> None:
    async def run() -> None:
        bench = Bench(tmp_path)
        try:
            await getattr(SupervisorSuite(), case)(bench)
        finally:
            await bench.supervisor.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(run())
