"""The supervisor on the event loop of the standard library, and on the one that the gateway uses."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from sage.platform.testing.supervision import Bench, SupervisorSuite


@pytest.mark.parametrize("case", [name for name in dir(SupervisorSuite) if name.startswith("test_")])
@pytest.mark.parametrize("module", ["asyncio", "uvloop"])
def test_supervisor(case: str, module: str, tmp_path: Path) -> None:
    loops = pytest.importorskip(module)

    async def run() -> None:
        bench = Bench(tmp_path)
        try:
            await getattr(SupervisorSuite(), case)(bench)
        finally:
            await bench.close()

    with asyncio.Runner(loop_factory=loops.new_event_loop) as runner:
        runner.run(run())
