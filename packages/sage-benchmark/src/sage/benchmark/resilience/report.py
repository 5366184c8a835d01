"""What was checked, what was found, and whether that is enough: one table, and one record."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from sage.benchmark import environment

__all__ = ["Check", "at_least", "at_most", "equal", "nothing_left", "record", "table"]


@dataclass(frozen=True, slots=True)
class Check:
    """One target. `found` as it is shown, `value` as a number where it is one."""

    what: str
    found: str
    target: str
    ok: bool
    value: float | None = None


def at_most(what: str, value: float, limit: float, unit: str = "") -> Check:
    """The value may not be above the limit."""
    return Check(what, _shown(value, unit), f"≤ {_shown(limit, unit)}", value <= limit, value)


def at_least(what: str, value: float, limit: float, unit: str = "") -> Check:
    """The value may not be below the limit."""
    return Check(what, _shown(value, unit), f"≥ {_shown(limit, unit)}", value >= limit, value)


def equal(what: str, value: float, expected: float, unit: str = "") -> Check:
    """The value must be this one."""
    return Check(what, _shown(value, unit), _shown(expected, unit), value == expected, value)


def nothing_left(left: Mapping[str, float]) -> list[Check]:
    """Each of these must be zero, or below: of descriptors there may be fewer than at the start."""
    return [Check(f"left: {name}", f"{n:g}", "0", n <= 0, n) for name, n in left.items()]


def table(checks: Sequence[Check]) -> str:
    """What, found, target, ok or FAILED."""
    rows = [("what", "found", "target", "")]
    rows += [(one.what, one.found, one.target, "ok" if one.ok else "FAILED") for one in checks]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def record(
    file: Path, kind: Literal["chaos", "soak", "fuzz"], checks: Iterable[Check], parameters: Mapping[str, Any]
) -> None:
    """Write what was found, with machine, versions, commit and how it was asked for."""
    content = {
        "kind": kind,
        "parameters": dict(parameters),
        "checks": [asdict(check) for check in checks],
        "environment": environment.describe(),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n")


def _shown(value: float, unit: str) -> str:
    return f"{value:.4g} {unit}".rstrip()
