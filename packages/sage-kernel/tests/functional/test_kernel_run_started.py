"""When a run has begun, and where its checkpoints are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sage.kernel import Flow, LocalEnvironment, OperatorError
from sage.kernel.options import Checkpoints


async def test_a_run_has_started_once_its_operators_are_set_up(gate: Any) -> None:
    flow = Flow("waiting")
    flow.source([1]).map(gate).sink(lambda item: None)
    run = await LocalEnvironment().start(flow)
    assert await run.started()
    await gate.until(1)
    assert run.state == "running"
    gate.open(1)
    await run.wait()
    assert await run.started(), "it did start"
    assert run.epochs == (0, 0)


async def test_a_run_that_fails_while_it_is_set_up_has_not_started() -> None:
    class Missing:
        def setup(self) -> None:
            raise FileNotFoundError("no such model")

        def __call__(self, items: Any) -> Any:
            return items

        def close(self) -> None:
            """Nothing was opened."""

    flow = Flow("unready")
    flow.source([1]).map_batch(Missing(), name="missing").sink(lambda item: None)
    run = await LocalEnvironment().start(flow)
    assert not await run.started()
    with pytest.raises(OperatorError, match="no such model"):
        await run.wait()


async def test_a_run_tells_its_checkpoints(gate: Any, tmp_path: Path) -> None:
    flow = Flow("kept")
    flow.source([1, 2]).map(gate).sink(lambda item: None)
    environment = LocalEnvironment(checkpoints=Checkpoints(tmp_path, every=0))
    run = await environment.start(flow)
    assert await run.started()
    await gate.until(2)
    assert await run.checkpoint() == 1
    assert run.epochs == (0, 1)
    await run.stop(drain=False)
    again = await environment.start(flow)
    assert await again.started()
    await gate.until(2)
    assert again.epochs == (1, 1)
    gate.open(1)
    gate.open(2)
    assert (await again.wait()).resumed == 1
