"""The immutable plan that a flow builds up, and every rule that a plan must keep."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from sage.common.errors import BadRequestError
from sage.kernel.options import Batch, Call, OnError, OnRounds, OnTimeout, Use, Window
from sage.kernel.provision import Provision

__all__ = [
    "Builder",
    "EventTime",
    "Fold",
    "Gate",
    "Iterate",
    "Join",
    "Node",
    "Plan",
    "PlanError",
    "Port",
    "Spec",
    "Verb",
    "WindowFold",
    "label",
]

Verb = Literal[
    "source",
    "requests",
    "map",
    "flatmap",
    "filter",
    "map_batch",
    "scan",
    "event_time",
    "window",
    "join",
    "iterate",
    "gate",
    "merge",
    "sink",
    "reply",
]
STARTS = ("source", "requests")
ENDS = ("sink", "reply")


class PlanError(BadRequestError):
    """A plan that cannot run; `problems` holds every reason, one sentence each."""

    code = "invalid_plan"

    def __init__(self, flow: str, problems: list[str]) -> None:
        lines = "".join(f"\n  - {p}" for p in problems)
        super().__init__(f"flow {flow!r} has {len(problems)} problem(s):{lines}")
        self.flow = flow
        self.problems = tuple(problems)

    def __reduce__(self) -> tuple[Any, ...]:
        return (PlanError, (self.flow, list(self.problems)))


@dataclass(frozen=True, slots=True)
class Port:
    """One output of the node at index `node` of the plan."""

    node: int
    output: Literal["out", "diverted"] = "out"


@dataclass(frozen=True, slots=True)
class Fold:
    """A keyed fold: `step(state, item)` gives the key's next state and one output.

    A key that no record came for in `ttl` seconds begins anew; 0 = it is kept for good.
    """

    key: Any
    init: Any
    step: Any
    ttl: float = 0.0


@dataclass(frozen=True, slots=True)
class WindowFold:
    """A keyed fold of the records of each window; `merge` joins two sessions into one."""

    window: Window
    key: Any
    init: Any
    step: Any
    merge: Any = None


@dataclass(frozen=True, slots=True)
class Join:
    """Pairs of a left and a right record with one key, at most `within` seconds apart."""

    left: Any
    right: Any
    within: float
    on_late: OnError = "skip"


@dataclass(frozen=True, slots=True)
class EventTime:
    """`at(record)` is its time in seconds; `lateness`: how far behind the latest a record may come.

    After `idle` seconds without a record other streams need not wait for this one; 0 = they always do.
    """

    at: Any
    lateness: float = 0.0
    idle: float = 0.0


@dataclass(frozen=True, slots=True)
class Iterate:
    """`body` again and again, until `until(record)`; `on_rounds`: what if that is not within `max_rounds`."""

    body: Plan
    until: Any
    max_rounds: int
    on_rounds: OnRounds = "fail"


@dataclass(frozen=True, slots=True)
class Gate:
    """Records for which `when` is true, or all, wait in `inbox` for a decision; at most `limit` of them."""

    inbox: str
    timeout: float
    when: Any = None
    on_timeout: OnTimeout = "reject"
    limit: int = 1000


Spec = (Fold, WindowFold, Join, EventTime, Iterate, Gate)
"""What stands in a node for an operator that is more than one function."""


@dataclass(frozen=True, slots=True)
class Node:
    """One operator of a plan."""

    name: str
    verb: Verb
    inputs: tuple[Port, ...] = ()
    fn: Any = None
    call: Call = field(default_factory=Call)
    batch: Batch | None = None
    provision: Provision = field(default_factory=Provision)


@dataclass(frozen=True, slots=True)
class Plan:
    """Nodes in an order in which each one follows its inputs."""

    name: str
    nodes: tuple[Node, ...]

    def readers(self, index: int, output: str = "out") -> list[int]:
        """The nodes that read an output, once per edge."""
        return [
            i
            for i, node in enumerate(self.nodes)
            for port in node.inputs
            if port.node == index and port.output == output
        ]

    def above(self, index: int) -> set[int]:
        """Every node that feeds the one at `index`."""
        found: set[int] = set()
        todo = [index]
        while todo:
            for port in self.nodes[todo.pop()].inputs:
                if port.node not in found:
                    found.add(port.node)
                    todo.append(port.node)
        return found

    def timed(self) -> set[Port]:
        """The outputs whose records have event times: those of a clock, and all that comes of them."""
        found: set[Port] = set()
        for index, node in enumerate(self.nodes):
            if node.verb == "event_time" or any(port in found for port in node.inputs):
                found.add(Port(index))
        return found

    def problems(self) -> list[str]:
        """Everything that is wrong with the wiring and the options, without running anything."""
        return [
            *_shape(self),
            *_names(self),
            *_edges(self),
            *_options(self),
            *_times(self),
            *_requests(self),
        ]


class Builder:
    """A plan under construction."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.nodes: list[Node] = []

    def add(
        self,
        verb: Verb,
        inputs: tuple[Port, ...],
        fn: Any = None,
        name: str = "",
        call: Call | None = None,
        batch: Batch | None = None,
        provision: Provision = Provision(),  # noqa: B008 - frozen
    ) -> int:
        """Append an operator and return its index; without a name it gets one of its own."""
        name = name or self._free_name(verb, fn)
        self.nodes.append(Node(name, verb, inputs, fn, call or Call(), batch, provision))
        return len(self.nodes) - 1

    def plan(self) -> Plan:
        """What was built so far."""
        return Plan(self.name, tuple(self.nodes))

    def _free_name(self, verb: Verb, fn: Any) -> str:
        base = (label(fn) if verb not in ("source", "requests", "merge", "reply") else "") or verb
        taken = {node.name for node in self.nodes}
        name, n = base, 1
        while name in taken:
            n += 1
            name = f"{base}-{n}"
        return name


