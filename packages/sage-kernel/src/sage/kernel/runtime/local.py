"""Running flows on one event loop of this process."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable
from typing import TypeAlias

from sage.common.errors import UsageError
from sage.kernel.compile import Compiled, Edge, Op, Stage, compile_plan
from sage.kernel.flow import Flow
from sage.kernel.options import Batch
from sage.kernel.plan import PlanError
from sage.kernel.registry import Registry, default_registry
from sage.kernel.runtime.calls import AsyncStage
from sage.kernel.runtime.chain import Chain, step_of
from sage.kernel.runtime.channel import Channel, Writer
from sage.kernel.runtime.job import Job
from sage.kernel.runtime.kernels import Faults, call_of
from sage.kernel.runtime.report import Counters, OperatorReport, RunReport, reports
from sage.kernel.runtime.resources import commit, opened
from sage.kernel.runtime.run import Run
from sage.kernel.runtime.stages import Outputs, Stop, feed, pump, tell_time, write
from sage.kernel.runtime.timed import Clock

__all__ = ["LocalEnvironment", "Progress"]

Progress: TypeAlias = Callable[[tuple[OperatorReport, ...]], None]
PROGRESS_EVERY = 0.1


class LocalEnvironment:
    """Runs flows in this process.

    `batch` is how many records a kernel takes at once, `capacity` how many may queue between two stages.
    `on_progress` is called with the counters of every operator, at most every 100 ms and once at the end.
    """

    def __init__(
        self,
        *,
        batch: int = 64,
        capacity: int = 1024,
        on_progress: Progress | None = None,
        registry: Registry | None = None,
    ) -> None:
        if batch < 1 or capacity < 1:
            raise UsageError(f"LocalEnvironment(batch={batch}, capacity={capacity}): both are at least 1.")
        self._batch = batch
        self._capacity = capacity
        self._on_progress = on_progress
        self._registry = registry or default_registry()

    async def run(self, flow: Flow, *, stop: asyncio.Event | None = None) -> RunReport:
        """Run a finite flow to its end, or to its first error, which names operator, item and position.

        Once `stop` is set, sources are read no further and what was read drains; the report says so.
        """
        run = await self.start(flow)
        watching = asyncio.create_task(_stop_when(stop, run)) if stop else None
        try:
            return await run.wait()
        except asyncio.CancelledError:
            await run.stop(drain=False)
            raise
        finally:
            if watching:
                watching.cancel()

    async def start(self, flow: Flow) -> Run:
        """Start a finite flow and return a handle: to wait, stop, pause and look at its counts meanwhile."""
        plan = compile_plan(flow.plan, self._registry)
        if any(op.node.verb == "requests" for op in plan.ops):
            raise PlanError(flow.name, ["it answers requests: start it with submit(flow), not run(flow)"])
        return Run(flow.name, _Execution(plan, self._batch, self._capacity, self._on_progress))

    def run_sync(self, flow: Flow) -> RunReport:
        """`run` for code without an event loop; the first Ctrl-C drains, the second one stops at once."""

        async def main() -> RunReport:
            stop = asyncio.Event()
            if threading.current_thread() is threading.main_thread():
                loop = asyncio.get_running_loop()

                def interrupt() -> None:
                    stop.set()
                    loop.remove_signal_handler(signal.SIGINT)

                loop.add_signal_handler(signal.SIGINT, interrupt)
            return await self.run(flow, stop=stop)

        return asyncio.run(main())

    async def submit(self, flow: Flow, *, limit: int = 1024) -> Job:
        """Start a flow of requests; over `limit` in flight, they are refused with `OverloadedError`."""
        plan = compile_plan(flow.plan, self._registry)
        if not any(op.node.verb == "requests" for op in plan.ops):
            raise PlanError(flow.name, ["it has no requests: run it with run(flow), not submit(flow)"])
        return await Job.start(plan, limit)


class _Execution:
    """One run of a compiled finite flow."""

    def __init__(self, plan: Compiled, batch: int, capacity: int, on_progress: Progress | None) -> None:
        self._plan = plan
        self._batch = Batch(batch)
        self._on_progress = on_progress
        self._stop = Stop()
        shown = [op for op in plan.ops if op.node.verb != "merge"]
        self._counters = {op.index: Counters(op.node.name, op.node.verb) for op in shown}
        self._faults = {i: Faults(plan.ops[i], counters) for i, counters in self._counters.items()}
        self._inboxes = [Channel(capacity) for _ in plan.stages]
        self._outputs = [self._outputs_of(stage) for stage in plan.stages]

    def ask_stop(self) -> None:
        """See `Execution`."""
        self._stop.ask()

    def pause(self) -> None:
        """See `Execution`."""
        self._stop.pause()

    def resume(self) -> None:
        """See `Execution`."""
        self._stop.resume()

    async def checkpoint(self) -> int:
        """See `Execution`."""
        raise UsageError(f"flow {self._plan.name!r} runs without checkpoints.")

    def reports(self) -> tuple[OperatorReport, ...]:
        """See `Execution`."""
        return reports(self._counters.values())

    async def go(self) -> RunReport:
        """Set up, run every stage, commit, close."""
        start = time.perf_counter()
        try:
            async with opened(self._plan.ops):
                await self._run_stages()
                await commit(self._plan.ops)
        except BaseExceptionGroup as group:
            error: BaseException = group
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            raise error from error.__cause__
        seconds = time.perf_counter() - start
        if self._on_progress:
            self._on_progress(self.reports())
        return RunReport(self._plan.name, seconds, self._stop.asked, self.reports())

    async def _run_stages(self) -> None:
        async with asyncio.TaskGroup() as helpers:
            showing = helpers.create_task(self._show(self._on_progress)) if self._on_progress else None
            async with asyncio.TaskGroup() as group:
                wired = zip(self._plan.stages, self._inboxes, self._outputs, strict=True)
                for stage, inbox, outputs in wired:
                    self._start(group, stage, inbox, outputs)
            if showing:
                showing.cancel()

    def _outputs_of(self, stage: Stage) -> Outputs:
        def writers(readers: list[Edge]) -> list[Writer]:
            return [self._inboxes[edge.stage].writer(edge.side) for edge in readers]

        diverted = [(self._faults[op], writers(readers)) for op, readers in stage.diverted.items()]
        return Outputs(writers(stage.outs), diverted, self._lead(stage))

    def _lead(self, stage: Stage) -> Counters:
        return self._counters[stage.ops[0].index] if stage.ops else Counters("", "merge")

    def _start(self, group: asyncio.TaskGroup, stage: Stage, inbox: Channel, outputs: Outputs) -> None:
        head, lead = stage.head, self._lead(stage)
        if head is None:
            group.create_task(pump(inbox, self._batch, self._chain(stage.fused), outputs, lead))
        elif head.node.verb == "source":
            chain = self._chain(stage.fused)
            group.create_task(feed(head, lead, self._stop, self._batch.size, chain, outputs))
        elif head.node.verb == "event_time":
            clock, chain = Clock(head.fn, self._faults[head.index]), self._chain(stage.fused)
            group.create_task(tell_time(clock, inbox, self._batch, chain, outputs, lead))
        elif head.node.verb == "sink":
            group.create_task(write(head, inbox, self._batch, lead))
        elif head.mode == "sync":
            batch = head.node.batch or self._batch
            group.create_task(pump(inbox, batch, self._chain(stage.ops), outputs, lead))
        else:
            call, faults = call_of(head, lead), self._faults[head.index]
            calls = AsyncStage(head, call, faults, inbox, self._chain(stage.fused), outputs)
            group.create_task(calls.run(group))

    def _chain(self, ops: list[Op]) -> Chain:
        return Chain([step_of(op, self._faults[op.index]) for op in ops])

    async def _show(self, on_progress: Progress) -> None:
        while True:
            await asyncio.sleep(PROGRESS_EVERY)
            on_progress(self.reports())


async def _stop_when(event: asyncio.Event, run: Run) -> None:
    await event.wait()
    await run.stop()
