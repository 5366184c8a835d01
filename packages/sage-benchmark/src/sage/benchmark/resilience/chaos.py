"""`./manage.sh chaos`: what clients and engines do to each other, on purpose, and what must hold then."""

from __future__ import annotations

from typing import Final

from sage.benchmark.resilience.disconnects import DISCONNECTS
from sage.benchmark.resilience.kills import KILLS, POISON
from sage.benchmark.resilience.options import Experiment
from sage.benchmark.resilience.storms import OVERLOAD, RETRIES, SLOW_HEADS
from sage.benchmark.resilience.wrongs import NONSENSE_TALK, READERS, STALLS

__all__ = ["EXPERIMENTS"]

EXPERIMENTS: Final[tuple[Experiment, ...]] = (
    DISCONNECTS,
    KILLS,
    POISON,
    RETRIES,
    OVERLOAD,
    SLOW_HEADS,
    NONSENSE_TALK,
    READERS,
    STALLS,
)
