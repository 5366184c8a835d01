"""A new package: the files that every distribution has, filled in."""

from __future__ import annotations

import re
from pathlib import Path

from sage.common.errors import ConflictError, UsageError

__all__ = ["new_package"]

_PYPROJECT = """\
[build-system]
requires = ["hatchling>=1.27"]
build-backend = "hatchling.build"

[project]
name = "sage-{name}"
version = "{version}"
description = "{description}"
readme = "README.md"
requires-python = ">=3.11"
license = "MIT"
dependencies = ["sage-common~={minor}.0"]

[tool.hatch.build.targets.wheel]
only-include = ["src/sage"]
sources = ["src"]

[tool.hatch.build]
dev-mode-dirs = ["src"]
"""
_TEST = """\
import importlib


def test_the_portion_imports_alone() -> None:
    assert importlib.import_module("sage.{name}").__doc__
"""


def new_package(root: Path, name: str, version: str, description: str) -> list[Path]:
    """Write `packages/sage-NAME` and return its files. Raises UsageError or ConflictError, then without any.

    The caller still gives the new portion its place in the layers contract: without one the contract fails.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*", name):
        raise UsageError(f"{name!r} cannot name a package; one lower-case word can, such as `search`.")
    home = root / "packages" / f"sage-{name}"
    if home.exists():
        raise ConflictError(f"{home} is there already.")
    minor = ".".join(version.split(".")[:2])
    portion = home / "src" / "sage" / name
    fields = {"name": name, "version": version, "minor": minor, "description": description}
    files = {
        home / "pyproject.toml": _PYPROJECT.format(**fields),
        home / "README.md": f"# sage-{name}\n\n{description}\n",
        portion / "__init__.py": f'"""{description}"""\n\n__all__: list[str] = []\n',
        portion / "py.typed": "",
        home / "tests" / "unit" / f"test_{name}_import.py": _TEST.format(**fields),
    }
    for file, text in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return list(files)
