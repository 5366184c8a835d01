"""A stage's part in checkpoints: it lets a barrier pass and hands over the state of its operators."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Protocol

from sage.kernel.runtime.chain import Chain
from sage.kernel.runtime.channel import Channel
from sage.kernel.runtime.columns import Barrier
from sage.kernel.runtime.outputs import Outputs
from sage.kernel.runtime.report import Counters
from sage.kernel.runtime.state import LOOP_SECONDS, Changes, changed, pickled, pickled_batch, unpickled

__all__ = ["Coordination", "Participant", "Snapshot"]


@dataclass(slots=True)
class Snapshot:
    """What a stage hands over: `plain` data as bytes, the `changes` of its operators with state by name.

    `ended`: the stage has nothing more to do. `prepared`: what its sink gave.
    """

    plain: bytes = b""
    changes: dict[str, Changes] = field(default_factory=dict)
    ended: bool = False
    prepared: Any = None


class Coordination(Protocol):
    """Who gathers the snapshots."""

    def handed(self, stage: str, snapshot: Snapshot) -> None:
        """A stage has let the barrier pass."""
        ...

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A task of the run: what it raises ends the run."""
        ...


class Participant:
    """One stage. Its loop calls `take` where a `Barrier` comes up; nothing else of the stage runs then.

    `begin` starts a checkpoint at this stage where no barrier comes in: at a source, and where all inputs
    have ended. `restored`: what `take` was given as `own`, or what was `final`, in the checkpoint that the
    run goes on from. `on_front` is called when a barrier that is in a hurry has come in, `on_commit` when a
    checkpoint is durable and committed.
    """

    def __init__(
        self, name: str, inbox: Channel, chain: Chain, outputs: Outputs, counters: list[Counters]
    ) -> None:
        self.name = name
        self.inbox = inbox
        self.chain = chain
        self.outputs = outputs
        self.counters = counters
        self.restored: Any = None
        self.final: Any = None
        self.on_commit: Callable[[], Awaitable[None]] | None = None
        self.begin: Callable[[Barrier], None] = inbox.inject
        self.on_front: Callable[[], None] | None = None
        self.coordination: Coordination | None = None
        self._passed = 0
        inbox.on_front = self._in_front

    async def take(self, barrier: Barrier, own: Any = None, prepared: Any = None) -> None:
        """Pass the barrier on and hand over the state: that of the fused operators, and the stage's `own`."""
        assert self.coordination is not None, "a barrier comes from the coordinator"
        plain: dict[str, Any] = {
            "ended": False,
            "inbox": self.inbox.marks,
            "counts": [one.counts() for one in self.counters],
            "operators": {name: stateful.plain() for name, stateful in self.chain.stateful},
        }
        self._passed = barrier.epoch
        self.outputs.barrier(barrier)
        plain["own"] = own
        plain["queued"] = await self._overtaken()
        self.inbox.settle()
        changes = {name: await changed(name, stateful) for name, stateful in self.chain.stateful}
        data = pickled(plain, f"what stage {self.name!r} holds")
        self.coordination.handed(self.name, Snapshot(data, changes, prepared=prepared))

    def hurry(self, barrier: Barrier) -> None:
        """Let the barrier through before what is queued, and do not wait for room."""
        if self._passed < barrier.epoch:
            self.inbox.hurry()
            if self.inbox.passed == barrier.epoch or not self.inbox.writers:
                self.outputs.hurry()

    def last_words(self) -> dict[str, Any]:
        """What a checkpoint has of a stage that has ended."""
        return {"ended": True, "counts": [one.counts() for one in self.counters], "own": self.final}

    def start_anew(self) -> None:
        """There is nothing to go on from."""
        for _, stateful in self.chain.stateful:
            stateful.begin((), None)

    def had_ended(self, plain: dict[str, Any]) -> None:
        """Restore `last_words`."""
        self.restored = self.final = plain["own"]
        for counters, counts in zip(self.counters, plain["counts"], strict=True):
            counters.begin(counts)

    def go_on(self, plain: dict[str, Any], states: Mapping[str, Mapping[bytes, bytes]]) -> None:
        """Restore what `take` had handed over."""
        what = f"what stage {self.name!r} holds"
        self.inbox.begin(plain["inbox"], [unpickled(one, what) for one in plain["queued"]])
        for counters, counts in zip(self.counters, plain["counts"], strict=True):
            counters.begin(counts)
        self.restored = plain["own"]
        for name, stateful in self.chain.stateful:
            what = f"the state of operator {name!r}"
            found = states.get(name, {}).items()
            pairs = ((unpickled(key, what), unpickled(state, what)) for key, state in found)
            stateful.begin(pairs, plain["operators"][name])

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A task of the run, beside the stage's own."""
        assert self.coordination is not None, "a barrier comes from the coordinator"
        return self.coordination.spawn(coroutine)

    async def _overtaken(self) -> list[bytes]:
        found, start = [], perf_counter()
        for one in self.inbox.overtaken:
            found.append(pickled_batch(one, self.name))
            if perf_counter() - start > LOOP_SECONDS:
                await asyncio.sleep(0)
                start = perf_counter()
        return found

    def _in_front(self) -> None:
        self.outputs.hurry()
        if self.on_front is not None:
            self.on_front()
