"""From records to metrics: each scalar with its interval, n, unit and direction. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from sage.benchmark import stats
from sage.benchmark.metrics import (
    CONVERSATIONAL,
    EMBEDDING,
    Kind,
    Limits,
    Record,
    attainment,
    e2e,
    itl,
    lag,
    texts_per_s,
    tpot,
    ttft,
)
from sage.common.errors import EngineError

__all__ = ["LAG_FLOOR", "LAG_SHARE", "LIMITS", "Metric", "check_lag", "counts", "summarise"]

LIMITS: Final[Mapping[Kind, Limits]] = {
    "chat": CONVERSATIONAL,
    "embed": EMBEDDING,
    "bulk": Limits(),
}
LAG_FLOOR: Final = 0.005
LAG_SHARE: Final = 0.05
MS: Final = 1000.0
QUANTILES: Final = (0.50, 0.90, 0.99)


@dataclass(frozen=True, slots=True)
class Metric:
    """One scalar of a run. `group` is the class it belongs to, or `client` for the generator itself."""

    name: str
    group: str
    value: float
    low: float
    high: float
    n: int
    unit: str
    direction: Literal["lower", "higher"]
    starred: bool = False


def counts(records: Iterable[Record]) -> dict[str, dict[str, int]]:
    """Requests by class and outcome; `issued` is their sum."""
    table: dict[str, dict[str, int]] = {}
    for kind, tally in _tallies(records).items():
        table[kind] = {"issued": tally.total(), **{o: tally[o] for o in ("ok", "shed", "failed", "timeout")}}
    return table


def summarise(records: Sequence[Record], wall: float, *, seed: int) -> list[Metric]:
    """All metrics of a run that took `wall` seconds from its first planned send to its last answer.

    Latencies are those of answered requests; the others count in attainment and goodput as misses.
    Raises EngineError when a class had no answer at all: a missing value is an error, never a hole.
    """
    metrics: list[Metric] = []
    for kind in _tallies(records):
        of_kind = [record for record in records if record.kind == kind]
        answered = [record for record in of_kind if record.outcome == "ok"]
        if not answered:
            raise EngineError(
                f"None of the {len(of_kind)} {kind} requests was answered; the first said: "
                f"{of_kind[0].error or of_kind[0].outcome}."
            )
        latencies = _chat if kind == "chat" else _embed
        metrics += [*latencies(answered, wall, seed), *_slo(kind, of_kind, answered, wall)]
    return [*metrics, *_percentiles("lag", "client", _lags(records))]


def check_lag(records: Sequence[Record]) -> str:
    """Why the run is INVALID, or an empty string.

    The client may be late by at most 5 ms or 5 % of the median latency (the smallest one that is reported),
    whichever is more, at its 99th percentile: beyond that it measures itself. A closed loop has no lag.
    """
    answered = [record for record in records if record.outcome == "ok" and not record.closed]
    by_kind = ([ttft(r) for r in answered if r.kind == kind] for kind in _tallies(answered))
    medians = [stats.percentile(latencies, 0.5).value for latencies in by_kind]
    bound = max(LAG_FLOOR, LAG_SHARE * min(medians, default=0.0))
    late = stats.percentile(_lags(records), 0.99).value
    if late <= bound:
        return ""
    return (
        f"the client was late by {late * MS:.1f} ms at p99, more than {bound * MS:.1f} ms: it measured itself"
    )


def _lags(records: Sequence[Record]) -> list[float]:
    return [lag(record) for record in records if not record.closed] or [0.0]


def _tallies(records: Iterable[Record]) -> dict[Kind, Counter[str]]:
    tallies: dict[Kind, Counter[str]] = {}
    for record in sorted(records, key=lambda r: r.kind):
        tallies.setdefault(record.kind, Counter())[record.outcome] += 1
    return tallies


def _chat(answered: Sequence[Record], wall: float, seed: int) -> list[Metric]:
    per_token = [value for record in answered if (value := tpot(record)) is not None]
    gaps = [gap for record in answered for gap in itl(record)]
    tokens = [float(record.completion_tokens or len(record.pieces)) for record in answered]
    rate = stats.mean(tokens, seed=seed).scaled(len(tokens) / wall)
    return [
        *_percentiles("ttft", "chat", [ttft(record) for record in answered]),
        *(_percentiles("tpot", "chat", per_token) if per_token else ()),
        *(_percentiles("itl", "chat", gaps) if gaps else ()),
        *_percentiles("e2e", "chat", [e2e(record) for record in answered]),
        _metric("output_tokens_per_s", "chat", rate, "tokens/s", "higher"),
    ]


def _embed(answered: Sequence[Record], wall: float, seed: int) -> list[Metric]:
    kind = answered[0].kind
    latencies = [e2e(record) for record in answered]
    average = stats.mean(latencies, seed=seed).scaled(MS)
    metrics = [
        *_percentiles("e2e", kind, latencies),
        _metric("e2e_mean", kind, average, "ms", "lower"),
    ]
    if kind == "bulk":
        texts = texts_per_s(answered, wall)
        # One run has one such rate: an interval of it needs blocks, as `sage.benchmark.arms` has them.
        rate = stats.Estimate(texts, texts, texts, 1)
        metrics.append(_metric("texts_per_s", kind, rate, "texts/s", "higher"))
    return metrics


def _slo(kind: Kind, issued: Sequence[Record], answered: Sequence[Record], wall: float) -> list[Metric]:
    share = stats.proportion(*attainment(issued, LIMITS[kind]))
    served = stats.proportion(len(answered), len(issued))
    per_second = len(issued) / wall
    return [
        _metric("attainment", kind, share, "ratio", "higher"),
        _metric("goodput", kind, share.scaled(per_second), "requests/s", "higher"),
        _metric("throughput", kind, served.scaled(per_second), "requests/s", "higher"),
    ]


def _percentiles(name: str, group: str, seconds: Sequence[float]) -> list[Metric]:
    return [
        _metric(f"{name}_p{round(q * 100)}", group, stats.percentile(seconds, q).scaled(MS), "ms", "lower")
        for q in QUANTILES
    ]


def _metric(
    name: str, group: str, at: stats.Estimate, unit: str, direction: Literal["lower", "higher"]
) -> Metric:
    return Metric(name, group, at.value, at.low, at.high, at.n, unit, direction, at.starred)
