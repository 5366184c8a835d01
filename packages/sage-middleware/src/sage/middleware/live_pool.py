"""A pool whose configuration may change while it serves: engines come, go and change; no stream breaks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from sage.common.api import EngineStatus
from sage.common.config import EngineConfig, SageConfig
from sage.common.errors import ConflictError, SageError
from sage.middleware.control_plane.driver import ControlPlane
from sage.middleware.engines.port import EngineKind
from sage.middleware.engines.registry import engine_kind
from sage.middleware.members import ASLEEP, Member, describe
from sage.middleware.pool import DRAIN_POLL_S, POLL_S, EnginePool, Processes
from sage.platform.service import ServiceStatus, Supervisor

__all__ = ["LivePool", "in_place"]

log: Final = logging.getLogger("sage.middleware.pool")


class LivePool(EnginePool):
    """The engines of a configuration that `apply` replaces.

    For each engine one task at most brings it to what is wanted, and looks again after each step, so that a
    newer wish takes the place of an older one. An engine elsewhere is replaced as soon as the new one
    answers. A process of ours ends when its last request has, and only then starts anew: two would not fit on
    one device. Meanwhile requests for its model wait. One that goes stays until each engine of the same
    model that came at the same time is ready.
    """

    def __init__(
        self,
        config: SageConfig,
        logs: Path,
        control_plane: ControlPlane,
        *,
        supervisor: Callable[[Callable[[ServiceStatus], None]], Processes] = Supervisor,
        kinds: Callable[[str], EngineKind] = engine_kind,
        poll_s: float = POLL_S,
    ) -> None:
        super().__init__(config, logs, control_plane, supervisor=supervisor, kinds=kinds, poll_s=poll_s)
        self._wanted = {one.name: one for one in config.engines}
        self._settling: set[str] = set()  # names for which a task is at work
        self._arriving: set[str] = set()  # that came later, and were not ready yet
        self._again: set[str] = set()  # that failed, and are to be tried once more
        self._settled = False  # the engines of the first configuration are up

    async def start(self) -> None:
        """See `EnginePool.start`."""
        await super().start()
        self._settled = True

    def check(self, config: SageConfig) -> None:
        """Raise what keeps `apply`: ConflictError before the first start is over, ConfigError for engines."""
        if not self._settled:
            raise ConflictError(
                "The engines are still being started.",
                hint="Load the configuration again when they are ready.",
            )
        describe(config.engines, self._kinds)

    def apply(self, config: SageConfig) -> None:
        """Take another configuration. Returns at once; what takes time goes on in the background.

        After `check`; raises nothing then.
        """
        self._config = config
        self._equipment.change(config)
        self._wanted = {one.name: one for one in config.engines}
        for name, wanted in self._wanted.items():
            member = self._members.get(name)
            if member is not None and wanted != member.config and in_place(member.config, wanted):
                self._change(member, wanted)
        failed = {one.name for one in self.statuses() if one.state == "failed"}
        self._again = {name for name in failed & set(self._wanted) if not self._wanted[name].url}
        bases = [one.config.name for one in self._members.values() if one.base is None]
        for name in dict.fromkeys((*self._wanted, *bases)):
            if not self._is_settled(name) and name not in self._settling:
                self._settling.add(name)
                task = asyncio.create_task(self._settle(name), name=f"settle {name}")
                self._actions.add(task)
                task.add_done_callback(self._actions.discard)

    def awaited(self) -> list[EngineStatus]:
        """The engines that have to be ready for the pool to be: not those that just come or are going."""
        found = self.statuses()
        self._arriving -= {one.name for one in found if one.state in ("ready", "stopped")}
        coming = self._arriving - {one.name for one in found if one.state == "failed"}
        bases = {name: (one.base or one).config.name for name, one in self._members.items()}
        going = {name for name, base in bases.items() if base not in self._wanted}
        return [one for one in found if one.name not in coming | self._settling | going]

    # ---- one engine ----------------------------------------------------------------------------------------

    def _is_settled(self, name: str) -> bool:
        member, wanted = self._members.get(name), self._wanted.get(name)
        return (None if member is None else member.config) == wanted and name not in self._again

    async def _settle(self, name: str) -> None:
        try:
            while not self._is_settled(name):
                await self._step(name, self._members.get(name), self._wanted.get(name))
        except Exception as error:
            unforeseen = not isinstance(error, SageError)
            log.error("engine %s is not as configured: %s", name, error, exc_info=unforeseen)
        finally:
            self._settling.discard(name)

    async def _step(self, name: str, member: Member | None, wanted: EngineConfig | None) -> None:
        """The next thing to do, after which the wish may be another one."""
        self._again.discard(name)
        if member is None:
            assert wanted is not None  # else it is settled
            await self._bring(wanted)
        elif wanted is None:
            if await self._succeeded(member):
                await self._retire(member, returning=False)
        elif wanted.url and member.config.url and wanted != member.config:
            await self._swap(member, wanted)
        else:
            await self._retire(member, returning=wanted.model_id == member.spec.model)

    async def _bring(self, wanted: EngineConfig) -> None:
        """Start it, and as many more like it as it should have at least."""
        members = describe([wanted], self._kinds)
        base = members[0]
        name = base.config.name
        self._arriving.update(one.config.name for one in members)
        self._members[name] = base
        self._control_plane.announce(base.spec)
        if base.asleep:
            self._control_plane.engine_down(name, ASLEEP)
            return
        async with self._lock(name):
            try:
                if not wanted.url:
                    base.get_cores(self._equipment.cores_beside(wanted, self._others(name)))
                await asyncio.to_thread(self._equipment.fit, base)
                await self._launch(base)
            except SageError as error:
                self._down(base, str(error))
                raise
        log.info("engine %s is starting", name)
        for more in members[1:]:
            await self.start_engine(name, more.config.name)

    async def _launch(self, member: Member) -> None:
        if member.service is not None:
            await self._processes.start(member.service)
            return
        self._pollers = [one for one in self._pollers if not one.done()]
        self._pollers.append(asyncio.create_task(self._poll(member), name=f"poll {member.spec.name}"))

    async def _swap(self, member: Member, wanted: EngineConfig) -> None:
        """Put the connection to another server in the place of one, once that answers."""
        (fresh,) = describe([wanted], self._kinds)
        await asyncio.to_thread(self._equipment.fit, fresh)
        assert fresh.engine is not None
        while not (ready := await fresh.engine.ready()) and member.up:
            await asyncio.sleep(self._poll_s)
            if self._wanted.get(wanted.name) is not wanted:
                await fresh.engine.close()
                return
        self._members[wanted.name] = fresh
        if ready:
            self._up(fresh)
        else:  # nothing answered at the old one either
            self._control_plane.announce(fresh.spec)
        await self._launch(fresh)
        if member.engine is not None:
            await member.engine.close()  # what runs there ends by itself

    async def _succeeded(self, member: Member) -> bool:
        """Whether it may go now: each engine of its model that came at the same time is ready.

        False when it is wanted again. Raises ConflictError when one of those cannot be started.
        """
        while member.config.name not in self._wanted:
            coming = self._coming(member.spec.model)
            for name, state in coming.items():
                if state == "failed" and name not in self._settling and not self._wanted[name].url:
                    raise ConflictError(f"It stays, as {name}, which serves its model too, did not start.")
            if not coming:
                return True
            await asyncio.sleep(DRAIN_POLL_S)
        return False

    def _coming(self, model: str) -> dict[str, str]:
        """The engines of a model that are wanted and not there yet, with their states."""
        states = {one.name: one.state for one in self.statuses()}
        new = [name for name, one in self._wanted.items() if one.model_id == model]
        found = {
            name: states.get(name, "starting") for name in new if name in self._arriving | self._settling
        }
        return {
            name: state
            for name, state in found.items()
            if state not in ("ready", "stopped") or name in self._settling
        }

    async def _retire(self, member: Member, *, returning: bool) -> None:
        """Let it and those like it finish what they have, then forget them."""
        family = [one for one in self._members.values() if one is member or one.base is member]
        await asyncio.gather(*(self._remove(one, returning=returning) for one in family))

    async def _remove(self, member: Member, *, returning: bool) -> None:
        """`returning`: it comes back, so that its queue waits."""
        name = member.spec.name
        async with self._lock(name):
            member.leaving, member.up = True, False
            tell = self._control_plane.engine_leaves if returning else self._control_plane.engine_down
            tell(name, "it is being replaced" if returning else "it is being removed")
            if not member.config.url:
                await self._drained(name)
                if self._runs(name):
                    await self._processes.stop(name)
            del self._members[name]
            if not returning:
                self._control_plane.remove_engine(name)
            if member.engine is not None:
                await member.engine.close()
            if member.lease is not None:
                member.lease.release()
        log.info("engine %s is gone", name)

    # ---- in place ------------------------------------------------------------------------------------------

    def _change(self, base: Member, wanted: EngineConfig) -> None:
        """What needs no new process, of it and of those like it."""
        for one in self._members.values():
            if one is base or one.base is base:
                one.config = wanted.model_copy(update={"name": one.config.name})
                known = {name: getattr(one.spec, name) for name in ("cores", "managed", "template")}
                one.spec = msgspec.structs.replace(one.kind.spec(one.config), **known)
                self._control_plane.change_engine(one.spec)


_REPLICAS: Final = frozenset(("max_replicas", "min_replicas"))
_IN_PLACE: Final = _REPLICAS | {"start_timeout_s"}
_SCHEDULED: Final = frozenset(("max_running", "kv_tokens"))  # where no command line says so too
_OURS_ALONE: Final = frozenset(("transformers", "embedding"))


def in_place(before: EngineConfig, after: EngineConfig) -> bool:
    """Whether one engine can become the other without a new process or connection. Pure.

    A number of replicas that leaves room is kept to by whoever scales; a fixed one needs a fresh start.
    """
    found = {name for name in type(before).model_fields if getattr(before, name) != getattr(after, name)}
    if found & _REPLICAS and after.min_replicas == after.max_replicas:
        return False
    return found <= (_IN_PLACE | _SCHEDULED if before.kind in _OURS_ALONE else _IN_PLACE)
