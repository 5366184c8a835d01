"""From the manager to the process of a job."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

__all__ = ["Begin", "Check", "Decide", "Drain", "Gates", "Order", "Pause", "Source"]


@dataclass(frozen=True, slots=True)
class Source:
    """Where the flow comes from: a plan, or the name of code; the names that are allowed, the folders where
    they are looked for, and the one in which relative paths begin; the code of services by their names.
    """

    plan: dict[str, Any] | None
    flow: str
    settings: dict[str, Any] = field(default_factory=dict)
    allow: tuple[str, ...] = ()
    path: tuple[str, ...] = ()
    folder: str = ""
    services: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Check:
    """Say whether this can run, and end: `Checked` or `Failed`."""

    source: Source


@dataclass(frozen=True, slots=True)
class Begin:
    """Run it, from the newest checkpoint in the folder `checkpoints` if there is one."""

    source: Source
    checkpoints: str
    every: float


@dataclass(frozen=True, slots=True)
class Pause:
    """Take a checkpoint and end."""


@dataclass(frozen=True, slots=True)
class Drain:
    """Read no more, finish what was read, and end."""


@dataclass(frozen=True, slots=True)
class Gates:
    """Tell what waits at its gates, in an `Answer` of this number."""

    number: int


@dataclass(frozen=True, slots=True)
class Decide:
    """Let a record at a gate go on, or reject it; and say in an `Answer` when that is durable.

    `value`: {} = it goes on as it is; {"value": …} = with that in its place.
    """

    number: int
    gate: str
    item: str
    approve: bool
    value: dict[str, Any] = field(default_factory=dict)
    reason: str = ""


Order: TypeAlias = Check | Begin | Pause | Drain | Gates | Decide
