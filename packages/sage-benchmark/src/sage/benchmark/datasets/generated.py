"""Data of our own, made from a seed: what runs where no published data is at hand."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from sage.benchmark.datasets.port import TraceRequest

__all__ = ["texts", "trace"]

SUBJECTS: Final = (
    "The scheduler", "A bounded queue", "The embedding server", "Each tenant", "The first token",
    "A long prompt", "The cache", "An idle core", "The batch", "A cancelled request",
)  # fmt: skip
VERBS: Final = (
    "waits for", "shares", "delays", "measures", "moves", "outlives", "replaces", "rejects", "counts",
)  # fmt: skip
OBJECTS: Final = (
    "the slowest engine", "every running stream", "its own deadline", "the memory of a node", "a late answer",
    "the next free slot", "what came before it", "half of the traffic", "a single vector",
)  # fmt: skip
SEED: Final = 20260101
TEXTS: Final = 5000
SENTENCES: Final = (1, 12)  # of a text, as an abstract has them
REQUESTS: Final = 20_000
RATE: Final = 5.0
BURSTS: Final = 2.0  # coefficient of variation of the gaps
# Medians and spreads (of the logarithm) near those of public conversation traces.
PROMPT: Final = (900.0, 0.9)
OUTPUT: Final = (150.0, 0.8)


@dataclass(frozen=True, slots=True)
class _Texts:
    name: str = "generated_texts"
    licence: str = "MIT"
    path: None = None

    def items(self) -> Iterator[str]:
        rng = random.Random(SEED)  # noqa: S311 - reproducible data
        for _ in range(TEXTS):
            yield " ".join(_sentence(rng) for _ in range(rng.randint(*SENTENCES)))


@dataclass(frozen=True, slots=True)
class _Trace:
    name: str = "generated_trace"
    licence: str = "MIT"
    path: None = None

    def items(self) -> Iterator[TraceRequest]:
        return islice(_requests(random.Random(SEED)), REQUESTS)  # noqa: S311 - reproducible data


def texts(_data_dir: Path | None) -> _Texts:
    """5,000 texts of 1 to 12 sentences."""
    return _Texts()


def trace(_data_dir: Path | None) -> _Trace:
    """20,000 requests in bursts, 5 per second, with log-normal lengths."""
    return _Trace()


def _sentence(rng: random.Random) -> str:
    return f"{rng.choice(SUBJECTS)} {rng.choice(VERBS)} {rng.choice(OBJECTS)}."


def _requests(rng: random.Random) -> Iterator[TraceRequest]:
    at = 0.0
    while True:
        yield TraceRequest(at, _length(rng, PROMPT), _length(rng, OUTPUT))
        at += rng.gammavariate(1 / BURSTS**2, BURSTS**2 / RATE)


def _length(rng: random.Random, of: tuple[float, float]) -> int:
    median, spread = of
    return max(1, round(rng.lognormvariate(math.log(median), spread)))
