"""Policies by name: the shipped ones, and those of the entry points `sage.placement`."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points

from sage.common.errors import ConfigError
from sage.kernel.scheduler.policies import (
    Fifo,
    GpuFragmentAware,
    Locality,
    Pack,
    Priority,
    RoundRobin,
    Spread,
)
from sage.kernel.scheduler.policy import Policy

__all__ = ["GROUP", "available_policies", "load_policy"]

GROUP = "sage.placement"
_SHIPPED: dict[str, Callable[[], Policy]] = {
    one.name: one for one in (Fifo, GpuFragmentAware, Locality, Pack, Priority, RoundRobin, Spread)
}


def available_policies() -> list[str]:
    """The names that `load_policy` knows, sorted."""
    return sorted({*_SHIPPED, *(point.name for point in entry_points(group=GROUP))})


def load_policy(name: str) -> Policy:
    """The policy of that name: a shipped one, else what the entry point makes without arguments.

    Raises ConfigError that lists the names.
    """
    if name in _SHIPPED:
        return _SHIPPED[name]()
    for point in entry_points(group=GROUP, name=name):
        factory: Callable[[], Policy] = point.load()
        return factory()
    raise ConfigError(
        f"There is no placement policy named {name!r}; there are {', '.join(available_policies())}."
    )
