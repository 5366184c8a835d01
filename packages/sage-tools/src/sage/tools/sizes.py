"""The size ratchet: files and functions stay small, and what is over the aim may only shrink."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sage.tools.tree import Finding, Tree, parse

__all__ = ["BASELINE", "Sizes", "check", "lowered", "measure"]

BASELINE = Path("tools/sizes.json")
FILE_AIM, FILE_MAX = 400, 600
FUNCTION_LONG, FUNCTION_MAX = 50, 60
LONG_SHARE_MAX = 0.02
_CODE = {".py", ".ts", ".tsx", ".cpp", ".hpp"}


@dataclass(frozen=True, slots=True)
class Sizes:
    """Lines per file, and (file, line, name, body lines) of each function."""

    files: dict[Path, int]
    functions: tuple[tuple[Path, int, str, int], ...]

    @property
    def long_share(self) -> float:
        """Share of functions whose body has more than 50 lines."""
        long = sum(lines > FUNCTION_LONG for *_, lines in self.functions)
        return long / len(self.functions) if self.functions else 0.0


def measure(tree: Tree) -> Sizes:
    """Count. A body runs from its first statement after the docstring to its last line."""
    files = {p: tree.read(p).count("\n") for p in tree.files if p.suffix in _CODE}
    functions = tuple(
        (path, node.lineno, node.name, _body_lines(node))
        for path in tree.python()
        for node in _functions(parse(tree.root / path))
    )
    return Sizes(files, functions)


def check(tree: Tree) -> list[Finding]:
    """Everything over a hard bound, or over the aim by more than `tools/sizes.json` lets it."""
    sizes = measure(tree)
    allowed = _load(tree)
    found = []
    for path, lines in sizes.files.items():
        bound = min(FILE_MAX, max(FILE_AIM, allowed["files"].get(path.as_posix(), 0)))
        if lines > bound:
            found.append(Finding(path, 0, f"{lines} lines; at most {bound}: cut it along its nouns"))
    for path, line, name, lines in sizes.functions:
        if lines > FUNCTION_MAX:
            found.append(Finding(path, line, f"{name} has a body of {lines} lines; at most {FUNCTION_MAX}"))
    share, bound_share = sizes.long_share, min(LONG_SHARE_MAX, allowed["long_share"])
    if share > bound_share:
        text = f"{share:.2%} of functions are over {FUNCTION_LONG} lines; at most {bound_share:.2%}"
        found.append(Finding(BASELINE, 0, text))
    return found


def lowered(tree: Tree) -> dict[str, Any]:
    """The baseline with each number at what is there now, where that is less; it never gains an entry."""
    sizes = measure(tree)
    allowed = _load(tree)
    files = {
        name: min(bound, sizes.files[Path(name)])
        for name, bound in allowed["files"].items()
        if sizes.files.get(Path(name), 0) > FILE_AIM
    }
    return {"files": files, "long_share": round(min(allowed["long_share"], sizes.long_share + 5e-5), 4)}


def _load(tree: Tree) -> dict[str, Any]:
    if BASELINE not in tree.files:
        return {"files": {}, "long_share": LONG_SHARE_MAX}
    baseline: dict[str, Any] = json.loads(tree.read(BASELINE))
    return baseline


def _functions(module: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def _body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
    return (node.end_lineno or node.lineno) - body[0].lineno + 1 if body else 0
