"""When requests come: arrival processes, each with a mean rate that a load factor scales.

All are drawn from a given generator of random numbers: the same seed gives the same times. Rates are per
second, times in seconds; a process may be asked for times before 0, where it goes on as it is around 0.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from random import Random
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt

__all__ = [
    "Arrivals",
    "Burst",
    "Diurnal",
    "Gamma",
    "OnOff",
    "Poisson",
    "Process",
    "Ramp",
    "Section",
    "Spike",
    "seeded",
]


class Section(BaseModel):
    """A part of a workload's description: unknown keys are errors, numbers are finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Process(Section, ABC):
    """One arrival process."""

    @abstractmethod
    def times(self, rng: Random, start: float, stop: float, scale: float) -> Iterator[float]:
        """Times in `[start, stop)`, ascending. `scale` multiplies the rate."""


class Poisson(Process):
    """Independent arrivals at one rate."""

    process: Literal["poisson"] = "poisson"
    rate: PositiveFloat

    def times(self, rng: Random, start: float, stop: float, scale: float) -> Iterator[float]:
        """Exponential gaps."""
        rate = self.rate * scale
        at = start + rng.expovariate(rate)
        while at < stop:
            yield at
            at += rng.expovariate(rate)


class Gamma(Process):
    """A renewal process with gaps of coefficient of variation `cv`: 1 is Poisson, above 1 is burstier."""

    process: Literal["gamma"] = "gamma"
    rate: PositiveFloat
    cv: PositiveFloat = 2.0

    def times(self, rng: Random, start: float, stop: float, scale: float) -> Iterator[float]:
        """Gamma gaps: shape 1/cv², mean 1/rate."""
        shape = 1 / self.cv**2
        mean_gap = 1 / (self.rate * scale)
        # The first gap is a random part of one, so that a bursty process does not begin with a burst.
        at = start + rng.gammavariate(shape, mean_gap / shape) * rng.random()
        while at < stop:
            yield at
            at += rng.gammavariate(shape, mean_gap / shape)


class OnOff(Process):
    """Poisson while on, silent while off; both last exponentially long. `rate` is the mean over both."""

    process: Literal["on_off"] = "on_off"
    rate: PositiveFloat
    on_s: PositiveFloat = 5.0
    off_s: PositiveFloat = 15.0

    def times(self, rng: Random, start: float, stop: float, scale: float) -> Iterator[float]:
        """Interrupted Poisson; it starts on with the share of time that it is on."""
        busy = self.rate * scale * (self.on_s + self.off_s) / self.on_s
        at, on = start, rng.random() < self.on_s / (self.on_s + self.off_s)
        while at < stop:
            end = at + rng.expovariate(1 / (self.on_s if on else self.off_s))
            if on:
                yield from Poisson(rate=busy).times(rng, at, min(end, stop), 1.0)
            at, on = end, not on


class _Varying(Process):
    """Poisson with a rate that depends on time, by thinning (Lewis and Shedler 1979)."""

    rate: PositiveFloat

    @abstractmethod
    def at(self, time: float, stop: float) -> float:
        """The rate at `time`; the run ends at `stop`."""

    @abstractmethod
    def peak(self) -> float:
        """No rate is above this one."""

    def times(self, rng: Random, start: float, stop: float, scale: float) -> Iterator[float]:
        """Candidates at the peak rate, each kept with the share that its time deserves."""
        peak = self.peak()
        for time in Poisson(rate=peak).times(rng, start, stop, scale):
            if rng.random() * peak < self.at(time, stop):
                yield time


class Diurnal(_Varying):
    """A day in `period_s`: from `rate * (1 - depth)` at 0 to `rate * (1 + depth)` half a period later."""

    process: Literal["diurnal"] = "diurnal"
    period_s: PositiveFloat = 120.0
    depth: float = Field(0.8, ge=0, le=1)

    def at(self, time: float, stop: float) -> float:  # noqa: ARG002 - a day does not depend on the end
        """The sine."""
        return self.rate * (1 - self.depth * math.cos(2 * math.pi * time / self.period_s))

    def peak(self) -> float:
        """At noon."""
        return self.rate * (1 + self.depth)


class Ramp(_Varying):
    """From `rate` at 0 straight to `to` at the end of the run."""

    process: Literal["ramp"] = "ramp"
    to: PositiveFloat

    def at(self, time: float, stop: float) -> float:
        """On the line; before 0 as at 0."""
        share = min(1.0, max(0.0, time / stop))
        return self.rate + (self.to - self.rate) * share

    def peak(self) -> float:
        """The higher end."""
        return max(self.rate, self.to)


class Spike(_Varying):
    """`rate`, but `factor` times that from `at_s` on for `width_s`."""

    process: Literal["spike"] = "spike"
    at_s: NonNegativeFloat
    width_s: PositiveFloat = 10.0
    factor: float = Field(5.0, gt=1)

    def at(self, time: float, stop: float) -> float:  # noqa: ARG002 - the spike has its own time
        """Inside the spike or outside."""
        return self.rate * (self.factor if self.at_s <= time < self.at_s + self.width_s else 1.0)

    def peak(self) -> float:
        """Inside."""
        return self.rate * self.factor


class Burst(Process):
    """`size` at the same moment, at `first_s` and again each `every_s`, which more load makes shorter."""

    process: Literal["burst"] = "burst"
    size: PositiveInt
    every_s: PositiveFloat
    first_s: NonNegativeFloat = 0.0

    def times(self, rng: Random, start: float, stop: float, scale: float) -> Iterator[float]:  # noqa: ARG002
        """Nothing random."""
        every = self.every_s / scale
        number = max(0, math.ceil((start - self.first_s) / every))
        while (at := self.first_s + number * every) < stop:
            for _ in range(self.size):
                yield at
            number += 1


Arrivals = Annotated[Poisson | Gamma | OnOff | Diurnal | Ramp | Spike | Burst, Field(discriminator="process")]


def seeded(*parts: object) -> Random:
    """Random numbers that depend on these parts alone, the same in every process."""
    return Random(":".join(map(str, parts)))  # noqa: S311 - a workload that can be repeated, nothing secret
