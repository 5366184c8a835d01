"""Running flows on one event loop of this process."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

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
from sage.kernel.runtime.replicas.opening import opened_pools
from sage.kernel.runtime.replicas.pool import Pool
from sage.kernel.runtime.replicas.stage import ParallelStage
from sage.kernel.runtime.report import Counters, OperatorReport, RunReport, reports
from sage.kernel.runtime.resources import commit, opened
from sage.kernel.runtime.stages import Outputs, Stop, feed, pump, tell_time, write
from sage.kernel.runtime.timed import Clock

if TYPE_CHECKING:
    from sage.kernel.scheduler import Node

__all__ = ["LocalEnvironment", "Progress"]

Progress: TypeAlias = Callable[[tuple[OperatorReport, ...]], None]
PROGRESS_EVERY = 0.1
PER_WORKER = 4
"""How many times `batch` a worker takes at once, at most: the way there costs as much as 50 quick calls."""


class LocalEnvironment:
    """Runs flows in this process.

    `batch` is how many records a kernel takes at once, `capacity` how many may queue between two stages.
    `on_progress` is called with the counters of every operator, at most every 100 ms and once at the end.
    `machine` is what operators with `resources` find here; without it, what this process may use.
    """

    def __init__(
        self,
        *,
        batch: int = 64,
        capacity: int = 1024,
        on_progress: Progress | None = None,
        registry: Registry | None = None,
        machine: Node | None = None,
    ) -> None:
        if batch < 1 or capacity < 1:
            raise UsageError(f"LocalEnvironment(batch={batch}, capacity={capacity}): both are at least 1.")
        self._settings = _Settings(Batch(batch), capacity, on_progress, machine)
        self._registry = registry or default_registry()

    async def run(self, flow: Flow, *, stop: asyncio.Event | None = None) -> RunReport:
        """Run a finite flow to its end, or to its first error, which names operator, item and position.

        Once `stop` is set, sources are read no further and what was read drains; the report says so.
        """
        plan = compile_plan(flow.plan, self._registry)
        if any(op.node.verb == "requests" for op in plan.ops):
            raise PlanError(flow.name, ["it answers requests: start it with submit(flow), not run(flow)"])
        return await _Run(plan, self._settings).go(stop)

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
        return await Job.start(plan, limit, self._settings.machine)


@dataclass(frozen=True, slots=True)
class _Settings:
    """What an environment was made with, but for the registry."""

    batch: Batch
    capacity: int
    on_progress: Progress | None
    machine: Node | None


class _Run:
    """One run of a compiled finite flow."""

    def __init__(self, plan: Compiled, settings: _Settings) -> None:
        self._plan = plan
        self._batch = settings.batch
        self._on_progress = settings.on_progress
        self._machine = settings.machine
        self._pools: dict[int, Pool] = {}
        self._stop = Stop()
        shown = [op for op in plan.ops if op.node.verb != "merge"]
        self._counters = {op.index: Counters(op.node.name, op.node.verb) for op in shown}
        self._faults = {i: Faults(plan.ops[i], counters) for i, counters in self._counters.items()}
        self._inboxes = [Channel(settings.capacity) for _ in plan.stages]
        self._outputs = [self._outputs_of(stage) for stage in plan.stages]

    async def go(self, stop: asyncio.Event | None) -> RunReport:
        """Set up, run every stage, commit, close."""
        start = time.perf_counter()
        try:
            async with opened(self._plan.ops), opened_pools(self._plan, self._machine) as self._pools:
                await self._run_stages(stop)
                await commit(self._plan.ops)
        except BaseExceptionGroup as group:
            error: BaseException = group
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            raise error from error.__cause__
        seconds = time.perf_counter() - start
        if self._on_progress:
            self._on_progress(reports(self._counters.values()))
        return RunReport(self._plan.name, seconds, self._stop.asked, reports(self._counters.values()))

    async def _run_stages(self, stop: asyncio.Event | None) -> None:
        async with asyncio.TaskGroup() as helpers:
            helping = []
            if self._on_progress:
                helping.append(helpers.create_task(self._show(self._on_progress)))
            if stop:
                helping.append(helpers.create_task(self._watch(stop)))
            async with asyncio.TaskGroup() as group:
                wired = zip(self._plan.stages, self._inboxes, self._outputs, strict=True)
                for stage, inbox, outputs in wired:
                    self._start(group, stage, inbox, outputs)
            for helper in helping:
                helper.cancel()

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
        elif stage.on_workers:
            group.create_task(self._parallel(stage, outputs).run(inbox))
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

    def _parallel(self, stage: Stage, outputs: Outputs) -> ParallelStage:
        ops = stage.on_workers
        faults = [self._faults[op.index] for op in ops]
        chain, limit = self._chain(stage.ops[len(ops) :]), PER_WORKER * self._batch.size
        return ParallelStage(ops, self._pools[ops[0].index], faults, limit, chain, outputs)

    def _chain(self, ops: list[Op]) -> Chain:
        return Chain([step_of(op, self._faults[op.index]) for op in ops])

    async def _show(self, on_progress: Progress) -> None:
        while True:
            await asyncio.sleep(PROGRESS_EVERY)
            on_progress(reports(self._counters.values()))

    async def _watch(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._stop.ask()
