"""The live control plane: runs the core on the event loop and carries out what it decides."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from sage.common.api import Decision, EngineStatus, QueueStatus
from sage.common.clock import Clock
from sage.common.config import ControlPlaneConfig
from sage.common.errors import ConflictError
from sage.common.telemetry import RequestClass
from sage.middleware.control_plane.core import Core
from sage.middleware.control_plane.desk import Desk
from sage.middleware.control_plane.options import CoreOptions, policy_options
from sage.middleware.control_plane.policy import load_policy
from sage.middleware.control_plane.reports import decision_of, engine_status, queue_status
from sage.middleware.control_plane.trace import Goals, PolicyChanged, TraceWriter
from sage.middleware.control_plane.types import (
    EngineAdded,
    EngineChanged,
    EngineDown,
    EngineRemoved,
    EngineUp,
)
from sage.middleware.engines.port import Engine, EngineSpec

__all__ = ["ControlPlane"]


class ControlPlane(Desk):
    """Queues requests, places them on engines and passes the answers on.

    All methods belong to one event loop. This part of it is about engines, policies, and what it tells.
    """

    __slots__ = ("_epoch", "_policy_options")

    def __init__(self, config: ControlPlaneConfig, clock: Clock, *, core: Core | None = None) -> None:
        """`core` replaces the one that `config` describes. Raises ConfigError for an unknown policy."""
        self._policy_options = policy_options(config)
        core = core or Core(load_policy(config.policy, self._policy_options), CoreOptions.of(config))
        trace = None if config.trace is None else TraceWriter(config.trace)
        super().__init__(core, clock, trace)
        self._epoch = clock.wall() - clock.now()
        if trace is not None:
            trace.record(PolicyChanged(clock.now(), self.policy), ())
            trace.record(Goals(clock.now(), self._policy_options.slos), ())

    # ---- engines -------------------------------------------------------------------------------------

    def announce(self, spec: EngineSpec) -> None:
        """An engine is on its way: its model exists, and is answered with 503 until `add_engine`."""
        self._handle(EngineAdded(self._clock.now(), spec))

    def add_engine(self, engine: Engine) -> None:
        """An engine can serve: for the first time, or again after `engine_down`.

        Raises ConflictError when another engine has that name.
        """
        spec = engine.spec
        if self._engines.get(spec.name, engine) is not engine:
            raise ConflictError(
                f"There is an engine named {spec.name!r} already.", hint="Give each a name of its own."
            )
        self._engines[spec.name] = engine
        self._handle(EngineUp(self._clock.now(), spec))

    def replace_engine(self, engine: Engine) -> None:
        """Another connection takes the place of the engine of that name; what runs on the old one goes on."""
        self._engines.pop(engine.spec.name, None)
        self.add_engine(engine)

    def change_engine(self, spec: EngineSpec) -> None:
        """An engine is described anew and goes on as it is: other slots, another size of its cache."""
        self._handle(EngineChanged(self._clock.now(), spec))

    def engine_down(self, name: str, reason: str, *, crashed: bool = False) -> None:
        """A known engine may not be sent work; what runs there goes on until it ends or breaks.

        `crashed`: its process ended by itself.
        """
        self._handle(EngineDown(self._clock.now(), name, reason, crashed))

    def engine_leaves(self, name: str, reason: str) -> None:
        """As `engine_down`, of an engine that is made anew: what waits for it waits for that."""
        self._handle(EngineDown(self._clock.now(), name, reason, returning=True))

    def remove_engine(self, name: str) -> None:
        """Forget an engine; what runs there may end. Whoever made it closes it."""
        self._engines.pop(name, None)
        self._handle(EngineRemoved(self._clock.now(), name))

    def know_names(self, names: Iterable[str]) -> None:
        """Names that stand for models: whoever asks for a model that there is not is told of them too."""
        self._core.engines.names = frozenset(names)

    # ---- what it tells -------------------------------------------------------------------------------

    @property
    def core(self) -> Core:
        """The core that decides: its books, its records. Read it, never change it."""
        return self._core

    @property
    def policy(self) -> str:
        """Name of the policy in force."""
        return self._core.policy.name

    def set_policy(self, name: str) -> None:
        """Change the policy; what waits is placed by the new one. Raises ConfigError for an unknown name."""
        policy = load_policy(name, self._policy_options)
        now = self._clock.now()
        self._carry_out(PolicyChanged(now, name), self._core.set_policy(policy, now))

    def reconfigure(self, config: ControlPlaneConfig, options: CoreOptions, policy: str) -> None:
        """Apply another configuration, with `policy` in force; `options` are the core's, made from it.

        Raises ConfigError for an unknown policy, and changes nothing then.
        """
        chosen = policy_options(config)
        same = (policy, chosen) == (self.policy, self._policy_options)
        fresh = None if same else load_policy(policy, chosen)
        now = self._clock.now()
        self._policy_options = chosen
        actions = self._core.reconfigure(options, fresh, now)
        if self._trace is not None:
            self._trace.record(Goals(now, chosen.slos), ())
        self._carry_out(PolicyChanged(now, policy), actions)

    def models(self) -> list[str]:
        """Ids of the models that an engine serves now."""
        return sorted({load.spec.model for load in self._core.engines if load.state == "ready"})

    def decisions(self, limit: int = 100) -> list[Decision]:
        """The newest decisions, newest first."""
        return [decision_of(record, self._epoch) for record in self._core.records(limit)]

    def decision(self, ident: str) -> Decision | None:
        """The decision about one request, while it is remembered."""
        record = self._core.record(ident)
        return None if record is None else decision_of(record, self._epoch)

    def queues(self) -> list[QueueStatus]:
        """Each class's queue."""
        now = self._clock.now()
        return [
            queue_status(one, self._core.counts(one), self._core.oldest(one), now) for one in RequestClass
        ]

    def engines(self) -> list[EngineStatus]:
        """Each engine as the core sees it; the pool knows its process."""
        now = self._clock.now()
        return [engine_status(load, now) for load in self._core.engines]

    # ---- the end -------------------------------------------------------------------------------------

    async def close(self, drain_s: float) -> None:
        """Refuse new requests, let the others end for `drain_s` seconds, then end them with an error."""
        self._closing = True
        if self._tickets:
            self._idle.clear()
            try:
                await asyncio.wait_for(self._idle.wait(), drain_s)
            except TimeoutError:
                for ticket in list(self._tickets.values()):
                    self._abort(ticket, self._goodbye())
                await self._idle.wait()
        self._asides.close()
        await self._upstreams.close()
        for timer in (self._timer, self._pulse):
            if timer is not None:
                timer.cancel()
        if self._trace is not None:
            await asyncio.to_thread(self._trace.close)
