"""The engines as the core sees them: slots, what runs there, what was learned of them, health."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import msgspec

from sage.common.api import EngineState
from sage.common.errors import BadRequestError, ModelNotFoundError
from sage.common.telemetry import Bound
from sage.middleware.control_plane.breaker import FAULTS_TO_EJECT, Breaker, Silence
from sage.middleware.control_plane.cost import EmbedCost, LlmCost, Quantile
from sage.middleware.control_plane.records import Record
from sage.middleware.control_plane.types import Job
from sage.middleware.engines.port import Capability, EngineSpec, asks_media

__all__ = ["Attempt", "EngineLoad", "EngineTable"]

PANIC_SHARE: Final = 0.5  # of a pool, that may be ejected while it still answers

_ROUTES: Final = {
    Capability.CHAT: "chat",
    Capability.COMPLETIONS: "completions",
    Capability.EMBEDDINGS: "embeddings",
    Capability.RERANK: "rerank",
    Capability.TOKENIZE: "tokenize",
    Capability.SPEECH: "audio/speech",
    Capability.TRANSCRIPTION: "audio/transcriptions",
    Capability.TRANSLATION: "audio/translations",
    Capability.IMAGES: "images/generations",
    Capability.IMAGE_EDITS: "images/edits",
}


class Attempt(msgspec.Struct, eq=False):
    """One call to one engine. `slices`: record, first and last unit (exclusive), which try it is."""

    number: int
    engine: EngineLoad
    slices: list[tuple[Record, int, int, int]]
    sent: float
    texts: int
    tokens: int  # uncached prompt tokens
    outstanding: int  # what it adds to the engine's outstanding tokens
    ahead: int  # prefill tokens of others that were before it
    beside: int  # attempts that ran there when it was sent
    predicted: float
    service: float  # predicted engine-seconds of an embedding call
    silence: float  # seconds without a byte that are no reason to worry
    ready: float  # predicted seconds to the first token of a generation
    threads: int = 0
    hedge: bool = False
    first_byte: float | None = None
    learns: bool = False  # its times are samples for the cost model
    twin: Attempt | None = None  # the same slices, sent a second time
    mark: tuple[float, float, float] = (0.0, 0.0, 0.0)  # `EngineLoad.mark` where its sample begins


class EngineLoad:
    """One engine. Fits `policy.EngineView`."""

    __slots__ = (
        "_busy",
        "_prefilling",
        "_running_seconds",
        "_since",
        "_slots",
        "attempts",
        "breaker",
        "busy_until",
        "detail",
        "device",
        "embed",
        "failed",
        "free",
        "generates",
        "idle_since",
        "last_dispatch",
        "last_end",
        "latency",
        "learn_at",
        "learned",
        "llm",
        "max_running",
        "media",
        "name",
        "outstanding_tokens",
        "prefill_tokens",
        "returning",
        "running",
        "served",
        "silence",
        "spec",
        "state",
    )

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        self.name = spec.name
        self.generates = spec.task == "generate"
        self.media = asks_media(spec.capabilities)
        self.max_running = spec.max_running
        self.state: EngineState = "starting"
        self.detail = "starting"
        self.returning = False  # it is made anew
        self.attempts: dict[int, Attempt] = {}
        self.running = 0
        self.free = spec.max_running
        self.outstanding_tokens = 0
        self.prefill_tokens = 0
        self.served = 0
        self.failed = 0
        self.last_dispatch = 0
        self.busy_until = 0.0
        self.idle_since = 0.0
        self.last_end = 0.0  # of an answer
        self.learn_at = 0.0  # no sample before, once `learned` are enough
        self.learned = 0
        self.device: list[EngineLoad] = [self]
        self.breaker = Breaker()
        self.silence = Silence()
        self.llm = LlmCost(chunk=spec.chunk)
        self.embed = EmbedCost()
        self.latency = Quantile(0.95, 1.0)  # of its answers, for hedging
        self._slots = spec.max_running
        self._since = 0.0
        self._running_seconds = 0.0
        self._prefilling = 0.0
        self._busy = 0.0

    # ---- accounting ----------------------------------------------------------------------------------

    def take(self, attempt: Attempt, now: float) -> None:
        """Account for an attempt that is sent there."""
        if not self.running:
            self.silence.sign(now)
        self._advance(now)
        number = attempt.number
        self.attempts[number] = attempt
        self.running = running = self.running + 1
        self.free = self._slots - running if self._slots > running else 0
        self.outstanding_tokens += attempt.outstanding
        self.prefill_tokens += attempt.tokens
        self.last_dispatch = number
        if not self.generates:
            self.busy_until = max(self.busy_until, now) + attempt.service

    def began(self, attempt: Attempt, now: float) -> None:
        """Account for its first byte: its prompt has been read."""
        self._advance(now)
        attempt.first_byte = now
        self.prefill_tokens -= attempt.tokens

    def give_back(self, attempt: Attempt, now: float) -> None:
        """Account for its end."""
        self._advance(now)
        del self.attempts[attempt.number]
        self.running = running = self.running - 1
        self.free = self._slots - running if self._slots > running else 0
        self.outstanding_tokens -= attempt.outstanding
        if attempt.first_byte is None:
            self.prefill_tokens -= attempt.tokens
        if not self.generates:
            self.busy_until = now
            for other in self.attempts.values():
                self.busy_until += other.service
        if not running:
            self.idle_since = now

    def mark(self, now: float) -> tuple[float, float, float]:
        """Integrals over time so far: attempts running, prefill going on, anything going on beside it.

        Between two marks their differences, divided by the time, are means.
        """
        self._advance(now)
        beside = 0.0
        for other in self.device:
            if other is not self and other.generates is not self.generates:
                beside += other.busy_seconds(now)
        return self._running_seconds, self._prefilling, beside

    def busy_seconds(self, now: float) -> float:
        """For how long it has had work, in all."""
        return self._busy + (now - self._since if self.running else 0.0)

    @property
    def beside(self) -> float:
        """1 while an engine of the other kind computes on its device, else 0."""
        for other in self.device:
            if other.running and other.generates is not self.generates:
                return 1.0
        return 0.0

    def set_state(self, state: EngineState, detail: str) -> None:
        """Where it is in its life."""
        self.state, self.detail = state, detail

    def become(self, spec: EngineSpec) -> None:
        """Be what `spec` says now. Of another model nothing is known; a device is joined by the table."""
        if spec.model != self.spec.model or spec.task != self.spec.task:
            self.llm, self.embed, self.latency = LlmCost(), EmbedCost(), Quantile(0.95, 1.0)
        self.spec, self.max_running = spec, spec.max_running
        self.generates = spec.task == "generate"
        self.media = asks_media(spec.capabilities)
        self.llm.chunk = spec.chunk
        self.device = [self]
        self._count_slots()

    def restarted(self) -> None:
        """Its process is new: what was learned of the old one is where it begins; see `LlmCost.restart`."""
        self.llm.restart()
        self.embed.restart()

    def changed_health(self) -> None:
        """Its breaker changed: on probation there is one slot."""
        self._count_slots()

    def _advance(self, now: float) -> None:
        passed = now - self._since
        if passed > 0.0:
            if self.running:
                self._running_seconds += passed * self.running
                self._busy += passed
                if self.prefill_tokens > 0:
                    self._prefilling += passed
            self._since = now

    def _count_slots(self) -> None:
        self._slots = slots = self.max_running if self.breaker.faults < FAULTS_TO_EJECT else 1
        self.free = slots - self.running if slots > self.running else 0

    # ---- prediction ----------------------------------------------------------------------------------

    def seconds(self, record: Record, units: int, completion: float | None = None) -> float:
        """Engine-seconds that `units` of a request take here, of a busy engine: what others cannot have.

        A generation costs its prefill and its share of the iterations that write its tokens. Those last as
        long as they were seen to: an engine's first token may come far sooner than the next ones.
        """
        if not self.generates:
            tokens = record.prompt_tokens * units / record.units
            return self.embed.seconds(tokens, units, self.spec.cores or 1, self.beside)
        llm = self.llm
        outputs = record.output_p50 if completion is None else completion
        share = llm.tpot_slope + llm.tpot_base / self.max_running
        return llm.per_token * record.prompt_tokens + share * outputs

    def quickest(self, record: Record) -> float:
        """Seconds to the first token (generation) or the answer (the rest) if nothing else ran here."""
        if self.generates:
            return self.llm.ttft(record.prompt_tokens, 0)
        return self.embed.seconds(record.prompt_tokens, record.units, self.spec.cores or 1)

    def can(self, job: Job) -> bool:
        """Whether it is made for such a job."""
        return self.spec.model == job.model and job.needs <= self.spec.capabilities


class EngineTable:
    """Engines by name, in the order of their coming. `version` changes when candidates may have."""

    __slots__ = (
        "_engines",
        "_served",
        "names",
        "version",
    )

    def __init__(self) -> None:
        self._engines: dict[str, EngineLoad] = {}
        self.names: frozenset[str] = frozenset()  # that stand for models, for whoever asks what there is
        # Jobs that some engine is made for, and the most tokens that one of those engines has room for.
        self._served: dict[tuple[str, frozenset[Capability]], float] = {}
        self.version = 0

    def __iter__(self) -> Iterator[EngineLoad]:
        return iter(self._engines.values())

    def __len__(self) -> int:
        return len(self._engines)

    def __getitem__(self, name: str) -> EngineLoad:
        return self._engines[name]

    def get(self, name: str) -> EngineLoad | None:
        """The engine of that name."""
        return self._engines.get(name)

    def add(self, spec: EngineSpec) -> EngineLoad:
        """The engine that `spec` describes, new or as it was; what runs on a namesake keeps its slots."""
        load = self._engines.get(spec.name)
        if load is None:
            load = self._engines[spec.name] = EngineLoad(spec)
        elif load.spec != spec:
            group = load.spec.group
            load.become(spec)
            self._changed(group)
        self._changed(spec.group)
        return load

    def forget(self, load: EngineLoad) -> None:
        """Drop it."""
        del self._engines[load.name]
        self._changed(load.spec.group)

    def candidates(self, job: Job, now: float) -> list[EngineLoad]:
        """The engines that may be sent `job`, busy or free.

        One that still answers is ejected only while at most half of the pool is; a dead one always.
        """
        pool = [load for load in self._engines.values() if load.state == "ready" and load.can(job)]
        out = [load for load in pool if load.breaker.open(now) or load.silence.degraded]
        if not out:
            return pool
        lenient = sorted((load for load in out if not load.breaker.dead), key=lambda one: one.breaker.until)
        back = lenient[: max(0, len(out) - int(len(pool) * PANIC_SHARE))] if len(pool) > 1 else []
        some = [load for load in pool if load not in out or load in back]
        return some or [load for load in pool if not load.breaker.open(now)]  # a hang is not death

    def next_probe(self, now: float) -> float | None:
        """When the next ejected engine may be tried again."""
        times = [load.breaker.until for load in self._engines.values() if load.breaker.open(now)]
        return min(times, default=None)

    def retry_after(self, job: Job, now: float) -> float:
        """When to ask again for a job that no engine may be sent: at the first probe of one, else soon."""
        probes = [
            load.breaker.until - now
            for load in self._engines.values()
            if load.state == "ready" and load.breaker.tripped and load.can(job)
        ]
        return max(1.0, min(probes, default=1.0))

    def why_none(self, job: Job) -> str:
        """In words, why no engine may be sent a job."""
        states = [f"{load.name} is {load.state}" for load in self if load.spec.model == job.model]
        what = ", ".join(states) or "none is left"
        return f"no engine for {job.model!r} can take requests now ({what})"

    def check(self, job: Job) -> None:
        """Raise ModelNotFoundError, or BadRequestError for what no engine of the model can do."""
        room = self._served.get((job.model, job.needs))
        if room is None:
            room = self._served[job.model, job.needs] = self._room(job)
        if job.max_tokens is not None and job.max_tokens > room:
            raise BadRequestError(
                f"max_tokens is {job.max_tokens}; the model {job.model!r} has room for {room:.0f} tokens.",
                hint="Ask for a shorter answer.",
                param="max_tokens",
                bound=Bound.MAX_TOKENS,
            )

    def _room(self, job: Job) -> float:
        """Tokens that the engine with most room has for it; infinite where one does not say."""
        of_model = [load.spec for load in self._engines.values() if load.spec.model == job.model]
        if not of_model:
            models = {load.spec.model for load in self._engines.values()}
            names = ", ".join(sorted(models | self.names))
            known = f"there are: {names}" if models else "no engine is configured"
            raise ModelNotFoundError(f"The model {job.model!r} does not exist; {known}.", param="model")
        if able := [spec for spec in of_model if job.needs <= spec.capabilities]:
            return max(spec.context or math.inf for spec in able)
        fewest = min((sorted(job.needs - spec.capabilities) for spec in of_model), key=len)
        raise self._cannot(job, fewest[0])

    def _changed(self, group: str) -> None:
        """An engine came or went: those of one group share one list of themselves."""
        self.version += 1
        self._served.clear()
        if group:
            members = [load for load in self._engines.values() if load.spec.group == group]
            for load in members:
                load.device = members

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
