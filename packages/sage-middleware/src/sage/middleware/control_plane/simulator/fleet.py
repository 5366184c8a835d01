"""A fleet: the engines of a simulated run and the devices that they share, as written in `fleet.yaml`.

Times are seconds. The coefficients are those that the live cost models learn, so that a recorded run fits.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from sage.common.errors import NotFoundError
from sage.middleware.control_plane.fleet import Template
from sage.middleware.control_plane.simulator.schema import read_checked
from sage.middleware.engines.port import Capability, EngineSpec

__all__ = [
    "PROBABILITIES",
    "DeviceModel",
    "Dispersion",
    "EmbedEngine",
    "EngineModel",
    "Fleet",
    "LlmEngine",
    "available_fleets",
    "engine_spec",
    "load_fleet",
]

_CAPABILITIES: Final = {
    "llm": frozenset((Capability.CHAT, Capability.COMPLETIONS)),
    "embedding": frozenset((Capability.EMBEDDINGS,)),
    "rerank": frozenset((Capability.RERANK,)),
}


PROBABILITIES: Final = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DeviceModel(_Section):
    """What the engines of one `group` share.

    While engines of different kinds compute beside each other each takes `1 + interference` times as long.
    Where more threads compute than there are `cores`, each takes `1 + barrier · (threads / cores - 1)` times
    as long on top: 1 is a fair share of the cores, more is what threads lose that wait for each other.
    """

    interference: NonNegativeFloat = 0.0
    cores: NonNegativeInt = 0  # 0 = cores are not what is short
    barrier: NonNegativeFloat = 1.0


class Dispersion(_Section):
    """How far steps are from what the formula says: quantiles of actual / predicted time.

    `factors` are those of `PROBABILITIES` (0, 1, 5, 10, 25, 50, 75, 90, 95, 99 and 100 %), linear between
    them. A factor that was drawn holds for `hold_s` seconds on average: what lies `t` seconds apart is then
    correlated by `exp(-t / hold_s)`; 0 = each step draws its own.
    """

    factors: Annotated[tuple[PositiveFloat, ...], Field(min_length=len(PROBABILITIES))]
    hold_s: NonNegativeFloat = 0.0

    @model_validator(mode="after")
    def _ascending(self) -> Dispersion:
        if len(self.factors) != len(PROBABILITIES) or list(self.factors) != sorted(self.factors):
            raise ValueError(f"`factors` are {len(PROBABILITIES)} quantiles, from the least to the greatest")
        return self


class _Engine(_Section):
    name: Annotated[str, Field(min_length=1)]
    model: Annotated[str, Field(min_length=1)]
    count: PositiveInt = 1
    group: str = ""
    cores: NonNegativeInt = 0
    cold_start_s: NonNegativeFloat = 10.0
    starts_up: bool = True  # false = it is loading when the run begins
    managed: bool = True  # its process is ours to restart
    min_replicas: NonNegativeInt = 1
    max_replicas: PositiveInt = 1
    noise: Annotated[float, Field(ge=0.0, le=2.0)] = 0.05  # sigma of the lognormal factor on each step
    dispersion: Dispersion | None = None  # in place of `noise`


class LlmEngine(_Engine):
    """Continuous batching: an iteration takes `a + b · decoding sequences + c · prefill tokens` seconds.

    It prefills at most `chunk` tokens in one iteration, runs `max_running` sequences and keeps the keys and
    values of `kv_tokens` tokens. Without a `prefix_cache` it computes every prompt from its first token on;
    the core is not told, as it is not by a live engine. Iterations that prefill vary by `first_token` where
    it is given: there a live engine also takes the request in, counts its tokens and begins the stream.
    """

    kind: Literal["llm"]
    a: PositiveFloat
    b: NonNegativeFloat
    c: PositiveFloat
    chunk: PositiveInt = 2048
    kv_tokens: PositiveInt = 65536
    prefix_cache: bool = True
    max_running: PositiveInt = 32
    first_token: Dispersion | None = None


class EmbedEngine(_Engine):
    """Embeds or reranks: a batch takes `s0 + s1 · tokens + s2 · texts` seconds on its own `cores`.

    A `greedy` one puts the texts of all calls that wait into batches of at most `batch_texts` texts and, but
    for the last text, `batch_tokens` tokens; a `single` one computes one call at a time. With `t` threads in
    place of its cores an `elastic` one is `(t / cores) ** scaling` times as fast. The answers of one batch
    leave one after the other, `handover_s` apart.
    """

    kind: Literal["embedding", "rerank"]
    s0: PositiveFloat
    s1: NonNegativeFloat
    s2: NonNegativeFloat = 0.0
    batching: Literal["greedy", "single"] = "greedy"
    batch_tokens: PositiveInt = 2048
    batch_texts: PositiveInt = 64
    handover_s: NonNegativeFloat = 0.0
    elastic: bool = False
    scaling: Annotated[float, Field(ge=0.0, le=1.0)] = 0.8
    max_running: PositiveInt = 32

    @model_validator(mode="after")
    def _elastic_needs_cores(self) -> EmbedEngine:
        if self.elastic and not self.cores:
            raise ValueError("an elastic engine needs `cores`, 1 or more, that it has when nobody lends any")
        return self


EngineModel = Annotated[LlmEngine | EmbedEngine, Field(discriminator="kind")]


class Fleet(_Section):
    """All of `fleet.yaml`. Devices are named by the engines' `group`; one not listed costs nothing."""

    name: Annotated[str, Field(min_length=1)]
    about: str = ""
    devices: dict[str, DeviceModel] = {}
    engines: Annotated[tuple[EngineModel, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _replicas_fit(self) -> Fleet:
        for engine in self.engines:
            if engine.min_replicas > engine.max_replicas:
                bounds = f"min_replicas {engine.min_replicas} above max_replicas {engine.max_replicas}"
                raise ValueError(f"{engine.name} has {bounds}")
        return self

    @model_validator(mode="after")
    def _names_fit(self) -> Fleet:
        names = [name for name, _ in self.instances()]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"the names {', '.join(twice)} are given to several engines; each needs its own")
        unknown = sorted(set(self.devices) - {engine.group for engine in self.engines})
        if unknown:
            raise ValueError(f"the devices {', '.join(unknown)} are the `group` of no engine")
        return self

    def instances(self) -> list[tuple[str, LlmEngine | EmbedEngine]]:
        """Every engine by its own name: `name`, or `name0`, `name1`, … where `count` is above 1."""
        return [
            (engine.name if engine.count == 1 else f"{engine.name}{index}", engine)
            for engine in self.engines
            for index in range(engine.count)
        ]

    def templates(self) -> tuple[Template, ...]:
        """All engines for the autoscaler; none if the number of none of them may change."""
        if all(engine.min_replicas == engine.max_replicas == 1 for engine in self.engines):
            return ()
        return tuple(
            Template(
                name,
                engine.model,
                "generate" if isinstance(engine, LlmEngine) else "embed",
                engine.min_replicas,
                engine.max_replicas,
                engine.group,
                engine.cores,
                engine.cold_start_s,
            )
            for name, engine in self.instances()
        )


def engine_spec(name: str, engine: LlmEngine | EmbedEngine, template: str = "") -> EngineSpec:
    """What the core is told of an engine called `name`; `template`: the engine that it is one more of."""
    llm = engine if isinstance(engine, LlmEngine) else None
    return EngineSpec(
        name,
        f"simulated-{engine.kind}",
        engine.model,
        _CAPABILITIES[engine.kind],
        engine.max_running,
        group=engine.group,
        cores=engine.cores,
        elastic=isinstance(engine, EmbedEngine) and engine.elastic,
        batches=isinstance(engine, LlmEngine) or engine.batching == "greedy",
        kv_tokens=llm.kv_tokens if llm else 65536,
        chunk=llm.chunk if llm else 2048,
        managed=engine.managed,
        template=template,
    )


def available_fleets() -> list[str]:
    """Names of the fleets that come with the package, sorted."""
    folder = resources.files(__package__) / "fleets"
    return sorted(
        entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")
    )


def load_fleet(name: str) -> Fleet:
    """The fleet that comes with the package under `name`, else the file of that path.

    Raises NotFoundError with the names that exist, ConfigError with every problem of a file.
    """
    if name in available_fleets():
        with resources.as_file(resources.files(__package__) / "fleets" / f"{name}.yaml") as path:
            return read_checked(path, Fleet, "fleet")
    if Path(name).is_file():
        return read_checked(Path(name), Fleet, "fleet")
    raise NotFoundError(
        f"There is no fleet {name!r}; there are {', '.join(available_fleets())}.",
        hint="Name one of them, or the path of a fleet.yaml.",
    )
