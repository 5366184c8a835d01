"""From a plan to stages: check, resolve, fuse, assign.

A stage is one optional head (what needs a queue of its own: a source, an async call, a batch, a `Sink`)
followed by a run of sync operators that are fused into one list-to-list kernel. A stage ends where its
output has several readers, or one reader that must begin a stage. Nothing runs here but the factories of
named operators.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, fields, replace
from functools import partial
from itertools import takewhile
from typing import Any

from sage.kernel import portable
from sage.kernel.modes import Mode, instances_do, mode_for, mode_of
from sage.kernel.options import Use
from sage.kernel.plan import Iterate, Node, Plan, PlanError, Spec
from sage.kernel.provision import Parallel
from sage.kernel.registry import Registry, role_of
from sage.kernel.rules import problems as problems_of
from sage.kernel.services import ServiceCall, unknown_services

__all__ = ["Compiled", "Edge", "Loop", "Op", "Stage", "compile_plan"]

HEADS = ("source", "requests", "map_batch", "merge", "event_time", "join", "gate")


@dataclass(frozen=True, slots=True)
class Op:
    """A node with its code resolved; `mode` says how the code is called."""

    index: int
    node: Node
    fn: Any
    mode: Mode
    owner: Any = None
    """The object whose `setup`, `commit` and `close` belong to the run."""
    timed: bool = False
    """Whether the records that come in have event times."""

    @property
    def parallel(self) -> Parallel | None:
        """The workers that it runs on; `fn` then makes what one worker calls."""
        return self.node.provision.parallelism

    @property
    def heads(self) -> bool:
        """Whether it must begin a stage, whatever is before it."""
        return self.node.verb in HEADS or self.mode != "sync" or self.node.call.cache is not None

    @property
    def body(self) -> Compiled | None:
        """What a loop goes round."""
        return self.fn.body if self.node.verb == "iterate" else None


@dataclass(frozen=True, slots=True)
class Edge:
    """Where an output goes: the position of a stage, and which of its inputs it is to a join."""

    stage: int
    side: int = 0


@dataclass(slots=True)
class Stage:
    """One unit of the runtime, and the edges of its outputs."""

    head: Op | None
    fused: list[Op] = field(default_factory=list)
    outs: list[Edge] = field(default_factory=list)
    diverted: dict[int, list[Edge]] = field(default_factory=dict)
    name: str = ""
    """That of its first operator."""

    @property
    def ops(self) -> list[Op]:
        """Every operator of the stage."""
        return [self.head, *self.fused] if self.head else self.fused

    @property
    def on_workers(self) -> list[Op]:
        """Those of the operators that run on workers: the first ones, of equal provision, or none."""
        if self.head is None or self.head.parallel is None:
            return []
        provision = self.head.node.provision
        return list(takewhile(lambda op: op.node.provision == provision, self.ops))


@dataclass(frozen=True, slots=True)
class Loop:
    """What an operator that iterates calls."""

    body: Compiled
    until: Callable[[Any], object]


@dataclass(frozen=True, slots=True)
class Compiled:
    """What a runtime runs."""

    name: str
    ops: tuple[Op, ...]
    stages: tuple[Stage, ...]

    @property
    def all_ops(self) -> list[Op]:
        """The operators, those in the bodies of loops too."""
        return [one for op in self.ops for one in (op, *(op.body.all_ops if op.body else ()))]

    @property
    def all_stages(self) -> list[Stage]:
        """The stages, those of the bodies of loops too."""
        return [*self.stages, *(one for op in self.ops if op.body for one in op.body.all_stages)]


def compile_plan(plan: Plan, registry: Registry, services: Collection[str] = ()) -> Compiled:
    """Check the plan, make its named operators, fuse and assign; raises one `PlanError` for all problems.

    `services`: the names that operators may call.
    """
    problems = [*problems_of(plan), *registry.problems(plan), *portable.problems(plan, registry)]
    if not problems:
        compiled = _compiled(plan, registry)
        ops = compiled.all_ops
        problems = [text for op in ops for text in (*_misuse(op), *_unknown(op, services))]
    if problems:
        raise PlanError(plan.name, problems)
    return compiled


def _compiled(plan: Plan, registry: Registry) -> Compiled:
    timed = plan.timed()
    ops = [
        replace(resolve(i, node, registry), timed=any(port in timed for port in node.inputs))
        for i, node in enumerate(plan.nodes)
    ]
    return Compiled(plan.name, tuple(ops), tuple(_assign(plan, ops)))


def resolve(index: int, node: Node, registry: Registry) -> Op:
    """Make what a node names and see how it is to be called."""
    role = role_of(node.verb)
    if node.call.cache is not None and isinstance(node.call.cache.key, Use):
        cache = replace(node.call.cache, key=registry.make(node.call.cache.key, role))
        node = replace(node, call=replace(node.call, cache=cache))
    if isinstance(node.fn, Iterate):
        until = registry.make(node.fn.until, role) if isinstance(node.fn.until, Use) else node.fn.until
        body = _compiled(_named(node.fn.body, node.name), registry)
        return Op(index, node, Loop(body, until), "async")
    if isinstance(node.fn, Spec):
        parts = {part.name: getattr(node.fn, part.name) for part in fields(node.fn)}
        uses = {name: registry.make(part, role) for name, part in parts.items() if isinstance(part, Use)}
        return Op(index, node, replace(node.fn, **uses), "sync")
    if node.provision.parallelism:
        return _replicated(index, node, registry)
    made: Any = registry.make(node.fn, role) if isinstance(node.fn, Use) else node.fn
    if isinstance(made, ServiceCall) and made.fn is None:
        made = _awaited(made)
    if node.verb in ("source", "requests", "merge", "reply"):
        return Op(index, node, made, "sync", owner=made)
    if isinstance(made, type) and (node.verb == "map_batch" or role == "sink") and instances_do(made, role):
        made = made()
    if node.verb == "sink" and hasattr(made, "write"):
        return Op(index, node, made, "async", owner=made)
    return Op(index, node, made, mode_of(made), owner=made)


def _replicated(index: int, node: Node, registry: Registry) -> Op:
    """An operator that each worker makes for itself; what threads share belongs to the run."""
    fn: Any = node.fn
    if isinstance(fn, Use):
        found = registry.get(fn.name, "function")
        make: Callable[[], Any] = partial(found.factory, **found.bind(fn.params))
        return Op(index, node, make, mode_of(make()))
    mode = mode_for(node.verb, fn)
    if isinstance(fn, type) and node.verb == "map_batch" and instances_do(fn, "function"):
        return Op(index, node, fn, mode)
    parallel = node.provision.parallelism
    shared = fn if parallel and parallel.kind == "thread" else None
    return Op(index, node, partial(given, fn), mode, owner=shared)


def given(fn: Any) -> Any:
    """What makes an operator that is there already."""
    return fn


def _awaited(call: ServiceCall[..., Any]) -> Callable[[Any], Any]:
    """A call of which nobody knows before whether it gives a value or an awaitable."""

    async def awaited(item: Any) -> Any:
        result = call(item)
        return await result if inspect.isawaitable(result) else result

    return awaited


def _named(body: Plan, loop: str) -> Plan:
    """The body of a loop, whose operators are reported as LOOP/NAME."""
    return Plan(loop, tuple(replace(node, name=f"{loop}/{node.name}") for node in body.nodes))


def _unknown(op: Op, services: Collection[str]) -> list[str]:
    parts = [getattr(op.fn, f.name) for f in fields(op.fn)] if isinstance(op.fn, (*Spec, Loop)) else [op.fn]
    if op.node.call.cache is not None:
        parts.append(op.node.call.cache.key)
    return [text for part in parts for text in unknown_services(op.node.name, part, services)]


def _misuse(op: Op) -> list[str]:
    node, problems = op.node, [*portable.misfits(op.node, op.mode)]
    extra = [n for n in ("concurrency", "order", "timeout", "retry") if getattr(node.call, n) is not None]
    if op.node.call.cache is not None and op.mode == "parts":
        problems.append(f"{node.name!r} yields parts, which a cache would not give again: cache another map")
    if op.mode == "sync" and extra:
        problems.append(f"{node.name!r} calls a sync function, for which {', '.join(extra)} would do nothing")
    if op.mode != "sync" and node.verb in ("flatmap", "filter"):
        problems.append(f"{node.name!r}: {node.verb} takes a sync function; wait in a map before it")
    elif op.mode == "parts" and node.verb != "map":
        problems.append(f"{node.name!r}: only map takes an async generator")
    return problems


def _assign(plan: Plan, ops: list[Op]) -> list[Stage]:
    stages: list[Stage] = []
    place: dict[int, int] = {}
    for op in ops:
        ports = op.node.inputs
        alone = len(ports) == 1 and ports[0].output == "out" and len(plan.readers(ports[0].node)) == 1
        if alone and _joins(op, stages[place[ports[0].node]]):
            place[op.index] = place[ports[0].node]
            stages[place[op.index]].fused.append(op)
            continue
        place[op.index] = len(stages)
        # A merge is nothing but a queue with several writers, which any stage without a head is.
        queue_only = op.node.verb in ("merge", "requests")
        leads = (op.heads or op.parallel is not None) and not queue_only
        stage = Stage(op) if leads else Stage(None, [] if queue_only else [op])
        stage.name = op.node.name
        stages.append(stage)
        for side, port in enumerate(ports):
            stage = stages[place[port.node]]
            outs = stage.outs if port.output == "out" else stage.diverted.setdefault(port.node, [])
            outs.append(Edge(place[op.index], side if op.node.verb == "join" else 0))
    return stages


def _joins(op: Op, stage: Stage) -> bool:
    """Whether it runs in the stage before it: on the event loop, or on the workers of what is before it."""
    if op.heads or op.parallel is None:
        return not op.heads
    return bool(stage.ops) and stage.ops[-1].node.provision == op.node.provision
