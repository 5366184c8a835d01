"""Checkpoints of a flow of requests: what it has taken is kept until it is answered, whatever happens.

A journal has every request before its first operator sees it, what async calls, folds and sinks made of it,
and its reply before that is given out. Now and then a checkpoint takes the place of what the journal says.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar, Token
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from sage.common.errors import UnavailableError
from sage.kernel.compile import Compiled, Op
from sage.kernel.options import Checkpoints
from sage.kernel.runtime.chain import Step
from sage.kernel.runtime.journal import Journal
from sage.kernel.runtime.keeper import Keeper, whatever_comes
from sage.kernel.runtime.paid import Calls
from sage.kernel.runtime.requests import Note, Record, Request, Table
from sage.kernel.runtime.sinks import SinkEnd
from sage.kernel.runtime.state import Stateful, changed_now, pickled, unpickled

if TYPE_CHECKING:
    from structlog.stdlib import BoundLogger

__all__ = ["Kept", "Ledger"]

SEGMENT_BYTES = 64 << 20
"""So much of a journal is worth a checkpoint, whatever the time."""
_LEDGER: Final = ""  # under which the numbers of a checkpoint are kept
_CURRENT: ContextVar[Request] = ContextVar("sage_request")


class Kept(Calls):
    """What an operator made of its inputs, request by request: given back where it is known, else kept."""

    def __init__(self, operator: str, ledger: Ledger) -> None:
        super().__init__(operator)
        self._ledger = ledger

    def find(self, digest: bytes) -> bytes | None:
        """See `Calls`."""
        return _CURRENT.get().find(self.operator, digest)

    async def keep(self, digest: bytes, item: Any, result: Any) -> Any:
        """See `Calls`."""
        self.note(Note(self.operator, digest, self.pickled(item, result)))
        await self._ledger.journal.room()
        return result

    def note(self, note: Note) -> None:
        """Keep it for the request that this task is of."""
        self._ledger.record(("note", _CURRENT.get().number, tuple(note)))

    def later(self) -> Callable[[Note], None]:
        """`note` of this request, for code outside of its task."""
        number = _CURRENT.get().number
        return lambda note: self._ledger.record(("note", number, tuple(note)))


class Ledger(Keeper):
    """The requests of one job, in a store of checkpoints."""

    def __init__(self, plan: Compiled, options: Checkpoints) -> None:
        super().__init__(plan, options)
        self._ends: dict[str, SinkEnd] = {}
        self._stateful: dict[str, Stateful] = {}
        self._prepared: dict[str, Any] = {}
        self._writes: list[tuple[str, Any]] = []  # what sinks had after the checkpoint that it goes on from
        self._first: list[tuple[int, int]] = []  # by epoch: the segment that a checkpoint goes on with
        self._read_any = self._closed = False
        names = {op.node.verb: op.node.name for op in plan.ops}
        self.table = Table(names["requests"], names["reply"])
        self.journal = Journal(self._store)
        self.error: Exception | None = None
        """Why nothing is kept any more, so that no request is taken."""

    # ---- what operators do ---------------------------------------------------------------------------------

    def call(self, name: str, call: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """The call of an async operator."""
        return Kept(name, self).each(call)

    def step(self, step: Step) -> Step:
        """A sync operator; one with state changes it once for each input, however often a request goes on."""
        stateful = step.stateful
        if stateful is None:
            return step
        kept = Kept(step.counters.name, self)
        self._stateful[kept.operator] = stateful

        def run(items: list[Any]) -> list[Any]:
            out: list[Any] = []
            for item in items:
                digest = kept.digest(item)
                if (data := kept.find(digest)) is None:
                    results = step.run([item])
                    changes = changed_now(kept.operator, stateful)
                    if changes.keys:
                        keys, states = tuple(changes.keys), tuple(changes.states)
                        kept.note(Note(kept.operator, digest, kept.pickled(item, results), keys, states))
                else:
                    results = unpickled(data, f"the result of {kept.what(item)}")
                out += results
            return out

        return replace(step, run=run)

    def sink(self, op: Op) -> Callable[[Any], Any]:
        """The write of one item, in the epoch that it comes in."""
        kept = Kept(op.node.name, self)
        end = self._ends[kept.operator] = SinkEnd(op)

        async def write(item: Any) -> None:
            digest = kept.digest(item)
            if kept.find(digest) is None:
                epoch = await end.write([item])
                what = (epoch, item) if end.transactional else None
                kept.note(Note(kept.operator, digest, kept.pickled(item, what)))

        return write

    # ---- what requests do ----------------------------------------------------------------------------------

    def open(self, ident: str, digest: bytes, item: bytes) -> Request:
        """Take a request. It may begin once this is `durable`."""
        number = self.table.next
        self.record(("open", number, ident, digest, item))
        return self.table.open[number]

    def begin(self, request: Request) -> Token[Request]:
        """What this task does is for that request, until it gives the token to `leave`."""
        return _CURRENT.set(request)

    def leave(self, token: Token[Request]) -> None:
        """Undo `begin`."""
        _CURRENT.reset(token)

    def end(self, request: Request, reply: bytes | None) -> None:
        """It is over, and whoever else waits for it is told; `reply` is what is kept of that."""
        self.record(("end", request.number, reply))
        if request.over is not None:
            request.over.set()

    def record(self, record: Record) -> None:
        """Something has happened."""
        self.table.apply(record)
        self.journal.add(record)

    async def durable(self) -> None:
        """Return once all of it is on the disk. Raises `UnavailableError` where it cannot be."""
        try:
            await self.journal.durable()
        except Exception as error:
            self.error = error
        self.need_sound()

    def need_sound(self) -> None:
        """Raise `UnavailableError` if nothing can be kept any more."""
        if self.error is not None:
            raise UnavailableError(
                f"flow {self._flow!r} takes no requests, as they cannot be kept: {self.error}",
                hint="Start it again once that is put right: what it has not answered is taken up then.",
            ) from self.error

    # ---- from start to end ---------------------------------------------------------------------------------

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Open the store, find what was not answered and restore states; close it at the end."""
        try:
            await self._restore()
            yield
        finally:
            await whatever_comes(self._close())

    async def _restore(self) -> None:
        found = await self._newest()
        first, states, warnings = 1, {}, [*self.warnings]
        if found is not None:
            self._prepared, states = found.manifest.prepared, found.states
            first, following = unpickled(found.plain[_LEDGER], "the numbers of the checkpoint")
            self.table.restore(states, following)
            self._first.append((self.epoch, first))
        for record in await self._do(self.journal.read, first, warnings.append):
            self._replay(record)
        self.warnings = tuple(warnings)
        for text in warnings:
            _log().warning("flow %s: %s", self._flow, text)
        for name, stateful in self._stateful.items():
            what = f"the state of operator {name!r}"
            pairs = {**states.get(name, {}), **self.table.changed.get(name, {})}.items()
            stateful.begin(((unpickled(k, what), unpickled(s, what)) for k, s in pairs if s), None)
        for request in self.table.open.values():
            request.take_up()

    def _replay(self, record: Record) -> None:
        self.table.apply(record)
        self._read_any = True
        if record[0] == "note":
            note = Note(*record[2])
            end = self._ends.get(note.operator)
            if end is not None and end.transactional:
                epoch, item = unpickled(note.data, f"what sink {note.operator!r} had")
                if epoch > self.epoch:
                    self._writes.append((note.operator, item))

    async def recover(self) -> None:
        """Tell the sinks where it goes on, and write again what they had since."""
        for name, end in self._ends.items():
            await end.recover(self.epoch, self._prepared.get(name))
        for name, item in self._writes:
            await self._ends[name].write([item])
        self._writes = []
        if self._read_any:
            await self.checkpoint()

    async def run(self) -> None:
        """Take a checkpoint every so often, and when the journal has become large."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._every or None):
                    await self.journal.grown(SEGMENT_BYTES)
            if self.table.dirty:
                try:
                    await self.checkpoint()
                except Exception as error:
                    _log().error("flow %s: its checkpoint failed: %s", self._flow, error)
                    return

    async def checkpoint(self) -> int:
        """Take one now; gives its epoch, once it is durable and committed. One that fails is the last."""
        taking = asyncio.create_task(self._take())
        taking.add_done_callback(lambda task: task.cancelled() or task.exception())
        # Who asked may be cancelled; half a checkpoint would be none, and no other could follow.
        return await asyncio.shield(taking)

    async def _take(self) -> int:
        async with self._lock:
            if self._closed:
                raise UnavailableError(f"flow {self._flow!r} is stopped and takes no checkpoints.")
            self.need_sound()
            try:
                return await self._checkpoint()
            except Exception as error:
                self.error = error
                raise

    async def _checkpoint(self) -> int:
        epoch = self.epoch + 1
        # All of one moment: what the journal says from here on comes behind this checkpoint.
        first = self.journal.turn()
        plain = pickled((first, self.table.next), "the numbers of a checkpoint")
        changes = self.table.snapshot()
        given = {name: await end.prepare(epoch) for name, end in self._ends.items()}
        prepared = {name: found for name, found in given.items() if self._ends[name].transactional}
        await self.journal.durable()  # no sink commits what a request might write again
        manifest = self._manifest(epoch, prepared)
        await self._do(self._archive.save, manifest, {_LEDGER: plain}, changes)
        for end in self._ends.values():
            await end.commit(epoch)
        self.epoch = epoch
        self._first.append((epoch, first))
        oldest = await self._do(self._archive.tidy)
        while len(self._first) > 1 and self._first[1][0] <= oldest:
            self._first.pop(0)
        if self._first[0][0] <= oldest:
            await self.journal.cut(self._first[0][1])
        return epoch

    async def _close(self) -> None:
        async with self._lock:
            self._closed = True
            try:
                with suppress(Exception):  # it was told to all who waited for it
                    await self.journal.close()
            finally:
                await self._close_store()


def _log() -> BoundLogger:
    from sage.common.log import get_logger  # 50 ms of imports, which most jobs do without

    return get_logger(__name__)
