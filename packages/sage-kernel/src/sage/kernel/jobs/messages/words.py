"""From the process of a job to the manager."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

__all__ = ["Answer", "Beat", "Checked", "Failed", "Finished", "Paused", "Running", "Saved", "Word"]


@dataclass(frozen=True, slots=True)
class Beat:
    """It lives. `stuck`: seconds for which its event loop has not moved; `operators`: their counts; `gates`:
    how many records wait at each.
    """

    stuck: float = 0.0
    operators: tuple[dict[str, Any], ...] = ()
    gates: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Checked:
    """It can run; the flow's name, and what its operators ask for: see `demand_of`."""

    flow: str
    demand: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Running:
    """It reads its sources, from the checkpoint of this number; None = from their beginning."""

    checkpoint: int | None


@dataclass(frozen=True, slots=True)
class Saved:
    """The checkpoint of this number is durable, since that Unix time."""

    checkpoint: int
    at: float


@dataclass(frozen=True, slots=True)
class Paused:
    """The checkpoint that was ordered is durable; it ends now."""


@dataclass(frozen=True, slots=True)
class Finished:
    """All that it read is where it belongs; it ends now."""

    operators: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Failed:
    """It cannot go on; it ends now. `code`: that of the error, `internal_error` if it was none of ours."""

    message: str
    hint: str = ""
    code: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the order of this number asked for; or why it cannot be, with the code of the error."""

    number: int
    found: dict[str, Any] = field(default_factory=dict)
    message: str = ""
    hint: str = ""
    code: str = ""


Word: TypeAlias = Answer | Beat | Checked | Running | Saved | Paused | Finished | Failed
