"""Every layer can be installed with only the layers below it, from wheels, and imports alone."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
LAYERS = ["common", "platform", "kernel", "libs", "middleware"]
INTERFACES = ["gateway", "cli", "studio", "tools", "apps", "benchmark"]
BASE_MAX = 60

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def run(*command: str | Path, **env: str) -> str:
    done = subprocess.run(
        [*map(str, command)], env={**os.environ, **env}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our wheels and, once for all layers, every dependency of the base installation."""
    folder = tmp_path_factory.mktemp("wheels")
    lock = str(ROOT / "requirements" / "cpu.txt")
    members = sorted(path.parent for path in ROOT.glob("packages/*/pyproject.toml"))
    run(*PIP, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, *members)
    ours = sorted(folder.glob("*.whl"))
    run(*PIP, "download", "--quiet", "--dest", folder, "--constraint", lock, *ours)
    return folder


class Empty:
    """An environment that holds nothing, pip neither; wheels come from one folder only."""

    def __init__(self, home: Path, wheels: Path) -> None:
        venv.create(home, with_pip=False)
        self.python = home / "bin" / "python"
        self._pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(self.python)]
        self._wheels = wheels

    def install(self, name: str) -> None:
        options = ["--quiet", "--no-compile", "--no-index", "--find-links", str(self._wheels)]
        run(*self._pip, "install", *options, name)

    def distributions(self) -> set[str]:
        listed = json.loads(run(*self._pip, "list", "--format", "json"))
        return {re.sub(r"[-_.]+", "-", item["name"]).lower() for item in listed}

    def execute(self, code: str) -> str:
        return run(self.python, "-c", code, PYTHONPATH="")


def requires(name: str) -> set[str]:
    """Our own packages that a package asks for."""
    data = tomllib.loads((ROOT / "packages" / name / "pyproject.toml").read_text())
    return {match[0] for text in data["project"]["dependencies"] if (match := re.match(r"sage-[a-z]+", text))}


def test_requirements_go_down_only() -> None:
    for level, name in enumerate(LAYERS):
        assert requires(f"sage-{name}") <= {f"sage-{lower}" for lower in LAYERS[:level]}
    for name in INTERFACES:
        assert requires(f"sage-{name}") <= {f"sage-{lower}" for lower in LAYERS}


@pytest.mark.parametrize("name", [*LAYERS, *INTERFACES])
def test_a_layer_installs_and_imports_alone(name: str, wheels: Path, tmp_path: Path) -> None:
    empty = Empty(tmp_path / "env", wheels)
    empty.install(f"sage-{name}")
    ours = {found for found in empty.distributions() if found.startswith("sage-")}
    assert ours == {f"sage-{name}"} | requires(f"sage-{name}")
    empty.execute(
        "import importlib, pkgutil, sys\n"
        f"portion = importlib.import_module('sage.{name}')\n"
        "import sage; assert getattr(sage, '__file__', None) is None\n"
        "optional = {'testing', '__main__', 'scripted', 'embedding_server', 'guard', 'tracing'}\n"
        "for found in pkgutil.walk_packages(portion.__path__, portion.__name__ + '.'):\n"
        "    if optional.isdisjoint(found.name.split('.')): importlib.import_module(found.name)\n"
    )


def test_the_base_installation_is_small_and_has_no_engine(wheels: Path, tmp_path: Path) -> None:
    empty = Empty(tmp_path / "env", wheels)
    empty.install("sage-stack")
    found = empty.distributions()
    assert {f"sage-{name}" for name in (*LAYERS, *INTERFACES, "stack")} <= found
    assert not found & {"torch", "transformers", "sentence-transformers", "vllm", "ray"}
    assert len(found) <= BASE_MAX, sorted(found)
    sage = tmp_path / "env" / "bin" / "sage"
    assert run(sage, "--version").startswith("sage ")
    assert "quickstart" in run(sage, "--help")
