"""The engines as the core sees them: slots, counts, health."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from sage.common.api import EngineState
from sage.common.errors import BadRequestError, ModelNotFoundError
from sage.middleware.control_plane.records import Record
from sage.middleware.control_plane.types import Job
from sage.middleware.engines.port import Capability, EngineSpec

__all__ = ["Breaker", "EngineLoad", "EngineTable"]

FAULTS_TO_EJECT: Final = 5
FIRST_EJECTION_S: Final = 10.0
LONGEST_EJECTION_S: Final = 300.0

_ROUTES: Final = {
    Capability.CHAT: "chat",
    Capability.COMPLETIONS: "completions",
    Capability.EMBEDDINGS: "embeddings",
}


@dataclass(slots=True)
class Breaker:
    """Ejects an engine after consecutive faults, for 10 s · 2^k; then one request at a time probes it."""

    faults: int = 0
    ejections: int = 0
    until: float = 0.0

    @property
    def tripped(self) -> bool:
        """Ejected, or on probation."""
        return self.faults >= FAULTS_TO_EJECT

    def fault(self, now: float) -> None:
        """The engine failed. What was in flight at an ejection and fails during it does not lengthen it."""
        self.faults += 1
        if self.tripped and now >= self.until:
            self.until = now + min(FIRST_EJECTION_S * 2.0**self.ejections, LONGEST_EJECTION_S)
            self.ejections += 1

    def success(self) -> None:
        """The engine served a request: it is well."""
        self.faults = self.ejections = 0
        self.until = 0.0


@dataclass(slots=True, eq=False)
class EngineLoad:
    """One engine. Fits `policy.EngineView`."""

    spec: EngineSpec
    name: str
    max_running: int
    state: EngineState = "starting"
    detail: str = "starting"
    running: int = 0
    outstanding_tokens: int = 0
    served: int = 0
    failed: int = 0
    last_dispatch: int = 0
    breaker: Breaker = field(default_factory=Breaker)

    @property
    def free(self) -> int:
        """Slots free now; on probation there is one."""
        slots = self.max_running if self.breaker.faults < FAULTS_TO_EJECT else 1
        return slots - self.running if slots > self.running else 0

    def usable(self, now: float) -> bool:
        """Whether it may be sent work when it has a free slot."""
        return self.state == "ready" and (not self.breaker.tripped or now >= self.breaker.until)

    def take(self, record: Record, number: int) -> None:
        """Account for a request that is sent there; `number` counts all dispatches."""
        self.running += 1
        self.outstanding_tokens += record.cost_tokens
        self.last_dispatch = number

    def give_back(self, record: Record) -> None:
        """Account for its end."""
        self.running -= 1
        self.outstanding_tokens -= record.cost_tokens


class EngineTable:
    """Engines by name, in the order in which they became known."""

    def __init__(self) -> None:
        self._engines: dict[str, EngineLoad] = {}

    def __iter__(self) -> Iterator[EngineLoad]:
        return iter(self._engines.values())

    def __getitem__(self, name: str) -> EngineLoad:
        return self._engines[name]

    def get(self, name: str) -> EngineLoad | None:
        """The engine of that name."""
        return self._engines.get(name)

    def add(self, spec: EngineSpec) -> EngineLoad:
        """The engine that `spec` describes, new or as it was; what runs on a namesake keeps its slots."""
        load = self._engines.get(spec.name)
        if load is None:
            load = self._engines[spec.name] = EngineLoad(spec, spec.name, spec.max_running)
        else:
            load.spec, load.max_running = spec, spec.max_running
        return load

    def forget(self, load: EngineLoad) -> None:
        """Drop it."""
        del self._engines[load.name]

    def candidates(self, job: Job, now: float) -> list[EngineLoad]:
        """The engines that may be sent `job`, busy or free."""
        return [load for load in self._engines.values() if _can(load, job) and load.usable(now)]

    def retry_after(self, job: Job, now: float) -> float:
        """When to ask again for a job that no engine may be sent: at the first probe of one, else soon."""
        probes = [
            load.breaker.until - now
            for load in self._engines.values()
            if load.state == "ready" and load.breaker.tripped and _can(load, job)
        ]
        return max(1.0, min(probes, default=1.0))

    def check(self, job: Job) -> None:
        """Raise ModelNotFoundError, or BadRequestError for what no engine of the model can do."""
        of_model = [load.spec for load in self._engines.values() if load.spec.model == job.model]
        if not of_model:
            models = sorted({load.spec.model for load in self._engines.values()})
            known = f"there are: {', '.join(models)}" if models else "no engine is configured"
            raise ModelNotFoundError(f"The model {job.model!r} does not exist; {known}.", param="model")
        if any(job.needs <= spec.capabilities for spec in of_model):
            return
        fewest = min((sorted(job.needs - spec.capabilities) for spec in of_model), key=len)
        raise self._cannot(job, fewest[0])

    def _cannot(self, job: Job, need: Capability) -> BadRequestError:
        able = [f"{load.name} (model {load.spec.model})" for load in self if need in load.spec.capabilities]
        others = f"Engines that can: {', '.join(able)}." if able else "No engine here can."
        if need in _ROUTES:
            return BadRequestError(
                f"The model {job.model!r} does not serve {_ROUTES[need]}. {others}", param="model"
            )
        return BadRequestError(
            f"The model {job.model!r} does not honour {need.value!r}. {others}",
            hint="Leave the field out, or ask for another model.",
            param=need.value,
        )


def _can(load: EngineLoad, job: Job) -> bool:
    return load.spec.model == job.model and job.needs <= load.spec.capabilities
