"""When requests leave: pure functions of their arguments, so that the same seed gives the same schedule.

Every source is a sorted list of seconds from the start, all below `duration`; `mixed` makes arrivals of them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from sage.benchmark.load.plan import Arrival, Request, Shot
from sage.benchmark.metrics import Kind

__all__ = ["gamma", "mixed", "on_off", "poisson", "replay", "shots"]


def poisson(*, rate: float, duration: float, seed: int) -> list[float]:
    """A Poisson process: exponential gaps of mean 1/`rate`."""
    return gamma(rate=rate, duration=duration, seed=seed, cv=1.0)


def gamma(*, rate: float, duration: float, seed: int, cv: float) -> list[float]:
    """Gamma gaps of mean 1/`rate` and coefficient of variation `cv`: 1 is Poisson, above it comes in bursts.

    Shape 1/cv², scale cv²/rate.
    """
    _check(rate, duration)
    if cv <= 0:
        raise ValueError(f"The coefficient of variation must be above 0, got {cv}.")
    rng = random.Random(seed)  # noqa: S311 - a reproducible schedule, nothing secret
    shape, scale = 1 / cv**2, cv**2 / rate
    return _walk(lambda: rng.gammavariate(shape, scale), duration)


def on_off(*, rate: float, duration: float, seed: int, on: float, off: float) -> list[float]:
    """Poisson bursts: `on` seconds with load, `off` without, in turn. `rate` is the mean over both."""
    _check(rate, duration)
    if on <= 0 or off < 0:
        raise ValueError(f"An on/off source needs on > 0 and off >= 0 seconds, got {on} and {off}.")
    # A process on busy time alone, stretched by the silences that lie before each arrival.
    periods = duration / (on + off)
    busy = int(periods) * on + min(on, (periods - int(periods)) * (on + off))
    times = poisson(rate=rate * (on + off) / on, duration=busy, seed=seed)
    return [at + int(at / on) * off for at in times]


def replay(recorded: Sequence[float], *, duration: float, speed: float = 1.0) -> list[float]:
    """Recorded arrivals: the first one at 0, `speed` times as fast, cut at `duration`.

    ValueError for a list that is empty or not sorted.
    """
    if not recorded or any(later < earlier for earlier, later in pairwise(recorded)):
        raise ValueError("A recorded list of arrivals must hold at least one time and be sorted.")
    _check(speed, duration)
    times = ((at - recorded[0]) / speed for at in recorded)
    return [at for at in times if at < duration]


def mixed(sources: Mapping[Kind, Sequence[float]]) -> list[Arrival]:
    """The arrivals of several classes in order of time, numbered."""
    found = sorted((at, kind) for kind, times in sources.items() for at in times)
    return [Arrival(index, at, kind) for index, (at, kind) in enumerate(found)]


def shots(
    arrivals: Sequence[Arrival], targets: Mapping[Kind, str], make: Callable[[Arrival], Request]
) -> tuple[Shot, ...]:
    """Each arrival with its request and the target of its class."""
    return tuple(Shot(arrival, targets[arrival.kind], make(arrival)) for arrival in arrivals)


def _check(rate: float, duration: float) -> None:
    if rate <= 0 or duration <= 0:
        raise ValueError(f"A schedule needs rate > 0 and duration > 0, got {rate} and {duration}.")


def _walk(gap: Callable[[], float], duration: float) -> list[float]:
    times: list[float] = []
    at = gap()
    while at < duration:
        times.append(at)
        at += gap()
    return times
