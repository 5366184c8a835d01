"""Running flows on one event loop of this process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from sage.common.clock import Clock, SystemClock
from sage.common.errors import UsageError
from sage.kernel.compile import Compiled, Edge, Op, Stage, compile_plan
from sage.kernel.flow import Flow
from sage.kernel.options import Batch, Checkpoints
from sage.kernel.plan import PlanError
from sage.kernel.registry import Registry, default_registry
from sage.kernel.runtime.calls import AsyncStage
from sage.kernel.runtime.chain import Chain, step_of
from sage.kernel.runtime.channel import Channel, Writer
from sage.kernel.runtime.checkpoint import Coordinator
from sage.kernel.runtime.engine import Engine, Surroundings, running
from sage.kernel.runtime.gates import GateStage
from sage.kernel.runtime.job import Job
from sage.kernel.runtime.kernels import Faults, call_of
from sage.kernel.runtime.ledger import Ledger
from sage.kernel.runtime.mutation import SharingOutputs, guarded
from sage.kernel.runtime.outputs import Outputs
from sage.kernel.runtime.participant import Participant
from sage.kernel.runtime.replicas.stage import ParallelStage
from sage.kernel.runtime.report import Counters, OperatorReport, RunReport, reports
from sage.kernel.runtime.resources import begin_anew, commit
from sage.kernel.runtime.run import Run, interruptible
from sage.kernel.runtime.shared import LIMIT, ServiceFactory, serving
from sage.kernel.runtime.sinks import SinkEnd, write
from sage.kernel.runtime.sources import Reader, Stop
from sage.kernel.runtime.spans import Runner
from sage.kernel.runtime.stages import pump, tell_time
from sage.kernel.runtime.timed import Clock as EventClock
from sage.kernel.runtime.walk import as_stage, by_item, item_call
from sage.kernel.runtime.weight import CHANNEL_BYTES
from sage.kernel.services import bound

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

    from sage.kernel.scheduler import Node

__all__ = ["LocalEnvironment", "Progress"]

Progress: TypeAlias = Callable[[tuple[OperatorReport, ...]], None]
PROGRESS_EVERY = 0.1
PER_WORKER = 16
"""How many times `batch` a worker takes at once, at most: the way there costs as much as 600 quick calls."""


class LocalEnvironment:
    """Runs flows in this process.

    `batch` is how many records a kernel takes at once, `capacity` how many may queue between two stages,
    `capacity_bytes` about how much memory these may hold.
    `on_progress` is called with the counters of every operator, at most every 100 ms and once at the end.
    With `checkpoints` a run goes on from the newest one in their folder, where there is one.
    `clock` is what time is told by where records have none of their own: caches, kept state, gates.
    `machine` is what operators with `resources` find here; without it, what this process may use.
    `debug` finds operators that change records which others have as well; it is slow.
    `tracer` is one of OpenTelemetry, which gets a span for each run, request and operator.
    """

    def __init__(
        self,
        *,
        batch: int = 64,
        capacity: int = 1024,
        capacity_bytes: int = CHANNEL_BYTES,
        on_progress: Progress | None = None,
        registry: Registry | None = None,
        checkpoints: Checkpoints | None = None,
        clock: Clock | None = None,
        machine: Node | None = None,
        debug: bool = False,
        tracer: Tracer | None = None,
    ) -> None:
        if min(batch, capacity, capacity_bytes) < 1:
            given = f"batch={batch}, capacity={capacity}, capacity_bytes={capacity_bytes}"
            raise UsageError(f"LocalEnvironment({given}): all are at least 1.")
        self._settings = _Settings(Batch(batch), capacity, capacity_bytes, on_progress)
        self._registry = registry or default_registry()
        self._checkpoints = checkpoints
        self._around = Surroundings(clock or SystemClock(), machine, debug, tracer)
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
        """Start a finite flow and return a handle: to wait, stop, pause and look at it meanwhile."""
        plan = compile_plan(flow.plan, self._registry, self._services)
        if any(op.node.verb == "requests" for op in plan.ops):
            raise PlanError(flow.name, ["it answers requests: start it with submit(flow), not run(flow)"])
        coordinator = Coordinator(plan, self._checkpoints) if self._checkpoints else None
        engine = Engine(flow.name, self._around, waits=True)
        before = serving(self._services, self._registry, engine)
        return Run(flow.name, _Execution(plan, engine, self._settings, coordinator, before), engine.inboxes)

    def run_sync(self, flow: Flow) -> RunReport:
        """`run` for code without an event loop; the first Ctrl-C drains, the second one stops at once."""
        return asyncio.run(interruptible(partial(self.run, flow)))

    async def submit(self, flow: Flow, *, limit: int = LIMIT) -> Job:
        """Start a flow of requests; over `limit` in flight, they are refused with `OverloadedError`.

        With checkpoints, requests that an earlier job of the folder has not answered are taken up again.
        """
        plan = compile_plan(flow.plan, self._registry, self._services)
        if not any(op.node.verb == "requests" for op in plan.ops):
            raise PlanError(flow.name, ["it has no requests: run it with run(flow), not submit(flow)"])
        ledger = Ledger(plan, self._checkpoints) if self._checkpoints else None
        engine = Engine(flow.name, self._around, ledger=ledger)
        before = serving(self._services, self._registry, engine)
        return await Job.start(plan, limit, engine, before)


@dataclass(frozen=True, slots=True)
class _Settings:
    """How a finite run moves its records."""

    batch: Batch
    capacity: int
    capacity_bytes: int
    on_progress: Progress | None


class _DrainedError(Exception):
    """All that was read is in a checkpoint: the stages are not needed any more."""


class _Execution:
    """One run of a compiled finite flow."""

    def __init__(
        self,
        plan: Compiled,
        engine: Engine,
        settings: _Settings,
        coordinator: Coordinator | None,
        before: AbstractAsyncContextManager[None],
    ) -> None:
        self._plan = plan = guarded(plan, engine.shares) if engine.shares else plan
        self._engine = engine
        self._batch = settings.batch
        self._on_progress = settings.on_progress
        self._coordinator = coordinator
        self._before = before
        self._stop = Stop()
        self._interrupted = asyncio.Event()
        self.begun = asyncio.Event()
        shown = [op for op in plan.ops if op.node.verb != "merge"]
        self._counters = {op.index: Counters(op.node.name, op.node.verb) for op in shown}
        self._faults = {i: Faults(plan.ops[i], counters) for i, counters in self._counters.items()}
        self._inboxes = [Channel(settings.capacity, settings.capacity_bytes) for _ in plan.stages]
        outputs = [self._outputs_of(stage) for stage in plan.stages]
        wired = zip(plan.stages, self._inboxes, outputs, strict=True)
        self._members = [self._participant(*one) for one in wired]
        self._readers: dict[int, Reader] = {}
        self._ends = {s.name: SinkEnd(s.head) for s in plan.stages if s.head and s.head.node.verb == "sink"}
        heads = [(s.head, member) for s, member in zip(plan.stages, self._members, strict=True) if s.head]
        # Before anything is opened or restored: that is when it has to be known what there is.
        self._calls = {
            op.index: item_call(op, self._counters[op.index], engine) for op, _ in heads if by_item(op)
        }
        self._gates = {
            op.index: GateStage(op, self._faults[op.index], member, engine)
            for op, member in heads
            if op.node.verb == "gate"
        }

    def ask_stop(self) -> None:
        """See `Execution`."""
        self._interrupted.set()
        if self._coordinator is None:
            self._stop.ask()
        else:
            self._stop.pause()

    def pause(self) -> None:
        """See `Execution`."""
        self._stop.pause()

    def resume(self) -> None:
        """See `Execution`."""
        self._stop.resume()

    async def checkpoint(self) -> int:
        """See `Execution`."""
        if self._coordinator is None:
            raise UsageError(
                f"flow {self._plan.name!r} runs without checkpoints: "
                "LocalEnvironment(checkpoints=Checkpoints(folder)) takes them."
            )
        return await self._coordinator.checkpoint()

    def reports(self) -> tuple[OperatorReport, ...]:
        """See `Execution`."""
        return reports(self._counters.values())

    @property
    def epochs(self) -> tuple[int, int]:
        """See `Execution`."""
        return (self._coordinator.resumed, self._coordinator.epoch) if self._coordinator else (0, 0)

    async def go(self) -> RunReport:
        """Set up, run every stage, commit, close."""
        start = time.perf_counter()
        try:
            with self._engine.spans.run(), bound(self._engine.services):
                if self._coordinator is None:
                    async with self._running():
                        await begin_anew(self._plan.ops)
                        await self._run_stages()
                        await commit(self._plan.ops, self._positions())
                else:
                    async with self._coordinator.opened():
                        await self._go_on(self._coordinator)
        except BaseExceptionGroup as group:
            error: BaseException = group
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            raise error from error.__cause__
        if self._on_progress:
            self._on_progress(self.reports())
        return self._report(time.perf_counter() - start)

    def _positions(self) -> dict[int, Any]:
        return {at: one.position for at, one in self._readers.items() if one.position is not None}

    def _running(self) -> AbstractAsyncContextManager[None]:
        return running(self._plan, self._engine, self._before)

    async def _go_on(self, coordinator: Coordinator) -> None:
        coordinator.join(self._members, self._ends.values())
        if coordinator.already_done:
            return
        async with self._running():
            await coordinator.recover()
            try:
                await self._run_stages()
            except* _DrainedError:
                pass

    async def _run_stages(self) -> None:
        # All are there before the first of them runs: a checkpoint may begin at any time.
        wrap = self._engine.spans.stage
        runners = [
            wrap([self._counters[op.index] for op in stage.ops], self._runner(stage, member))
            for stage, member in zip(self._plan.stages, self._members, strict=True)
        ]
        if self._coordinator:
            await self._coordinator.acknowledge()
        self.begun.set()
        async with asyncio.TaskGroup() as helpers:
            helping = []
            if self._on_progress:
                helping.append(helpers.create_task(self._show(self._on_progress)))
            if self._coordinator:
                helping.append(helpers.create_task(self._coordinator.run(helpers)))
                helping.append(helpers.create_task(self._drain(self._coordinator)))
            async with asyncio.TaskGroup() as group:
                for member, runner in zip(self._members, runners, strict=True):
                    if self._coordinator and self._coordinator.is_over(member.name):
                        member.outputs.close()
                    else:
                        group.create_task(self._to_its_end(member, runner(group)))
            if self._coordinator:
                await self._coordinator.finish()
            for helper in helping:
                helper.cancel()

    async def _to_its_end(self, member: Participant, running: Coroutine[Any, Any, None]) -> None:
        await running
        if self._coordinator:
            self._coordinator.ended(member)

    async def _drain(self, coordinator: Coordinator) -> None:
        await self._interrupted.wait()
        if await coordinator.drain():
            raise _DrainedError

    def _report(self, seconds: float) -> RunReport:
        interrupted, found = self._interrupted.is_set(), self._coordinator
        if found is None:
            return RunReport(self._plan.name, seconds, interrupted, self.reports())
        return RunReport(
            self._plan.name,
            seconds,
            interrupted,
            self.reports(),
            found.resumed,
            found.epoch,
            found.already_done,
            found.warnings,
        )

    def _participant(self, stage: Stage, inbox: Channel, outputs: Outputs) -> Participant:
        head, counters = stage.head, [self._counters[op.index] for op in stage.ops]
        alone = ("source", "event_time", "gate")
        apart = head is not None and (head.mode != "sync" or head.node.verb in alone or by_item(head))
        chain = self._chain(stage.ops[len(stage.on_workers) or int(apart) :])
        return Participant(stage.name, inbox, chain, outputs, counters)

    def _outputs_of(self, stage: Stage) -> Outputs:
        def writers(readers: list[Edge]) -> list[Writer]:
            return [self._inboxes[edge.stage].writer(edge.side) for edge in readers]

        diverted = [(self._faults[op], writers(readers)) for op, readers in stage.diverted.items()]
        if shares := self._engine.shares:
            return SharingOutputs(writers(stage.outs), diverted, self._lead(stage), shares)
        return Outputs(writers(stage.outs), diverted, self._lead(stage))

    def _lead(self, stage: Stage) -> Counters:
        return self._counters[stage.ops[0].index] if stage.ops else Counters("", "merge")

    def _runner(self, stage: Stage, member: Participant) -> Runner:
        head, lead = stage.head, self._lead(stage)
        if head is None:
            return lambda _: pump(member, self._batch, lead)
        if head.node.verb == "source":
            reader = self._readers[head.index] = Reader(head, lead, self._stop, self._batch.size, member)
            return lambda _: reader.run()
        if head.node.verb == "event_time":
            clock = EventClock(head.fn, self._faults[head.index])
            return lambda _: tell_time(clock, member, self._batch, lead)
        if head.node.verb == "sink":
            return lambda _: write(self._ends[stage.name], member, self._batch, lead)
        if stage.on_workers:
            return self._parallel(stage, member).run
        if head.node.verb == "gate":
            return partial(self._gates[head.index].run, batch=self._batch)
        call = self._calls.get(head.index)
        if head.mode == "sync" and call is None:
            batch = head.node.batch or self._batch
            return lambda _: pump(member, batch, lead)
        paid = self._coordinator.log.operator(head.node.name) if self._coordinator else None
        seen = as_stage(head) if call else head
        return AsyncStage(seen, call or call_of(head, lead), self._faults[head.index], member, paid).run

    def _parallel(self, stage: Stage, member: Participant) -> ParallelStage:
        ops = stage.on_workers
        faults = [self._faults[op.index] for op in ops]
        pool, limit = self._engine.pools[ops[0].node.name], PER_WORKER * self._batch.size
        return ParallelStage(ops[0], pool, faults, limit, member)

    def _chain(self, ops: list[Op]) -> Chain:
        return Chain([step_of(op, self._faults[op.index], self._engine.clock) for op in ops])

    async def _show(self, on_progress: Progress) -> None:
        while True:
            await asyncio.sleep(PROGRESS_EVERY)
            on_progress(self.reports())


async def _stop_when(event: asyncio.Event, run: Run) -> None:
    await event.wait()
    await run.stop()
