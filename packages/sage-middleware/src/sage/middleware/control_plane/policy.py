"""The policy port: which engine serves a request, decided from what the core knows and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import Final, Protocol, cast

from sage.common.errors import ConfigError
from sage.middleware.control_plane.types import Job

__all__ = ["Choice", "EngineView", "Policy", "available_policies", "load_policy"]

GROUP: Final = "sage.policies"

_BUILT_IN: Final = {
    "fifo": "sage.middleware.control_plane.policies.fifo:Fifo",
    "least_load": "sage.middleware.control_plane.policies.least_load:LeastLoad",
    "round_robin": "sage.middleware.control_plane.policies.round_robin:RoundRobin",
}


class EngineView(Protocol):
    """One engine as a policy sees it: read it, never change it."""

    @property
    def name(self) -> str:
        """Unique among engines."""
        ...

    @property
    def running(self) -> int:
        """Requests there now."""
        ...

    @property
    def free(self) -> int:
        """Requests it would take now; 0 = busy."""
        ...

    @property
    def max_running(self) -> int:
        """Requests that it takes at once."""
        ...

    @property
    def outstanding_tokens(self) -> int:
        """Estimated tokens of what runs there: prompts and the answers they may ask for."""
        ...

    @property
    def last_dispatch(self) -> int:
        """Number of the newest request sent there, counted over all engines; 0 = none yet."""
        ...


@dataclass(frozen=True, slots=True)
class Choice:
    """Send it to `engine`; `reason` says why in words."""

    engine: str
    reason: str


class Policy(Protocol):
    """Picks an engine. No clock, no I/O, no randomness but a seed given at construction.

    `engines` are all that could serve this job, up and capable, in the order in which they became known, and
    at least one is free. The choice must be a free one; None leaves the job waiting until something changes.
    A policy may remember its own choices: each one is carried out before it is asked again.
    """

    @property
    def name(self) -> str:
        """The name by which it is configured and reported."""
        ...

    def choose(self, engines: Sequence[EngineView], job: Job, now: float) -> Choice | None:
        """The engine for `job`, or None to wait."""
        ...


def available_policies() -> list[str]:
    """Names of all policies that `load_policy` knows, sorted."""
    return sorted({*_BUILT_IN, *(point.name for point in entry_points(group=GROUP))})


def load_policy(name: str) -> Policy:
    """Make the policy called `name`: a shipped one, else one from the entry points `sage.policies`.

    Raises ConfigError with the names that exist.
    """
    target = _BUILT_IN.get(name)
    if target is not None:
        module, _, attribute = target.partition(":")
        return cast(Policy, getattr(import_module(module), attribute)())
    for point in entry_points(group=GROUP, name=name):
        return cast(Policy, point.load()())
    raise ConfigError(
        f"There is no policy named {name!r}; there are {', '.join(available_policies())}.",
        hint="Set `control_plane.policy` to one of them.",
    )
