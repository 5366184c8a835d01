"""The repository as the checks see it: a root, and the files that belong to it."""

from __future__ import annotations

import ast
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sage.common.errors import NotFoundError

__all__ = ["Finding", "Tree", "find_root", "parse"]


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """One thing that is wrong, where it is and what would be right. Line 0 = the file as a whole."""

    path: Path
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}" if self.line else f"{self.path}: {self.message}"


@dataclass(frozen=True, slots=True)
class Tree:
    """Files relative to `root`, sorted."""

    root: Path
    files: tuple[Path, ...]

    @classmethod
    def of(cls, root: Path) -> Tree:
        """What git tracks or would track; every file where there is no git."""
        if (root / ".git").exists():
            command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
            out = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
            names = {Path(name) for name in out.split("\0") if name and (root / name).is_file()}
        else:
            names = {path.relative_to(root) for path in root.rglob("*") if path.is_file()}
        return cls(root, tuple(sorted(names)))

    def python(self, *, tests: bool = True) -> Iterator[Path]:
        """Python files; without those under a `tests` folder if asked."""
        for path in self.files:
            if path.suffix == ".py" and (tests or "tests" not in path.parts):
                yield path

    def read(self, path: Path) -> str:
        """The text of one file."""
        return (self.root / path).read_text(encoding="utf-8")

    def members(self) -> dict[str, dict[str, Any]]:
        """Distribution folder name → its parsed pyproject.toml."""
        return {
            path.parts[1]: tomllib.loads(self.read(path))
            for path in self.files
            if len(path.parts) == 3 and path.parts[0] == "packages" and path.name == "pyproject.toml"
        }


def find_root(start: Path) -> Path:
    """The folder at or above `start` that holds `packages/` and `pyproject.toml`."""
    for folder in (start, *start.parents):
        if (folder / "packages").is_dir() and (folder / "pyproject.toml").is_file():
            return folder
    raise NotFoundError(f"{start} is not inside a clone of the repository.", hint="Go there, or use --root.")


def parse(file: Path) -> ast.Module:
    """The syntax tree of a file; several checks read the same one."""
    return _parse(file, file.stat().st_mtime_ns, file.stat().st_size)


@cache
def _parse(file: Path, _mtime: int, _size: int) -> ast.Module:
    return ast.parse(file.read_bytes(), filename=str(file))
