"""What steps take beyond the formula: factors drawn from given quantiles, seeded, each held for a while."""

from __future__ import annotations

from bisect import bisect_right
from random import Random

from sage.middleware.control_plane.simulator.fleet import PROBABILITIES, Dispersion

__all__ = ["Variation"]


class Variation:
    """The current factor of one engine, by a `Dispersion`."""

    __slots__ = ("_factor", "_factors", "_random", "_until", "hold_s")

    def __init__(self, model: Dispersion, random: Random) -> None:
        self._factors = model.factors
        self.hold_s = model.hold_s
        self._random = random
        self._factor = 1.0
        self._until = 0.0

    def at(self, now: float) -> float:
        """The factor of a step that starts at `now`; times must not go back."""
        if now >= self._until:
            self._factor = self._draw()
            self._until = now + self._random.expovariate(1.0 / self.hold_s) if self.hold_s else now
        return self._factor

    def _draw(self) -> float:
        """By the inverse of the distribution."""
        chance = self._random.random()
        upper = bisect_right(PROBABILITIES, chance)
        low, high = PROBABILITIES[upper - 1], PROBABILITIES[upper]
        share = (chance - low) / (high - low)
        return self._factors[upper - 1] * (1.0 - share) + self._factors[upper] * share
