"""Calls that run code or trust bytes, found in the syntax tree whatever name they were imported under."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from sage.tools.tree import Finding, Tree, parse

__all__ = ["check", "dangerous_calls"]

# Fully qualified call → why it is refused.
_REFUSED = {
    "eval": "runs text as code",
    "exec": "runs text as code",
    "os.system": "goes through a shell",
    "os.popen": "goes through a shell",
    "subprocess.getoutput": "goes through a shell",
    "tempfile.mktemp": "names a file that another process may make first",
    "asyncio.create_subprocess_shell": "goes through a shell",
    **{
        f"{module}.{name}": "runs code that its input names"
        for module in ("pickle", "marshal", "dill", "cloudpickle", "joblib", "shelve", "jsonpickle")
        for name in ("load", "loads", "open", "decode", "Unpickler")
    },
}
# Where a file is there for such a call, and nothing else reads what others could have written.
_NEEDED = {
    (f"packages/sage-kernel/src/sage/kernel/runtime/{file}", "pickle.loads")
    for file in ("state.py", "replicas/wire.py")
}
_YAML_LOADERS = {"yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load"}
_SAFE_YAML = {"safe", "rt"}


def check(tree: Tree) -> list[Finding]:
    """Every dangerous call in the repository's Python, tests and tools included."""
    return [
        Finding(path, line, f"{call} {why}")
        for path in tree.python()
        for line, call, why in dangerous_calls(parse(tree.root / path))
        if (str(path), call) not in _NEEDED
    ]


def dangerous_calls(module: ast.Module) -> Iterator[tuple[int, str, str]]:
    """(line, call, reason) for each."""
    names = _imported(module)
    for node in ast.walk(module):
        if isinstance(node, ast.Call):
            call = _qualified(node.func, names)
            reason = _reason(call, node)
            if reason:
                yield node.lineno, call, reason


def _reason(call: str, node: ast.Call) -> str:
    given = {keyword.arg: keyword.value for keyword in node.keywords}
    if call in _REFUSED:
        return _REFUSED[call]
    if call in _YAML_LOADERS:
        return 'builds any object its input names; use ruamel.yaml with typ="safe"'
    if call == "ruamel.yaml.YAML" and _constant(given.get("typ"), default="rt") not in _SAFE_YAML:
        return 'takes any tag; use typ="safe"'
    if call == "torch.load" and _constant(given.get("weights_only")) is not True:
        return "unpickles unless weights_only=True"
    if call == "numpy.load" and _constant(given.get("allow_pickle"), default=False) is not False:
        return "unpickles with allow_pickle"
    if "shell" in given and _constant(given["shell"]) is not False:
        return "goes through a shell"
    return ""


def _constant(node: ast.expr | None, default: object = None) -> object:
    if node is None:
        return default
    return node.value if isinstance(node, ast.Constant) else ...


def _imported(module: ast.Module) -> dict[str, str]:
    """Local name → what it stands for."""
    names: dict[str, str] = {}
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            for alias in node.names:
                local = alias.asname or alias.name.split(".")[0]
                names[local] = alias.name if alias.asname else local
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def _qualified(func: ast.expr, names: dict[str, str]) -> str:
    parts: list[str] = []
    while isinstance(func, ast.Attribute):
        parts.append(func.attr)
        func = func.value
    if not isinstance(func, ast.Name):
        return ""
    parts.append(names.get(func.id, func.id))
    return ".".join(reversed(parts)).removeprefix("builtins.")
