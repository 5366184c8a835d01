"""The repository passes its own checks, and its front doors are in order."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from sage.tools.lint import CHECKS
from sage.tools.tree import Tree

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def tree() -> Tree:
    return Tree.of(ROOT)


@pytest.mark.parametrize("name", sorted(CHECKS))
def test_the_repository_passes(tree: Tree, name: str) -> None:
    assert [str(finding) for finding in CHECKS[name](tree)] == []


@pytest.mark.parametrize(
    "script",
    ["quickstart.sh", "manage.sh", ".ci/run", "tools/setup", "tools/lint", "tools/audit", "tools/lock"],
)
def test_scripts_can_be_run_and_parse(script: str) -> None:
    assert os.access(ROOT / script, os.X_OK)
    first = (ROOT / script).read_text().splitlines()[0]
    if "bash" in first:
        subprocess.run(["bash", "-n", script], cwd=ROOT, check=True)


def manage(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([ROOT / "manage.sh", *arguments], capture_output=True, text=True, check=False)


def test_manage_alone_lists_every_recipe() -> None:
    done = manage()
    assert done.returncode == 0
    for recipe in (
        "setup",
        "test",
        "lint",
        "format",
        "layers",
        "audit",
        "lock",
        "build",
        "test-vllm",
        "clean",
    ):
        assert f"\n  {recipe} " in done.stdout


def test_manage_names_the_recipes_when_there_is_no_such_one() -> None:
    done = manage("tset")
    assert done.returncode == 2
    assert "no recipe tset" in done.stderr
    assert "test-vllm" in done.stderr


def test_a_machine_without_a_compiler_is_told_so(tmp_path: Path) -> None:
    for name in ("tools/setup", "requirements/cpu.txt", "packages/sage-middleware/cpp/bindings.cpp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "packages" / "sage-middleware" / "pyproject.toml").touch()
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "cat", "cksum", "dirname", "find"):
        found = next(Path(d, name) for d in os.environ["PATH"].split(":") if Path(d, name).exists())
        (tools / name).symlink_to(found)
    done = subprocess.run(
        [tools / "bash", tmp_path / "tools" / "setup", "cpu"],
        env={"PATH": str(tools)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "no C++ compiler is on the PATH" in done.stderr
    assert not (tmp_path / ".venv").exists()
