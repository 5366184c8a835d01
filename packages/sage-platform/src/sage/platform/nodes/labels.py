"""Labels of a node: what a person says of it, for placement and for reports."""

from __future__ import annotations

import re
from collections.abc import Mapping

from sage.common.errors import ConfigError

__all__ = ["LABELS", "check_labels", "parse_labels"]

LABELS = "SAGE_NODE_LABELS"
_RESERVED = ("arch", "os")
_MAX = 64
_KEY = re.compile(r"[a-z0-9]([a-z0-9._/-]{0,61}[a-z0-9])?", re.ASCII)
_VALUE = re.compile(r"[A-Za-z0-9._-]{0,63}", re.ASCII)


def parse_labels(text: str, where: str = LABELS) -> dict[str, str]:
    """`zone=a,disk=nvme`. Raises one ConfigError with all that is wrong."""
    labels: dict[str, str] = {}
    problems: list[str] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = part.partition("=")
        if not equals:
            problems.append(f"{part!r} has no value; valid is KEY=VALUE")
        elif key in labels:
            problems.append(f"{key!r} is given twice")
        labels[key] = value
    return check_labels(labels, where, problems)


def check_labels(labels: Mapping[str, str], where: str, problems: list[str] | None = None) -> dict[str, str]:
    """The labels, if all are valid; else a ConfigError with all that is wrong, `problems` first."""
    found = list(problems or [])
    if len(labels) > _MAX:
        found.append(f"there are {len(labels)} labels; valid are up to {_MAX}")
    for key, value in labels.items():
        if key in _RESERVED:
            found.append(f"{key!r} is set by SAGE itself")
        elif not _KEY.fullmatch(key):
            found.append(f"the key {key[:80]!r} is not valid: 1 to 63 of a-z, 0-9, '.', '_', '/', '-'")
        if not _VALUE.fullmatch(value):
            found.append(
                f"{key[:80]!r} is {value[:80]!r}, which is not valid: up to 63 of A-Z, a-z, 0-9, ._-"
            )
    if found:
        raise ConfigError(f"Node labels in {where}: " + "; ".join(found) + ".")
    return dict(labels)
