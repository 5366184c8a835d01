"""Checkpoints of a run: barriers are sent through all stages, what they hand over is stored, sinks commit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from sage.common.errors import UnavailableError
from sage.kernel.compile import Compiled
from sage.kernel.options import Checkpoints
from sage.kernel.runtime.archive import Restored
from sage.kernel.runtime.columns import Barrier
from sage.kernel.runtime.keeper import Keeper, whatever_comes
from sage.kernel.runtime.paid import ResultLog
from sage.kernel.runtime.participant import Participant, Snapshot
from sage.kernel.runtime.sinks import SinkEnd
from sage.kernel.runtime.state import pickled, unpickled

__all__ = ["Coordinator"]

T = TypeVar("T")

PATIENCE = 0.1
"""Seconds that a barrier has to pass all stages behind what is queued; then it overtakes it."""


class Coordinator(Keeper):
    """Takes checkpoints of one run, one at a time, and knows the one that it goes on from."""

    def __init__(self, plan: Compiled, options: Checkpoints) -> None:
        super().__init__(plan, options)
        self._members: dict[str, Participant] = {}
        self._ends: list[SinkEnd] = []
        self._finished: dict[str, Snapshot] = {}
        self._handed: dict[str, Snapshot] = {}
        self._begun: set[str] = set()
        self._barrier: Barrier | None = None
        self._all: asyncio.Future[None] | None = None
        self._over = False
        self._group: asyncio.TaskGroup | None = None
        self._running = asyncio.Event()
        self.log = ResultLog(self._store)
        self.found: Restored | None = None
        self.already_done = False

    # ---- from start to end -----------------------------------------------------------------------------

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Open the store and find the newest sound checkpoint that fits; close it at the end."""
        try:
            self.found = await self._newest()
            if self.found is not None:
                self.already_done = await self._do(self._is_marked) and self.found.manifest.done
            await self.log.open(self.epoch)
            yield
        finally:
            self._over = True
            self._running.set()
            await whatever_comes(self._close())

    async def _close(self) -> None:
        try:
            await self.log.close()
        finally:
            await self._close_store()

    def join(self, members: Iterable[Participant], ends: Iterable[SinkEnd]) -> None:
        """Take these stages and sinks in, and restore what they held."""
        self._ends = list(ends)
        for member in members:
            member.coordination = self
            self._members[member.name] = member
            if self.found is None:
                member.start_anew()
                continue
            plain = unpickled(self.found.plain[member.name], f"what stage {member.name!r} holds")
            if plain["ended"]:
                member.had_ended(plain)
                self._finished[member.name] = Snapshot(self.found.plain[member.name], ended=True)
            else:
                member.go_on(plain, self.found.states)
        if self.found is not None:
            self.found.states.clear()  # they are with the operators now

    async def recover(self) -> None:
        """Tell the sinks where the run goes on."""
        prepared = self.found.manifest.prepared if self.found else {}
        for end in self._ends:
            await end.recover(self.epoch, prepared.get(end.name))

    async def acknowledge(self) -> None:
        """Tell the sources up to where nobody asks again."""
        for member in self._members.values():
            if member.on_commit is not None:
                await member.on_commit()

    async def run(self, group: asyncio.TaskGroup) -> None:
        """Take a checkpoint every so often; `group` is where what goes wrong ends the run."""
        self._group = group
        self._running.set()
        writing = group.create_task(self.log.run())
        try:
            while self._every:
                await asyncio.sleep(self._every)
                await self._take()
            await asyncio.Event().wait()
        finally:
            self._group = None
            writing.cancel()

    async def finish(self) -> None:
        """All stages have ended: take the last checkpoint, which is marked as that."""
        async with self._lock:
            self._over = True
            if not (self.found is not None and self.found.manifest.done):
                self._handed = dict(self._finished)
                await self._complete(done=True)
            await self._do(self._store.write, self._mark, [b""])

    # ---- one checkpoint --------------------------------------------------------------------------------

    async def checkpoint(self) -> int:
        """Take one now and give its epoch, once it is durable and committed. What goes wrong ends the run."""
        await self._running.wait()
        taking = self._take()
        try:
            task = self.spawn(taking)
        except RuntimeError:  # its group takes no tasks any more
            taking.close()
        else:
            if epoch := await asyncio.shield(task):
                return epoch
        raise UnavailableError(
            f"the run of flow {self._flow!r} has come to its end and takes no checkpoints."
        )

    async def drain(self) -> bool:
        """Take a last one, behind all that the sources gave; false if the run has come to its end already."""
        return bool(await self._take(drains=True))

    def is_over(self, stage: str) -> bool:
        """Whether this stage had ended before the checkpoint that the run goes on from."""
        return stage in self._finished

    def handed(self, stage: str, snapshot: Snapshot) -> None:
        """See `Coordination`."""
        self._handed[stage] = snapshot
        self._look()

    def ended(self, member: Participant) -> None:
        """A stage has passed on everything and closed its outputs."""
        plain = pickled(member.last_words(), f"what stage {member.name!r} holds")
        self._finished[member.name] = Snapshot(plain, ended=True)
        if self._barrier is not None:
            self._handed.setdefault(member.name, self._finished[member.name])
            self._begin(self._barrier)
            self._look()

    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """See `Coordination`; raises RuntimeError if the run has come to its end."""
        if self._group is None:
            raise RuntimeError("the run has come to its end")
        return self._group.create_task(coroutine)

    async def _take(self, *, drains: bool = False) -> int:
        async with self._lock:
            if self._over:
                return 0
            self._over = drains
            self._barrier = barrier = Barrier(self.epoch + 1, drains)
            self._all = asyncio.get_running_loop().create_future()
            self._handed = dict(self._finished)
            self._begun.clear()
            self._begin(barrier)
            self._look()
            if not drains:
                await asyncio.wait([self._all], timeout=PATIENCE)
                for member in self._late():
                    member.hurry(barrier)
            await self._all
            self._barrier = None
            return await self._complete(done=False)

    def _late(self) -> list[Participant]:
        return [member for name, member in self._members.items() if name not in self._handed]

    def _begin(self, barrier: Barrier) -> None:
        """Start at every stage that no barrier will come to: sources, and those whose inputs have ended."""
        for member in self._late():
            if member.inbox.ended and member.inbox.passed < barrier.epoch and member.name not in self._begun:
                self._begun.add(member.name)
                member.begin(barrier)

    def _look(self) -> None:
        if self._all is not None and not self._all.done() and len(self._handed) == len(self._members):
            self._all.set_result(None)

    async def _complete(self, *, done: bool) -> int:
        epoch, handed, prepared = self.epoch + 1, self._handed, {}
        self._handed = {}
        for end in self._ends:
            # A sink's own loop prepares it, as long as that runs.
            share = handed[end.name]
            given = await end.prepare(epoch) if share.ended else share.prepared
            if end.transactional:
                prepared[end.name] = given
        manifest = self._manifest(epoch, prepared, done=done)
        plain = {name: share.plain for name, share in handed.items()}
        changes = {name: found for share in handed.values() for name, found in share.changes.items()}
        await self._do(self._archive.save, manifest, plain, changes)
        for end in self._ends:
            await end.commit(epoch)
        await self.acknowledge()
        self.epoch = epoch
        await self.log.cut(await self._do(self._archive.tidy))
        return epoch

    # ---- the rest --------------------------------------------------------------------------------------

    @property
    def _mark(self) -> str:
        """The file that says that the sinks have committed the last checkpoint of the run."""
        return f"done-{self.epoch:08}"

    def _is_marked(self) -> bool:
        marks = [name for name in self._store.names() if name.startswith("done-")]
        for name in marks:
            if name != self._mark:
                self._store.remove(name)  # of a later checkpoint, which was damaged
        return self._mark in marks
