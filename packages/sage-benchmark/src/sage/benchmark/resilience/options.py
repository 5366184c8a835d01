"""What an experiment is told."""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from sage.benchmark.resilience.report import Check

__all__ = ["Experiment", "Options"]


@dataclass(frozen=True, slots=True)
class Options:
    """How often, and by which dice."""

    count: int
    seed: int

    def dice(self, *names: object) -> random.Random:
        """Random numbers for a part of an experiment: the same for the same seed."""
        return random.Random(":".join(map(str, (self.seed, *names))))  # noqa: S311 - reproducible, not secret


@dataclass(frozen=True, slots=True)
class Experiment:
    """One of the long tests. `count`: how often it does what it does, unless it is told otherwise."""

    name: str
    about: str
    count: int
    run: Callable[[Options], Coroutine[Any, Any, list[Check]]]
