"""Arms compared: the same load to each in interleaved blocks, metrics of each, ratios between them. Pure.

A block is one arm's run under one schedule. Block i of every arm had the same schedule, in the same minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np

from sage.benchmark import stats
from sage.benchmark.metrics import Kind, Limits, Record, attainment, e2e, meets, texts_per_s, tpot, ttft
from sage.benchmark.stats import Estimate, Samples, Statistic
from sage.benchmark.summary import Metric
from sage.common.errors import EngineError

__all__ = ["Block", "Goals", "Measure", "measures", "per_arm", "ratios", "significance"]

Goals = Mapping[Kind, Limits]
MS: Final = 1000.0


@dataclass(frozen=True, slots=True)
class Block:
    """What one arm answered in the `seconds` that start at `begin`, the end of its warm-up.

    `records` are whole: those of the warm-up are left out here. A request that had no answer after `timeout`
    seconds counts in the latencies as just that long, which is a lower bound; one that was refused or
    failed has no latency, and is a miss. `cores` are cores kept busy, by whose they were.
    """

    records: Sequence[Record]
    seconds: float
    begin: float
    timeout: float
    cores: Mapping[str, float] = field(default_factory=dict)

    def of(self, kind: Kind) -> list[Record]:
        """The open-loop requests of a class that were due in the window."""
        end = self.begin + self.seconds
        return [r for r in self.records if r.kind == kind and not r.closed and self.begin <= r.intended < end]


@dataclass(frozen=True, slots=True)
class Measure:
    """One scalar of an arm: `of` the samples of all its blocks. `kind` says which interval suits it."""

    name: str
    group: str
    unit: str
    direction: Literal["lower", "higher"]
    samples: Callable[[Block], list[float]]
    of: Statistic
    kind: Literal["percentile", "share", "blocks"]
    q: float = 0.0

    def estimate(self, blocks: Sequence[Block], seed: int) -> Estimate:
        """Its value and interval. Raises EngineError when a block has nothing to say about it."""
        samples = self.by_block(blocks)
        pooled = [sample for block in samples for sample in block]
        if self.kind == "percentile":
            return stats.percentile(pooled, self.q)
        if self.kind == "share":
            return stats.proportion(round(sum(pooled)), len(pooled))
        return stats.over_blocks(samples, self.of, seed=seed)

    def by_block(self, blocks: Sequence[Block]) -> list[list[float]]:
        """The samples of each block. Raises EngineError when one has none."""
        samples = [self.samples(block) for block in blocks]
        if not all(samples):
            number = samples.index([])
            said = next((r.error for r in blocks[number].records if r.error), "nothing")
            raise EngineError(
                f"Block {number} has no sample of {self.group} {self.name}; its first error: {said}."
            )
        return samples


def measures(goals: Goals) -> list[Measure]:
    """What is told of each arm. `goals` are those of the open-loop classes."""
    kinds = tuple(goals)
    chat = [
        *(_latency("ttft", "chat", ttft, q) for q in (0.5, 0.99)),
        *(_latency("tpot", "chat", tpot, q) for q in (0.5, 0.99)),
    ]
    return [
        *chat,
        *(_latency("e2e", "embed", e2e, q) for q in (0.5, 0.99)),
        Measure("texts_per_s", "bulk", "texts/s", "higher", _bulk_rate, _mean, "blocks"),
        *(_attainment(kind, (kind,), goals) for kind in kinds),
        _attainment("joint", kinds, goals),
        *(_goodput(kind, (kind,), goals) for kind in kinds),
        _goodput("joint", kinds, goals),
        Measure("busy_cores", "machine", "cores", "higher", _busy, _mean, "blocks"),
    ]


def per_arm(blocks: Sequence[Block], goals: Goals, *, seed: int) -> list[Metric]:
    """Every measure of one arm."""
    return [_metric(measure, measure.estimate(blocks, seed)) for measure in measures(goals)]


def ratios(arm: Sequence[Block], baseline: Sequence[Block], goals: Goals, *, seed: int) -> list[Metric]:
    """Every measure of `arm` over that of `baseline`; block i of the one pairs with block i of the other."""
    return [
        _metric(
            measure,
            stats.ratio(measure.by_block(arm), measure.by_block(baseline), measure.of, seed=seed),
            unit="ratio",
        )
        for measure in measures(goals)
    ]


def significance(
    arm: Sequence[Block], baseline: Sequence[Block], goals: Goals, *, seed: int
) -> dict[str, float]:
    """p of the paired sign-flip test on each measure's blocks, Holm-corrected over the measures."""
    raw = {}
    for measure in measures(goals):
        first, second = (
            [measure.of(np.asarray(block)) for block in measure.by_block(blocks)]
            for blocks in (arm, baseline)
        )
        raw[f"{measure.group}.{measure.name}"] = stats.paired(first, second, seed=seed).p
    return stats.holm(raw)


def _metric(measure: Measure, at: Estimate, unit: str = "") -> Metric:
    return Metric(
        measure.name, measure.group, at.value, at.low, at.high, at.n, unit or measure.unit, measure.direction,
        at.starred,
    )  # fmt: skip


def _mean(samples: Samples) -> float:
    return float(samples.mean())


def _latency(name: str, kind: Kind, of: Callable[[Record], float | None], q: float) -> Measure:
    def samples(block: Block) -> list[float]:
        found = []
        for record in block.of(kind):
            value = of(record) if record.outcome == "ok" else None
            if record.outcome == "timeout" and name != "tpot":
                value = block.timeout
            if value is not None:
                found.append(value * MS)
        return found

    def statistic(values: Samples) -> float:
        return stats.quantile(values, q)

    return Measure(f"{name}_p{round(q * 100)}", kind, "ms", "lower", samples, statistic, "percentile", q)


def _attainment(name: str, kinds: Sequence[Kind], goals: Goals) -> Measure:
    def samples(block: Block) -> list[float]:
        return [float(meets(record, goals[kind])) for kind in kinds for record in block.of(kind)]

    return Measure("attainment", name, "ratio", "higher", samples, _mean, "share")


def _goodput(name: str, kinds: Sequence[Kind], goals: Goals) -> Measure:
    def samples(block: Block) -> list[float]:
        met = sum(attainment(block.of(kind), goals[kind])[0] for kind in kinds)
        return [met / block.seconds]

    return Measure("goodput", name, "requests/s", "higher", samples, _mean, "blocks")


def _bulk_rate(block: Block) -> list[float]:
    bulk = [record for record in block.records if record.kind == "bulk"]
    return [texts_per_s(bulk, block.seconds, begin=block.begin)]


def _busy(block: Block) -> list[float]:
    return [sum(block.cores.values())]
