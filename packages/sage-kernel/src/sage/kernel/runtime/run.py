"""A run that was started: what can be asked of it while it goes on, and what it came to."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Literal, Protocol, TypeAlias

from sage.common.errors import UnavailableError
from sage.kernel.runtime.inbox import APPROVED, Inboxes, Parked
from sage.kernel.runtime.report import OperatorReport, RunReport

__all__ = ["Execution", "Run", "State", "interruptible"]

State: TypeAlias = Literal["running", "paused", "stopping", "done", "failed"]


class Execution(Protocol):
    """What runs a plan. Every call but `go` and `checkpoint` returns at once."""

    def go(self) -> Coroutine[Any, Any, RunReport]:
        """Run to the end."""
        ...

    def ask_stop(self) -> None:
        """Read the sources no further and let what was read drain."""
        ...

    def pause(self) -> None:
        """Let no more records in."""
        ...

    def resume(self) -> None:
        """Let records in again."""
        ...

    async def checkpoint(self) -> int:
        """Take a checkpoint now; gives its epoch once it is durable and committed."""
        ...

    def reports(self) -> tuple[OperatorReport, ...]:
        """The counts of every operator so far."""
        ...

    @property
    def begun(self) -> asyncio.Event:
        """Set once all operators are set up and the sources are read."""
        ...

    @property
    def epochs(self) -> tuple[int, int]:
        """Those of the checkpoint that it went on from and of its last one; 0 = none."""
        ...


class Run:
    """A finite flow under way; made by `LocalEnvironment.start`."""

    def __init__(self, flow: str, execution: Execution, inboxes: Inboxes) -> None:
        self.flow = flow
        self.inboxes = inboxes
        self._execution = execution
        self._asked: Literal["running", "paused", "stopping"] = "running"
        self._task = asyncio.create_task(execution.go(), name=f"sage run of {flow}")
        # An error that nobody waits for is kept for `wait`, not logged as one that was lost.
        self._task.add_done_callback(lambda task: task.cancelled() or task.exception())

    @property
    def state(self) -> State:
        """Where it stands; "failed" also when it was cut off."""
        if not self._task.done():
            return self._asked
        return "failed" if self._task.cancelled() or self._task.exception() else "done"

    def reports(self) -> tuple[OperatorReport, ...]:
        """The counts of every operator so far."""
        return self._execution.reports()

    @property
    def epochs(self) -> tuple[int, int]:
        """Those of the checkpoint that it went on from and of its last one so far; 0 = none."""
        return self._execution.epochs

    async def started(self) -> bool:
        """Wait until all operators are set up and the sources are read; false if it has ended before."""
        begun = self._execution.begun
        waiting = asyncio.ensure_future(begun.wait())
        try:
            await asyncio.wait([waiting, self._task], return_when=asyncio.FIRST_COMPLETED)
            return begun.is_set()
        finally:
            waiting.cancel()

    def parked(self, inbox: str) -> list[Parked]:
        """What waits in an inbox for a decision, the longest first."""
        return self.inboxes.parked(inbox)

    async def resolve(self, inbox: str, item_id: str, value: Any = APPROVED) -> None:
        """See `Job.resolve`."""
        self.inboxes.resolve(inbox, item_id, value)

    async def wait(self) -> RunReport:
        """Its report once it has ended; raises what it failed with. Cancelling the wait leaves it running."""
        try:
            return await asyncio.shield(self._task)
        except asyncio.CancelledError:
            if self._task.cancelled() and not _cancelled():
                raise UnavailableError(f"the run of flow {self.flow!r} was cut off.") from None
            raise

    async def pause(self) -> None:
        """Let no more records in: sources are not read until `resume`, and what was read goes on."""
        self._need_running("pause")
        self._asked = "paused"
        self._execution.pause()

    async def resume(self) -> None:
        """Read the sources again."""
        self._need_running("resume")
        self._asked = "running"
        self._execution.resume()

    async def checkpoint(self) -> int:
        """Take a checkpoint now, also while paused; gives its epoch once it is durable and committed."""
        self._need_running("take a checkpoint of")
        asking = asyncio.ensure_future(self._execution.checkpoint())
        try:
            await asyncio.wait([asking, self._task], return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not asking.done():
                asking.cancel()
        if asking.done() and not asking.cancelled():
            return asking.result()
        await self.wait()  # raises what it failed with
        raise UnavailableError(f"the run of flow {self.flow!r} ended before its checkpoint.")

    async def stop(self, *, drain: bool = True) -> None:
        """End it before its sources end, and return when it has: `wait` then gives or raises what it came to.

        What was read drains first; without `drain` it is cut off where it is.
        """
        if not self._task.done():
            self._asked = "stopping"
            if drain:
                self._execution.ask_stop()
            else:
                self._task.cancel()
        await asyncio.wait([self._task])

    def _need_running(self, verb: str) -> None:
        if self.state not in ("running", "paused"):
            raise UnavailableError(f"cannot {verb} the run of flow {self.flow!r}: it is {self.state}.")


def _cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def interruptible(run: Callable[..., Coroutine[Any, Any, RunReport]]) -> RunReport:
    """`run(stop=event)`, whose event the first Ctrl-C sets; the second one stops at once."""
    stop = asyncio.Event()
    if threading.current_thread() is threading.main_thread():
        loop = asyncio.get_running_loop()

        def interrupt() -> None:
            stop.set()
            loop.remove_signal_handler(signal.SIGINT)

        loop.add_signal_handler(signal.SIGINT, interrupt)
    return await run(stop=stop)
