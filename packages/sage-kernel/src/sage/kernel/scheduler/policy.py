"""The port of policies: who goes first, and which of the nodes with room is taken.

A policy is a pure object: it sees a snapshot and a unit, reads no clock and draws no random number.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, TypeAlias

from sage.kernel.scheduler.snapshot import Snapshot
from sage.kernel.scheduler.state import State
from sage.kernel.scheduler.types import Unit

__all__ = ["Policy", "Score"]

Score: TypeAlias = tuple[float, ...]
"""Smaller is better; of nodes with the same score the first by name is taken."""


class Policy(Protocol):
    """Orders what waits and chooses among the nodes that have room."""

    @property
    def name(self) -> str:
        """The name by which it is found and reported."""
        ...

    @property
    def overtaking(self) -> int:
        """How many jobs may start before the first one that waits; then nodes are kept free for that one.

        0: nothing starts before the first one does.
        """
        ...

    def urgency(self, unit: Unit) -> float:
        """The smallest goes first. It may not change while the unit waits."""
        ...

    def score(self, state: State, unit: Unit) -> Score:
        """How good that node is for it, if it fits there."""
        ...

    def candidates(self, snapshot: Snapshot, unit: Unit) -> Iterator[State]:
        """All nodes that have room for it, the best score first, lazily: often only the first is taken."""
        ...

    def reason(self, state: State, unit: Unit) -> str:
        """Why this node, the best of those with room, is taken."""
        ...