def label(fn: Any) -> str:
    """A short name for what an operator calls."""
    if isinstance(fn, Use):
        return fn.name
    if isinstance(fn, Fold | WindowFold):
        return label(fn.step)
    if isinstance(fn, Gate | Iterate):
        return fn.inbox if isinstance(fn, Gate) else ""
    name: str = getattr(fn, "__name__", "") or type(fn).__name__
    return "" if name == "<lambda>" else name


def _shape(plan: Plan) -> Iterator[str]:
    verbs = Counter(node.verb for node in plan.nodes)
    if not plan.name.strip():
        yield "it has no name"
    if not verbs["source"] and not verbs["requests"]:
        yield "it has no source: begin with flow.source(...) or flow.requests(...)"
    if not verbs["sink"] and not verbs["reply"]:
        yield "it has no sink and no reply: end a stream with .sink(...) or flow.reply(...)"


def _names(plan: Plan) -> Iterator[str]:
    for name, times in Counter(node.name for node in plan.nodes).items():
        if times > 1:
            yield f"{times} operators are named {name!r}: names are unique"


def _edges(plan: Plan) -> Iterator[str]:
    ends = [i for i, node in enumerate(plan.nodes) if node.verb in ENDS]
    used = set(ends).union(*(plan.above(i) for i in ends))
    for i, node in enumerate(plan.nodes):
        if ends and i not in used:
            yield f"what {node.name!r} makes reaches no sink and no reply"
        if node.call.on_error == "divert" and not plan.readers(i, "diverted"):
            yield f"{node.name!r} diverts and nothing reads its .diverted: give it a sink, or skip"
        also = _on_late(node) or getattr(node.fn, "on_rounds", "")
        if "divert" not in (node.call.on_error, also) and plan.readers(i, "diverted"):
            yield f"the .diverted of {node.name!r} is read, and it does not divert: set on_error='divert'"


_UNCALLED = (
    "merge",
    "requests",
    "reply",
    "source",
    "scan",
    "event_time",
    "window",
    "join",
    "iterate",
    "gate",
)


