"""When an engine that fails or falls silent gets no more work, and when it may show that it is well."""

from __future__ import annotations

from typing import Final

import msgspec

__all__ = ["FAULTS_TO_EJECT", "Breaker", "Silence"]

FAULTS_TO_EJECT: Final = 5
FIRST_EJECTION_S: Final = 10.0
LONGEST_EJECTION_S: Final = 300.0
DEGRADED_AFTER_S: Final = 30.0
EJECTED_AFTER_S: Final = 60.0


class Breaker(msgspec.Struct):
    """Ejects an engine after consecutive faults, for 10 s · 2^k; then one request at a time probes it.

    `dead`: the last fault was a refused connection, so that there is nobody to be lenient with.
    """

    faults: int = 0
    ejections: int = 0
    until: float = 0.0
    dead: bool = False

    @property
    def tripped(self) -> bool:
        """Ejected, or on probation."""
        return self.faults >= FAULTS_TO_EJECT

    def open(self, now: float) -> bool:
        """Whether it is ejected now."""
        return self.faults >= FAULTS_TO_EJECT and now < self.until

    def fault(self, now: float, *, refused: bool) -> None:
        """The engine failed. What was in flight at an ejection and fails during it does not lengthen it."""
        self.faults += 1
        self.dead = refused
        if self.tripped and now >= self.until:
            self.until = now + min(FIRST_EJECTION_S * 2.0**self.ejections, LONGEST_EJECTION_S)
            self.ejections += 1

    def eject(self, now: float) -> None:
        """Take it out at once."""
        self.faults = max(self.faults, FAULTS_TO_EJECT - 1)
        self.fault(now, refused=False)

    def success(self) -> None:
        """The engine served a request: it is well."""
        self.faults = self.ejections = 0
        self.until = 0.0
        self.dead = False


class Silence:
    """How long an engine with work has had nothing to say. `since`: its last sign of life."""

    __slots__ = ("degraded", "since")

    def __init__(self) -> None:
        self.since = 0.0
        self.degraded = False

    def sign(self, now: float) -> None:
        """It lives."""
        self.since = now
        self.degraded = False

    def look(self, now: float, allowed: float) -> bool:
        """Notice a hang; True when it has lasted so long that the engine must be ejected.

        `allowed`: the silence in seconds that its work explains.
        """
        silent = now - self.since - allowed
        self.degraded = silent >= DEGRADED_AFTER_S
        return silent >= EJECTED_AFTER_S
