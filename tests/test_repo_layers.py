"""The import contracts hold, and each way around them is caught: proved on a copy of the sources."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PORTIONS = sorted(path for path in ROOT.glob("packages/*/src/sage/*") if (path / "__init__.py").is_file())


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """All portions side by side, as an installation has them, and the repository's contracts."""
    for portion in PORTIONS:
        ignore = shutil.ignore_patterns("__pycache__", "*.so")
        shutil.copytree(portion, tmp_path / "sage" / portion.name, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint_imports(tree: Path) -> tuple[int, str]:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-logo", "--no-cache"]
    env = {**os.environ, "PYTHONPATH": str(tree), "NO_COLOR": "1"}
    done = subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_every_package_has_a_portion_but_the_metapackage() -> None:
    members = {path.name for path in (ROOT / "packages").iterdir()} - {"sage-stack"}
    assert {f"sage-{portion.name}" for portion in PORTIONS} == members


def test_the_contracts_hold(tree: Path) -> None:
    code, output = lint_imports(tree)
    assert code == 0, output
    assert "0 broken" in output


@pytest.mark.parametrize(
    "code",
    [
        "from sage.middleware import stack",
        "def later() -> None:\n    from sage.middleware import stack",
        "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    from sage.middleware import stack",
    ],
    ids=["upward", "lazy", "type-checking"],
)
def test_an_upward_import_is_caught(tree: Path, code: str) -> None:
    (tree / "sage" / "libs" / "planted.py").write_text(f'"""Planted."""\n\n{code}\n')
    status, output = lint_imports(tree)
    assert status != 0
    assert "sage.libs.planted -> sage.middleware" in output


def test_an_import_between_interfaces_is_caught(tree: Path) -> None:
    (tree / "sage" / "cli" / "planted.py").write_text("import sage.gateway\n")
    status, output = lint_imports(tree)
    assert status != 0
    assert "sage.cli.planted -> sage.gateway" in output


def test_a_portion_that_no_layer_names_is_caught(tree: Path) -> None:
    (tree / "sage" / "stranger").mkdir()
    (tree / "sage" / "stranger" / "__init__.py").touch()
    status, output = lint_imports(tree)
    assert status != 0
    assert "stranger" in output


@pytest.mark.parametrize("library", ["fastapi", "torch", "transformers", "vllm", "ray"])
def test_a_heavy_library_in_a_lower_layer_is_caught(tree: Path, library: str) -> None:
    (tree / "sage" / "kernel" / "planted.py").write_text(f"def later() -> None:\n    import {library}\n")
    status, output = lint_imports(tree)
    assert status != 0
    assert f"sage.kernel.planted -> {library}" in output


def test_a_cycle_between_siblings_is_caught(tree: Path) -> None:
    for one, other in (("alpha", "beta"), ("beta", "alpha")):
        folder = tree / "sage" / "libs" / one
        folder.mkdir()
        (folder / "__init__.py").write_text(f"def later() -> None:\n    import sage.libs.{other}\n")
    status, output = lint_imports(tree)
    assert status != 0
    assert "No cycles are allowed in sage.libs." in output
