"""A policy that another package brings: found by its entry point, on the conformance suite."""

from __future__ import annotations

import importlib
import sys
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from sage.middleware.control_plane.core import Core
from sage.middleware.control_plane.policy import Policy, PolicyOptions, available_policies, load_policy
from sage.middleware.control_plane.types import Arrived, Dispatch, EngineUp
from sage.middleware.testing.policies import PolicySuite, chat_job, chat_spec

PROJECT = Path(__file__).parent / "third_party_policy"


def install(project: Path, site: Path) -> None:
    """What an installer leaves of a project with one module: the module and the metadata."""
    about = tomllib.loads((project / "pyproject.toml").read_text())
    name, version = about["project"]["name"], about["project"]["version"]
    for module in about["tool"]["setuptools"]["py-modules"]:
        (site / f"{module}.py").write_bytes((project / f"{module}.py").read_bytes())
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    groups = about["project"]["entry-points"]
    lines = [line for group, points in groups.items() for line in (f"[{group}]", *_points(points))]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


def _points(points: dict[str, str]) -> list[str]:
    return [f"{name} = {target}" for name, target in points.items()]


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder that is on the path for the time of a test."""
    install(PROJECT, tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "sticky_policy", raising=False)
    importlib.invalidate_caches()


class TestSticky(PolicySuite):
    @pytest.fixture
    def factory(self) -> Callable[[PolicyOptions], Policy]:
        return partial(load_policy, "sticky")


def test_it_is_available_beside_the_shipped_ones() -> None:
    assert {"sticky", "hybrid", "fifo"} <= set(available_policies())


def test_a_core_runs_it() -> None:
    core = Core(load_policy("sticky"))
    for index in range(4):
        core.handle(EngineUp(0.0, chat_spec(f"e{index}", max_running=100)))
    used: dict[str, set[str]] = {tenant: set() for tenant in "abcde"}
    for number in range(20):
        for tenant, engines in used.items():
            (action,) = core.handle(Arrived(0.0, chat_job(f"{tenant}{number}", tenant=tenant)))
            assert isinstance(action, Dispatch)
            engines.add(action.engine)
    assert [len(engines) for engines in used.values()] == [1] * 5
    assert len(set.union(*used.values())) > 1


def test_it_is_gone_when_it_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(tmp_path)])
    assert "sticky" not in available_policies()
