"""Checks of names and words: no path of one machine, unique test names, `__all__` in public modules."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

from sage.tools.tree import Finding, Tree, parse

__all__ = ["check_all", "check_test_names", "check_words"]

# A path into somebody's home or mount means nothing elsewhere. The leading class keeps URLs out.
_MACHINE_PATH = re.compile(r"(?<![\w.:/~$}-])/(?:home|root|work|farm|Users|opt)/[\w.]")
_INDEX = re.compile(r"--(?:extra-)?index-url|PIP_(?:EXTRA_)?INDEX_URL")
_TEXT = {
    ".py",
    ".md",
    ".toml",
    ".yaml",
    ".yml",
    ".json",
    ".sh",
    ".txt",
    ".cpp",
    ".hpp",
    ".ts",
    ".tsx",
    ".cfg",
    "",
}


def check_words(tree: Tree) -> list[Finding]:
    """Paths of one machine, and package indexes, which belong to a user's own settings."""
    found = []
    for path in tree.files:
        if path.suffix not in _TEXT or path.name == "LICENSE":
            continue
        for number, line in enumerate(tree.read(path).splitlines(), 1):
            if _MACHINE_PATH.search(line):
                found.append(Finding(path, number, "holds a path of one machine"))
            if _INDEX.search(line) and path != _OWN:
                found.append(Finding(path, number, "names a package index; that is the user's to set"))
    return found


_OWN = Path("packages/sage-tools/src/sage/tools/words.py")


def check_test_names(tree: Tree) -> list[Finding]:
    """Test modules have one name in the whole repository, so that a failure names one file."""
    by_name: dict[str, list[Path]] = defaultdict(list)
    for path in tree.python():
        if path.name.startswith("test_"):
            by_name[path.name].append(path)
    return [
        Finding(path, 0, f"shares its name with {paths[0]}")
        for paths in by_name.values()
        for path in paths[1:]
    ]


def check_all(tree: Tree) -> list[Finding]:
    """A public module says what is public: it has `__all__`, and each name in it exists."""
    found = []
    for path in tree.python(tests=False):
        if path.parts[:1] != ("packages",) or path.name.startswith("_"):
            continue
        module = parse(tree.root / path)
        names = _all(module)
        if names is None:
            found.append(Finding(path, 0, "has no __all__"))
            continue
        missing = sorted(names - _defined(module))
        if missing:
            found.append(Finding(path, 0, f"__all__ names what is not there: {', '.join(missing)}"))
    return found


def _all(module: ast.Module) -> set[str] | None:
    for node in module.body:
        match node:
            case (
                ast.Assign(targets=[ast.Name(id="__all__")], value=ast.expr() as value)
                | ast.AnnAssign(target=ast.Name(id="__all__"), value=ast.expr() as value)
            ):
                return set(ast.literal_eval(value))
    return None


def _defined(module: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(module):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                names.add(node.name)
            case ast.Name(ctx=ast.Store()):
                names.add(node.id)
            case ast.Import() | ast.ImportFrom():
                names.update((alias.asname or alias.name).split(".")[0] for alias in node.names)
    return names
