"""Checks of the shared namespace, of the pins between siblings, and of the lock."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from sage.tools.tree import Finding, Tree

__all__ = ["check_lock", "check_namespace", "check_pins", "normalized"]

_REQUIREMENT = re.compile(r"^([A-Za-z0-9][\w.-]*)(?:\[[^\]]*\])?\s*(.*?)\s*(?:;.*)?$")
_CUDA = re.compile(r"^(nvidia-(?!ml-py)|cuda|cupy|triton$|pytorch-triton|.*-cu\d{2})")
_ELSEWHERE = ("vllm", "ray")  # extras that the cpu profile leaves out
_LOCK = Path("requirements/cpu.txt")
_EXACT = re.compile(r"^[a-z0-9][a-z0-9-]*==[^\s;]+$")


def normalized(name: str) -> str:
    """A distribution's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def check_namespace(tree: Tree) -> list[Finding]:
    """`sage` is shared by all packages (PEP 420): no `__init__.py` in it, one typed portion per package."""
    found = []
    portions: dict[Path, set[str]] = {}
    for path in tree.files:
        match path.parts:
            case ("packages", _, "src", "sage", "__init__.py"):
                text = "makes `sage` belong to this package alone: delete it"
                found.append(Finding(path, 0, text))
            case ("packages", _, "src", "sage", _, name):
                portions.setdefault(path.parent, set()).add(name)
    for folder, names in portions.items():
        missing = [needed for needed in ("__init__.py", "py.typed") if needed not in names]
        found += [Finding(folder, 0, f"has no {needed}") for needed in missing]
    owners = Counter(folder.name for folder in portions)
    found += [Finding(f, 0, "two packages own this portion") for f in portions if owners[f.name] > 1]
    return found


def check_pins(tree: Tree) -> list[Finding]:
    """Siblings are required at the same minor version, by `~=MAJOR.MINOR.PATCH`, and all are of one minor."""
    members = tree.members()
    minors = {name: _minor(data["project"]["version"]) for name, data in members.items()}
    usual = Counter(minors.values()).most_common(1)[0][0] if minors else ""
    found = []
    for name, data in members.items():
        file = Path("packages", name, "pyproject.toml")
        project = data["project"]
        if project["name"] != name:
            found.append(Finding(file, 0, f"is named {project['name']}, its folder {name}"))
        if minors[name] != usual:
            found.append(Finding(file, 0, f"is of {minors[name]}, the others of {usual}"))
        extras = project.get("optional-dependencies", {})
        for requirement in [*project.get("dependencies", []), *(r for e in extras.values() for r in e)]:
            match = _REQUIREMENT.match(requirement)
            if match and match[1] in members and not re.fullmatch(rf"~={minors[name]}\.\d+", match[2]):
                text = f"requires `{requirement}`; siblings are required by ~={minors[name]}.0"
                found.append(Finding(file, 0, text))
    return found


def check_lock(tree: Tree) -> list[Finding]:
    """The cpu constraints are exact, know every requirement of every package, and hold nothing of CUDA."""
    if _LOCK not in tree.files:
        return [Finding(_LOCK, 0, "is missing: run ./manage.sh lock")]
    lines = [line for line in tree.read(_LOCK).splitlines() if line and not line.startswith("#")]
    found = [Finding(_LOCK, 0, f"`{line}` is not NAME==VERSION") for line in lines if not _EXACT.match(line)]
    locked = {line.split("==")[0] for line in lines}
    found += [Finding(_LOCK, 0, f"{name} is of CUDA") for name in sorted(locked) if _CUDA.match(name)]
    members = tree.members()
    for name, data in members.items():
        for wanted in _direct(data):
            if wanted not in locked and wanted not in members:
                found.append(Finding(_LOCK, 0, f"lacks {wanted} of {name}: run ./manage.sh lock"))
    return found


def _direct(data: dict[str, Any]) -> set[str]:
    """Normalised names of what a package requires in the cpu profile, which is all but `_ELSEWHERE`."""
    project = data["project"]
    wanted = [*project.get("dependencies", []), *data["build-system"]["requires"]]
    for extra, needs in project.get("optional-dependencies", {}).items():
        if extra not in _ELSEWHERE:
            wanted += needs
    return {normalized(match[1]) for text in wanted if (match := _REQUIREMENT.match(str(text)))}


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])
