"""Kinds of engines by name, from the entry points of group `sage.engines`; each is loaded when it is used."""

from __future__ import annotations

from importlib.metadata import entry_points

from sage.common.errors import ConfigError
from sage.middleware.engines.port import EngineKind

__all__ = ["engine_kind", "engine_kinds"]

_GROUP = "sage.engines"


def engine_kinds() -> list[str]:
    """The names there are."""
    return sorted(entry_points(group=_GROUP).names)


def engine_kind(name: str) -> EngineKind:
    """The kind of that name. Raises ConfigError listing the names there are."""
    found = list(entry_points(group=_GROUP, name=name))
    if not found:
        names = ", ".join(engine_kinds()) or "none"
        raise ConfigError(
            f"There is no engine kind {name!r}; there are: {names}.",
            hint="Correct `kind:` in sage.yaml, or install the package that brings this kind.",
        )
    kind: EngineKind = found[0].load()
    return kind
