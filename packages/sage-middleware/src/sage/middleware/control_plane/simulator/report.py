"""What one simulated run came to: pure functions from its result to figures. Intervals need several runs.

Definitions: TTFT = first byte - arrival. TPOT = (last - first) / (n - 1). E2E = last byte - arrival.
Attainment = requests that meet all limits of their goal / requests issued; what was shed, failed or given up
is a miss. Goodput = that count / wall, wall = 0 to the end of the last request. Latencies are those of
answered requests.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import ClassVar, Final, Literal

import msgspec

from sage.middleware.control_plane.simulator.types import LABEL, RequestResult, Result

__all__ = [
    "ALL",
    "QUANTILES",
    "Figure",
    "RunReport",
    "jain",
    "meets",
    "prediction_error",
    "quantile",
    "summarise",
    "wall",
]

ALL: Final = "all"  # the group of figures over all classes
QUANTILES: Final = (0.50, 0.90, 0.99)
_CURVE: Final = 200  # points that a distribution is reduced to
_LATENCIES: Final = (("ttft", "ttft_s"), ("tpot", "tpot_s"), ("e2e", "total_s"), ("queue", "queue_s"))


class Figure(msgspec.Struct, frozen=True):
    """One scalar of a run. `group` is a request class, `all`, or `engine NAME`."""

    name: str
    group: str
    value: float
    unit: str
    better: Literal["lower", "higher"]


class RunReport(msgspec.Struct, frozen=True, tag_field="label", tag=LABEL):
    """A run in figures. `outcomes`: class, outcome, count. `ttft_ms`: class, evenly spaced quantiles."""

    simulated: ClassVar[Literal[True]] = True

    policy: str
    fleet: str
    seed: int
    wall_s: float
    outcomes: dict[str, dict[str, int]]
    figures: list[Figure]
    ttft_ms: dict[str, list[float]]


def summarise(result: Result) -> RunReport:
    """All figures of a run. ValueError for a run without requests: a missing value is an error."""
    if not result.requests:
        raise ValueError("A run without a request has no figures.")
    span = wall(result.requests)
    by_class: dict[str, list[RequestResult]] = {}
    for request in result.requests:
        by_class.setdefault(request.request_class, []).append(request)
    figures = _shares(ALL, result.requests, span)
    tenants = _by_tenant(result.requests)
    figures.append(Figure("jain", ALL, jain(tenants.values()), "ratio", "higher"))
    for name, requests in sorted(by_class.items()):
        figures += [*_shares(name, requests, span), *_latencies(name, requests)]
    for engine in result.engines:
        busy = engine.busy_s / result.end_s if result.end_s else 0.0
        figures.append(Figure("utilisation", f"engine {engine.name}", busy, "ratio", "higher"))
    return RunReport(
        policy=result.policy,
        fleet=result.fleet,
        seed=result.seed,
        wall_s=span,
        outcomes={name: dict(Counter(r.outcome for r in group)) for name, group in sorted(by_class.items())},
        figures=figures,
        ttft_ms={name: _curve(group) for name, group in sorted(by_class.items())},
    )


def meets(request: RequestResult) -> bool:
    """Whether it was answered inside all limits of its goal. One token has no TPOT, so no limit on it."""
    if request.outcome != "done":
        return False
    goal = request.slo
    checks = ((goal.ttft, request.ttft_s), (goal.tpot, request.tpot_s), (goal.total, request.total_s))
    return all(limit is None or value is None or value <= limit for limit, value in checks)


def wall(requests: Sequence[RequestResult]) -> float:
    """Seconds from the start of a run to the end of its last request."""
    return max(request.arrived + request.total_s for request in requests)


def jain(shares: Iterable[float]) -> float:
    """Jain's index (Σx)² / (n·Σx²): 1 = all equal, 1/n = one has it all. All 0 is equal, too.

    Formula: Jain, Chiu and Hawe 1984. ValueError without a share.
    """
    values = list(shares)
    if not values:
        raise ValueError("Fairness needs at least one share.")
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 1.0


def quantile(ordered: Sequence[float], q: float) -> float:
    """The `q`-quantile of ascending samples by nearest rank."""
    if not ordered:
        raise ValueError("There are no samples to summarise.")
    return ordered[max(1, math.ceil(q * len(ordered) - 1e-9)) - 1]


def prediction_error(requests: Iterable[RequestResult]) -> list[float]:
    """|predicted - actual| / actual of what was predicted at dispatch: first token, or answer; ascending.

    Only requests that were one call: the parts of one that was cut, or tried twice, are not recorded.
    """
    errors = []
    for request in requests:
        if request.outcome != "done" or request.attempts != 1 or request.predicted_s <= 0:
            continue
        reached = request.ttft_s if request.output_tokens else request.total_s
        if reached is not None and request.queue_s is not None and reached > request.queue_s:
            actual = reached - request.queue_s
            errors.append(abs(request.predicted_s - actual) / actual)
    return sorted(errors)


def _shares(group: str, requests: Sequence[RequestResult], span: float) -> list[Figure]:
    """Attainment, goodput and the like of one group; `span` in seconds."""
    met = sum(meets(request) for request in requests)
    tally = Counter(request.outcome for request in requests)
    figures = [
        Figure("attainment", group, met / len(requests), "ratio", "higher"),
        Figure("goodput", group, met / span if span else 0.0, "requests/s", "higher"),
        Figure("throughput", group, tally["done"] / span if span else 0.0, "requests/s", "higher"),
        Figure("shed", group, tally["rejected"] / len(requests), "ratio", "lower"),
        Figure("failed", group, tally["failed"] / len(requests), "ratio", "lower"),
    ]
    if errors := prediction_error(requests):
        figures += [
            Figure(f"prediction_error_p{round(q * 100)}", group, quantile(errors, q), "ratio", "lower")
            for q in (0.5, 0.9)
        ]
    return figures


def _latencies(group: str, requests: Sequence[RequestResult]) -> list[Figure]:
    """Percentiles in milliseconds. A class of which nothing was answered has none."""
    done = [request for request in requests if request.outcome == "done"]
    figures = []
    for name, field in _LATENCIES:
        samples = sorted(value for request in done if (value := getattr(request, field)) is not None)
        figures += [
            Figure(f"{name}_p{round(q * 100)}", group, quantile(samples, q) * 1000, "ms", "lower")
            for q in QUANTILES
            if samples
        ]
    return figures


def _by_tenant(requests: Iterable[RequestResult]) -> dict[str, float]:
    issued: Counter[str] = Counter()
    met: Counter[str] = Counter()
    for request in requests:
        issued[request.tenant] += 1
        met[request.tenant] += meets(request)
    return {tenant: met[tenant] / number for tenant, number in issued.items()}


def _curve(requests: Iterable[RequestResult]) -> list[float]:
    """Time to the first byte in milliseconds as at most 200 quantiles, each once."""
    samples = sorted(r.ttft_s for r in requests if r.outcome == "done" and r.ttft_s is not None)
    steps = min(_CURVE, len(samples))
    return [quantile(samples, rank / steps) * 1000 for rank in range(1, steps + 1)]
