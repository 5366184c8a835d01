"""Running flows on one event loop of this process."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, TypeAlias

from sage.common.clock import Clock, SystemClock
from sage.common.errors import UsageError
from sage.kernel.compile import Compiled, Edge, Op, Stage, compile_plan
from sage.kernel.flow import Flow
from sage.kernel.options import Batch
from sage.kernel.plan import PlanError
from sage.kernel.registry import Registry, default_registry
from sage.kernel.runtime.calls import AsyncStage
from sage.kernel.runtime.chain import Chain, step_of
from sage.kernel.runtime.channel import Channel, Writer
from sage.kernel.runtime.engine import Engine, running
from sage.kernel.runtime.gates import GateStage
from sage.kernel.runtime.inbox import Inboxes
from sage.kernel.runtime.job import Job
from sage.kernel.runtime.kernels import Faults, call_of
from sage.kernel.runtime.report import Counters, OperatorReport, RunReport, reports
from sage.kernel.runtime.resources import commit
from sage.kernel.runtime.shared import LIMIT, ServiceFactory, serving
from sage.kernel.runtime.stages import Outputs, Stop, feed, pump, tell_time, write
from sage.kernel.runtime.timed import Clock as EventClock
from sage.kernel.runtime.walk import as_stage, by_item, item_call
from sage.kernel.services import bound

__all__ = ["LocalEnvironment", "Progress"]

Progress: TypeAlias = Callable[[tuple[OperatorReport, ...]], None]
PROGRESS_EVERY = 0.1


class LocalEnvironment:
    """Runs flows in this process.

    `batch` is how many records a kernel takes at once, `capacity` how many may queue between two stages.
    `on_progress` is called with the counters of every operator, at most every 100 ms and once at the end.
    `clock` is what time is told by where records have none of their own: caches, kept state, gates.
    """

    def __init__(
        self,
        *,
        batch: int = 64,
        capacity: int = 1024,
        on_progress: Progress | None = None,
        registry: Registry | None = None,
        clock: Clock | None = None,
    ) -> None:
        if batch < 1 or capacity < 1:
            raise UsageError(f"LocalEnvironment(batch={batch}, capacity={capacity}): both are at least 1.")
        self._batch = batch
        self._capacity = capacity
        self._on_progress = on_progress
        self._registry = registry or default_registry()
        self._clock = clock or SystemClock()
        self._services: dict[str, ServiceFactory] = {}

    def register_service(self, name: str, factory: ServiceFactory) -> None:
        """Let operators call `call_service(name)`: what `factory` makes, once per run, is shared by them.

        A class or function is called, and `setup` and `close` of what it gives, where they exist; a flow of
        requests is started and answers.
        """
        if not name or not (callable(factory) or isinstance(factory, Flow)):
            raise UsageError(f"register_service({name!r}, {factory!r}) needs a name and a function or Flow.")
        self._services[name] = factory

    def check(self, flow: Flow) -> None:
        """`Flow.check`, and whether the operators fit their verbs and the services they call are there."""
        compile_plan(flow.plan, self._registry, self._services)

    async def run(
        self, flow: Flow, *, stop: asyncio.Event | None = None, inboxes: Inboxes | None = None
    ) -> RunReport:
        """Run a finite flow to its end, or to its first error, which names operator, item and position.

        Once `stop` is set, sources are read no further and what was read drains; the report says so. Through
        `inboxes` others decide on what the gates of the flow park.
        """
        plan = compile_plan(flow.plan, self._registry, self._services)
        if any(op.node.verb == "requests" for op in plan.ops):
            raise PlanError(flow.name, ["it answers requests: start it with submit(flow), not run(flow)"])
        engine = Engine(flow.name, self._clock, inboxes or Inboxes(), waits=True)
        services: dict[str, Any] = {}
        with bound(services):
            async with serving(self._services, services, self._registry, self._clock):
                run = _Run(plan, engine, self._batch, self._capacity, self._on_progress)
                return await run.go(stop)

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

    async def submit(self, flow: Flow, *, limit: int = LIMIT) -> Job:
        """Start a flow of requests; over `limit` in flight, they are refused with `OverloadedError`."""
        plan = compile_plan(flow.plan, self._registry, self._services)
        if not any(op.node.verb == "requests" for op in plan.ops):
            raise PlanError(flow.name, ["it has no requests: run it with run(flow), not submit(flow)"])
        services: dict[str, Any] = {}
        before = serving(self._services, services, self._registry, self._clock)
        return await Job.start(plan, limit, Engine(flow.name, self._clock), services, before)


class _Run:
    """One run of a compiled finite flow."""

    def __init__(
        self, plan: Compiled, engine: Engine, batch: int, capacity: int, on_progress: Progress | None
    ) -> None:
        self._plan = plan
        self._engine = engine
        self._batch = Batch(batch)
        self._on_progress = on_progress
        self._stop = Stop()
        shown = [op for op in plan.ops if op.node.verb != "merge"]
        self._counters = {op.index: Counters(op.node.name, op.node.verb) for op in shown}
        self._faults = {i: Faults(plan.ops[i], counters) for i, counters in self._counters.items()}
        self._inboxes = [Channel(capacity) for _ in plan.stages]
        self._outputs = [self._outputs_of(stage) for stage in plan.stages]
        # The calls of single items are made first: they tell the engine what is to be opened.
        heads = [stage.head for stage in plan.stages if stage.head and by_item(stage.head)]
        self._calls = {op.index: item_call(op, self._counters[op.index], engine) for op in heads}

    async def go(self, stop: asyncio.Event | None) -> RunReport:
        """Set up, run every stage, commit, close."""
        start = time.perf_counter()
        try:
            async with running(self._plan, self._engine):
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
        elif head.node.verb == "source":
            chain = self._chain(stage.fused)
            group.create_task(feed(head, lead, self._stop, self._batch.size, chain, outputs))
        elif head.node.verb == "event_time":
            clock, chain = EventClock(head.fn, self._faults[head.index]), self._chain(stage.fused)
            group.create_task(tell_time(clock, inbox, self._batch, chain, outputs, lead))
        elif head.node.verb == "sink":
            group.create_task(write(head, inbox, self._batch, lead))
        elif head.node.verb == "gate":
            gate = GateStage(head, self._faults[head.index], self._chain(stage.fused), outputs, self._engine)
            group.create_task(gate.run(group, inbox, self._batch))
        elif head.mode == "sync" and head.index not in self._calls:
            batch = head.node.batch or self._batch
            group.create_task(pump(inbox, batch, self._chain(stage.ops), outputs, lead))
        else:
            call, faults = self._calls.get(head.index), self._faults[head.index]
            seen = head if call is None else as_stage(head)
            calls = AsyncStage(
                seen, call or call_of(head, lead), faults, inbox, self._chain(stage.fused), outputs
            )
            group.create_task(calls.run(group))

    def _chain(self, ops: list[Op]) -> Chain:
        return Chain([step_of(op, self._faults[op.index], self._engine.clock) for op in ops])

    async def _show(self, on_progress: Progress) -> None:
        while True:
            await asyncio.sleep(PROGRESS_EVERY)
            on_progress(reports(self._counters.values()))

    async def _watch(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._stop.ask()
