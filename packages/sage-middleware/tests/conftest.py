"""The tests of the driver run twice: each whole chat awaited by a task, and begun without one."""

from __future__ import annotations

import pytest

from sage.middleware.testing.bench import Bench


@pytest.fixture(autouse=True)
def begins(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `Bench` begin what it can, where a test asks for it by `pytest_generate_tests`."""
    monkeypatch.setattr(Bench, "begins", getattr(request, "param", False))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Both ways for each test of the driver."""
    if metafunc.definition.path.name.startswith("test_middleware_driver"):
        metafunc.parametrize("begins", [False, True], indirect=True, ids=["awaited", "begun"])
