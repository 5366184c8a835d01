"""What the requests of a stream have in common: sizes, tenants, and what a gateway would tell of them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import Annotated, Final

from pydantic import BeforeValidator, Field, NonNegativeFloat, PositiveFloat, PositiveInt

from sage.common.config import SloConfig
from sage.common.telemetry import RequestClass
from sage.middleware.control_plane.simulator.arrivals import Section, seeded
from sage.middleware.control_plane.simulator.types import SimRequest
from sage.middleware.control_plane.types import Job, Slo
from sage.middleware.engines.port import Capability

__all__ = [
    "BLOCK_BYTES",
    "TRUE_BYTES",
    "Length",
    "Models",
    "Setting",
    "Step",
    "Stream",
    "Tenants",
    "bytes_per_token",
    "constant",
]

BLOCK_BYTES: Final = 256  # of the prefix index
TRUE_BYTES: Final = 4.3  # of a token, on average: not the rule of thumb, so that there is something to learn
_TRUE_SPREAD: Final = 0.08
_RULE_OF_THUMB: Final = 4  # bytes of a token, as the gateway takes it
_ENVELOPE: Final = 200  # bytes of JSON around a text
_NEEDS: Final = {need: frozenset((need,)) for need in Capability}


@dataclass(frozen=True, slots=True)
class Models:
    """The ids that requests ask for; empty = the fleet has no such model."""

    generate: str = ""
    embed: str = ""
    rerank: str = ""

    def of(self, need: Capability) -> str:
        """The one that serves a need."""
        if need is Capability.RERANK:
            return self.rerank
        return self.embed if need is Capability.EMBEDDINGS else self.generate


@dataclass(frozen=True, slots=True)
class Setting:
    """What a workload is drawn for.

    `duration` in seconds; `load` multiplies all rates; public traces lie below `data_dir`.
    """

    seed: int
    duration: float
    models: Models
    load: float = 1.0
    data_dir: Path | None = None


class _Length(Section):
    """A lognormal size: `median`, `spread` (sigma of its logarithm), cut to `least`…`most`."""

    median: PositiveFloat
    spread: NonNegativeFloat = 0.6
    least: PositiveFloat = 1
    most: PositiveFloat = 32768

    def draw(self, rng: Random) -> float:
        """One size."""
        value = rng.lognormvariate(math.log(self.median), self.spread) if self.spread else self.median
        return min(self.most, max(self.least, value))

    def whole(self, rng: Random) -> int:
        """One size, as a count."""
        return max(1, round(self.draw(rng)))


def _constant(value: object) -> object:
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return {"median": value, "spread": 0.0} if plain else value


Length = Annotated[_Length, BeforeValidator(_constant)]


def constant(median: float, *, spread: float = 0.0, least: float = 1, most: float = 32768) -> _Length:
    """A size in Python; without `spread` always the same."""
    return _Length(median=median, spread=spread, least=least, most=most)


class Tenants(Section):
    """Who sends: `count` tenants whose shares fall as rank^-zipf; the first sends `noisy` times its share."""

    count: PositiveInt = 1
    zipf: NonNegativeFloat = 0.0
    noisy: PositiveFloat = 1.0
    prefix: str = "tenant"

    def draw(self, rng: Random) -> Iterator[str]:
        """A tenant for each request, without end."""
        names = [f"{self.prefix}-{number}" for number in range(self.count)]
        shares = [rank**-self.zipf for rank in range(1, self.count + 1)]
        weights = list(accumulate([shares[0] * self.noisy, *shares[1:]]))
        while True:
            yield rng.choices(names, cum_weights=weights)[0]


class Stream(Section, ABC):
    """Requests of one kind, in time order.

    A stream is drawn from random numbers of its own: a second one beside it changes nothing about the first.
    """

    name: str = Field("", pattern=r"^[A-Za-z0-9_-]{0,64}$", description="empty = its kind")
    model: str = Field("", description="empty = the first of the fleet that can")
    tenants: Tenants = Tenants()
    slo: SloConfig | None = Field(None, description="empty = that of the class")
    deadline_s: PositiveFloat | None = Field(None, description="hard, from its arrival")
    patience_s: PositiveFloat | None = Field(None, description="the client goes away then")
    priority: int = 0

    @property
    @abstractmethod
    def title(self) -> str:
        """Its name, or its kind."""

    @abstractmethod
    def needs(self) -> frozenset[Capability]:
        """What a fleet must be able to do for it."""

    @abstractmethod
    def draw(self, setting: Setting, rng: Random) -> Iterator[SimRequest]:
        """Its requests by arrival."""

    def requests(self, setting: Setting) -> Iterator[SimRequest]:
        """Its requests by arrival, from random numbers that depend on seed and title alone."""
        return self.draw(setting, seeded(setting.seed, self.title))

    def step(
        self, need: Capability, request_class: RequestClass, setting: Setting, max_tokens: int | None = None
    ) -> Step:
        """What all its requests with this need have in common."""
        goal = Slo(self.slo.ttft_s, self.slo.tpot_s, self.slo.total_s) if self.slo else None
        model = self.model or setting.models.of(need)
        return Step(need, request_class, model, max_tokens, goal, self.priority)

    def request(self, at: float, made: Job, tokens: int, output: int) -> SimRequest:
        """One of its requests, with deadline and patience."""
        return SimRequest(at, made, output, tokens, self.deadline_s, (), self.patience_s)


@dataclass(frozen=True, slots=True)
class Step:
    """What many requests have in common."""

    need: Capability
    request_class: RequestClass
    model: str
    max_tokens: int | None = None
    slo: Slo | None = None
    priority: int = 0

    def job(
        self,
        ident: str,
        tenant: str,
        size: int,
        *,
        texts: int = 0,
        blocks: tuple[int, ...] = (),
        parent: str = "",
    ) -> Job:
        """What a gateway tells the scheduler of a prompt of `size` bytes: it does not know its tokens."""
        writes = self.need in (Capability.CHAT, Capability.COMPLETIONS)
        return Job(
            ident,
            self.model,
            self.request_class,
            tenant,
            _NEEDS[self.need],
            size + _ENVELOPE,
            max(1, size // _RULE_OF_THUMB),
            self.max_tokens,
            texts,
            size,
            self.slo,
            self.priority,
            blocks,
            "" if writes else f"{self.model}:{self.need}",
            writes,
            self.request_class is RequestClass.EMBED_INTERACTIVE,
            parent,
        )


def bytes_per_token(rng: Random) -> float:
    """Of one text: languages and formats differ."""
    return TRUE_BYTES * rng.lognormvariate(0.0, _TRUE_SPREAD)