def _options(plan: Plan) -> Iterator[str]:
    for node in plan.nodes:
        call = node.call
        if node.verb == "source" and isinstance(node.fn, str | bytes):
            yield f"{node.name!r} would read a string letter by letter: give it a list"
        elif node.verb not in _UNCALLED and not _usable(node):
            yield f"{node.name!r} needs something to call, not {node.fn!r}"
        if call.concurrency is not None and call.concurrency < 1:
            yield f"{node.name!r} has concurrency={call.concurrency}: it is at least 1"
        if call.timeout is not None and call.timeout <= 0:
            yield f"{node.name!r} has timeout={call.timeout:g}: it is more than 0 seconds"
        if call.order not in (None, "input", "any"):
            yield f"{node.name!r} has order={call.order!r}: it is 'input' or 'any'"
        if call.on_error not in ("fail", "skip", "divert"):
            yield f"{node.name!r} has on_error={call.on_error!r}: it is 'fail', 'skip' or 'divert'"


_TIMED = ("event_time", "window", "join")


def _times(plan: Plan) -> Iterator[str]:
    timed = plan.timed()
    for node in plan.nodes:
        without = [plan.nodes[port.node].name for port in node.inputs if port not in timed]
        if node.verb in ("window", "join") and without:
            names = " and ".join(map(repr, without))
            yield f"{node.name!r} needs event times, and {names} has none: put .event_time(...) before it"
        if node.verb == "event_time" and not without:
            yield f"{node.name!r} gives event times to records that have them: one .event_time(...) is enough"
        if node.verb == "merge" and without and len(without) < len(node.inputs):
            yield f"{node.name!r} merges streams with event times and without ({', '.join(without)})"
        if isinstance(node.fn, WindowFold) and node.fn.window.gap and node.fn.merge is None:
            yield f"{node.name!r} has session windows, which a record can join: give it merge="
        if isinstance(node.fn, Join) and node.fn.within < 0:
            yield f"{node.name!r} has within={node.fn.within:g}: it is at least 0 seconds"
        if isinstance(node.fn, EventTime) and min(node.fn.lateness, node.fn.idle) < 0:
            yield f"{node.name!r} has a negative lateness or idle: they are seconds, at least 0"
        if _on_late(node) == "divert" and not plan.readers(plan.nodes.index(node), "diverted"):
            yield f"{node.name!r} diverts what is late and nothing reads its .diverted"


def _on_late(node: Node) -> str:
    if isinstance(node.fn, WindowFold):
        return node.fn.window.on_late
    return node.fn.on_late if isinstance(node.fn, Join) else ""


def _usable(node: Node) -> bool:
    fn: Callable[..., Any] | Any = node.fn
    return isinstance(fn, Use) or callable(fn) or (node.verb == "sink" and hasattr(fn, "write"))


def _requests(plan: Plan) -> Iterator[str]:
    where = {verb: [i for i, n in enumerate(plan.nodes) if n.verb == verb] for verb in (*STARTS, *ENDS)}
    requests, replies = where["requests"], where["reply"]
    if replies and not requests:
        yield "it replies to nothing: flow.reply(...) needs flow.requests(...)"
    if requests and not replies:
        yield "its requests get no reply: end with flow.reply(stream)"
    if requests and where["source"]:
        yield "it has requests and a source: make the source a flow of its own"
    for verb, found in (("requests", requests), ("reply", replies)):
        if len(found) > 1:
            yield f"it has {len(found)} {verb}: there is one per flow"
    if requests:
        for node in plan.nodes:
            if node.verb in _TIMED:
                yield f"{node.name!r}: a flow of requests has no event times: each is answered alone"
    for i in {j for reply in replies for j in plan.above(reply)}:
        if plan.nodes[i].verb == "flatmap":
            yield f"{plan.nodes[i].name!r} is a flatmap before the reply: a request has exactly one"
