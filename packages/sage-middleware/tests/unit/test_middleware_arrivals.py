"""Arrival processes: in order, inside their span, repeatable, and of the rate and shape that they claim."""

from __future__ import annotations

import statistics
from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage.middleware.control_plane.simulator.arrivals import (
    Burst,
    Diurnal,
    Gamma,
    OnOff,
    Poisson,
    Process,
    Ramp,
    Spike,
    seeded,
)

PROCESSES: list[Process] = [
    Poisson(rate=5),
    Gamma(rate=5, cv=3),
    OnOff(rate=5, on_s=2, off_s=6),
    Diurnal(rate=5, period_s=50, depth=0.9),
    Ramp(rate=2, to=8),
    Spike(rate=4, at_s=50, width_s=10, factor=5),
    Burst(size=10, every_s=2),
]


def times(
    process: Process, seed: int = 0, start: float = 0.0, stop: float = 400.0, scale: float = 1.0
) -> list[float]:
    return list(process.times(seeded(seed), start, stop, scale))


def mean_rate(process: Process, seconds: float = 4000.0, scale: float = 1.0) -> float:
    return len(times(process, stop=seconds, scale=scale)) / seconds


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
@given(seed=st.integers(0, 2**32), start=st.floats(-50, 0), span=st.floats(0.1, 80), scale=st.floats(0.1, 3))
def test_times_ascend_inside_their_span_and_repeat(
    process: Process, seed: int, start: float, span: float, scale: float
) -> None:
    found = times(process, seed, start, start + span, scale)
    assert found == sorted(found)
    assert all(start <= at < start + span for at in found)
    assert found == times(process, seed, start, start + span, scale)


@pytest.mark.parametrize("process", PROCESSES[:4] + PROCESSES[6:], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_the_mean_rate_is_the_one_that_is_named_times_the_load(process: Process, scale: float) -> None:
    assert mean_rate(process, scale=scale) == pytest.approx(5 * scale, rel=0.12)


def test_the_gaps_of_gamma_have_their_coefficient_of_variation() -> None:
    for cv in (0.5, 1.0, 3.0):
        gaps = [b - a for a, b in pairwise(times(Gamma(rate=10, cv=cv), stop=4000))]
        assert statistics.stdev(gaps) / statistics.mean(gaps) == pytest.approx(cv, rel=0.1)


def test_on_off_is_silent_for_its_share_of_the_time() -> None:
    gaps = [b - a for a, b in pairwise(times(OnOff(rate=20, on_s=5, off_s=15), stop=8000))]
    silent = sum(gap for gap in gaps if gap > 0.5) / 8000
    assert silent == pytest.approx(0.75, abs=0.06)


def test_a_day_is_busy_at_noon_and_quiet_at_night() -> None:
    found = times(Diurnal(rate=20, period_s=100, depth=0.9), stop=1000)
    noon = sum(40 <= at % 100 < 60 for at in found)
    night = sum(at % 100 < 10 or at % 100 >= 90 for at in found)
    assert noon > 8 * night


def test_a_ramp_grows_to_its_end() -> None:
    found = times(Ramp(rate=2, to=18), stop=1000)
    fifths = [sum(low <= at < low + 200 for at in found) for low in range(0, 1000, 200)]
    assert fifths == sorted(fifths)
    assert len(found) == pytest.approx(10 * 1000, rel=0.05)


def test_a_spike_is_where_it_is_put() -> None:
    found = times(Spike(rate=10, at_s=100, width_s=20, factor=5))
    assert sum(100 <= at < 120 for at in found) == pytest.approx(1000, rel=0.1)
    assert sum(at < 100 for at in found) == pytest.approx(1000, rel=0.1)


def test_a_burst_comes_at_once_and_again() -> None:
    found = times(Burst(size=3, every_s=10, first_s=4), start=-20, stop=15)
    assert found == [4.0] * 3 + [14.0] * 3
    assert times(Burst(size=1, every_s=10), start=5, stop=25) == [10, 20]
    assert times(Burst(size=1, every_s=10), stop=25, scale=2) == [0, 5, 10, 15, 20]


def test_random_numbers_depend_on_the_parts_alone() -> None:
    assert seeded(1, "chat").random() == seeded(1, "chat").random()
    assert seeded(1, "chat").random() != seeded(1, "embed").random()
    assert list(islice(Poisson(rate=1).times(seeded(0), 0, 1e9, 1), 3)) == times(Poisson(rate=1))[:3]
