"""The local engine passes the conformance suite of backends."""

from __future__ import annotations

from pathlib import Path

import pytest

from sage.kernel import Checkpoints, LocalEnvironment
from sage.kernel.testing.dataflow import DataflowSuite


class Local:
    """Makes local environments."""

    name = "sage.kernel.testing.crash:local"

    def __call__(self, folder: Path | None, batch: int = 64, capacity: int = 1024) -> LocalEnvironment:
        checkpoints = Checkpoints(folder, every=0) if folder else None
        return LocalEnvironment(batch=batch, capacity=capacity, checkpoints=checkpoints)


class TestLocal(DataflowSuite):
    @pytest.fixture
    def backend(self) -> Local:
        return Local()
