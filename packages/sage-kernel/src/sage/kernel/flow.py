"""Building a plan: `Flow`, `Stream` and `Keyed`. Building never runs anything."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast, overload

from sage.kernel import portable
from sage.kernel.options import Batch, Call, Failure, OnError, Order, Pane, Part, Retry, Window
from sage.kernel.plan import Builder, EventTime, Fold, Join, Plan, PlanError, Port, Verb, WindowFold
from sage.kernel.ports import Model, Sink, SinkFn, Source
from sage.kernel.provision import Parallel, Provision, Scale, provisioned
from sage.kernel.registry import Registry, default_registry
from sage.kernel.serial import from_dict, to_dict

if TYPE_CHECKING:
    from sage.kernel.scheduler import Resources

__all__ = ["Connected", "Flow", "Keyed", "Stream", "Windowed"]

T = TypeVar("T")
U = TypeVar("U")
V = TypeVar("V")
K = TypeVar("K")
S = TypeVar("S")


class Flow:
    """A dataflow under construction; `plan` is what it has built so far, and never changes afterwards.

    >>> flow = Flow("double")
    >>> flow.source([1, 2, 3]).map(lambda x: 2 * x).sink(print)
    >>> flow.check()
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._builder = Builder(name)

    @property
    def plan(self) -> Plan:
        """The immutable plan."""
        return self._builder.plan()

    def source(self, source: Source[T], *, name: str = "") -> Stream[T]:
        """Read records from an iterable, an async iterable, or a function that makes one for each run."""
        return Stream(self, Port(self._builder.add("source", (), source, name)))

    def requests(self, kind: type[T], *, name: str = "") -> Stream[T]:
        """Receive one `kind` per request: the flow becomes a service, see `LocalEnvironment.submit`."""
        return Stream(self, Port(self._builder.add("requests", (), kind, name)))

    def reply(self, stream: Stream[Any], *, name: str = "") -> None:
        """Answer each request with what arrives here."""
        self._builder.add("reply", (self._own(stream),), None, name)

    def check(self, registry: Registry | None = None) -> None:
        """Raise one `PlanError` that lists every problem; named operators are looked up, none is made."""
        plan = self.plan
        registry = registry or default_registry()
        problems = [*plan.problems(), *registry.problems(plan), *portable.problems(plan, registry)]
        if problems:
            raise PlanError(self.name, problems)

    def explain(self) -> str:
        """The plan as a Mermaid flowchart."""
        start, end = ("([", "])"), ("[(", ")]")
        shapes = {"source": start, "requests": start, "sink": end, "reply": end}
        lines = ["flowchart LR"]
        for i, node in enumerate(self.plan.nodes):
            left, right = shapes.get(node.verb, ("[", "]"))
            text = node.name if node.name.startswith(node.verb) else f"{node.verb} {node.name}"
            lines.append(f'  n{i}{left}"{text.replace(chr(34), chr(39))}"{right}')
        for i, node in enumerate(self.plan.nodes):
            for port in node.inputs:
                arrow = "-->" if port.output == "out" else "-. diverted .->"
                lines.append(f"  n{port.node} {arrow} n{i}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data; raises `PlanError` naming every operator that cannot travel."""
        return to_dict(self.plan)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, allow: Iterable[str] = (), where: str = "") -> Flow:
        """Build a flow from plain data, the form `to_dict` and YAML pipelines have.

        Code named `module:qualname` is imported only if `allow` holds that name, or `module:*`; `where` names
        the document in errors.
        """
        plan = from_dict(data, allow=tuple(allow), where=where)
        flow = cls(plan.name)
        flow._builder.nodes.extend(plan.nodes)
        return flow

    def _own(self, stream: Stream[Any]) -> Port:
        if stream.flow is not self:
            raise PlanError(self.name, [f"a stream of flow {stream.flow.name!r} is used here"])
        return stream.port


class Stream(Generic[T]):
    """The records that leave one operator."""

    def __init__(self, flow: Flow, port: Port) -> None:
        self.flow = flow
        self.port = port

    # Type checkers word a misfit after the first overload, so the usual async function comes first.
    @overload
    def map(
        self,
        fn: Callable[[T], Awaitable[U]],
        *,
        concurrency: int | None = None,
        order: Order | None = None,
        timeout: float | None = None,
        retry: Retry | None = None,
        on_error: OnError = "fail",
        resources: Resources | None = None,
        name: str = "",
    ) -> Stream[U]: ...
    @overload
    def map(
        self,
        fn: Callable[[T], AsyncIterator[U | Part[Any]]],
        *,
        concurrency: int | None = None,
        order: Order | None = None,
        timeout: float | None = None,
        retry: Retry | None = None,
        on_error: OnError = "fail",
        resources: Resources | None = None,
        name: str = "",
    ) -> Stream[U]: ...
    @overload
    def map(
        self,
        fn: Callable[[T], U],
        *,
        on_error: OnError = "fail",
        parallelism: int | Parallel | None = None,
        resources: Resources | None = None,
        scale: Scale | None = None,
        name: str = "",
    ) -> Stream[U]: ...
    def map(
        self,
        fn: Callable[[T], Any],
        *,
        concurrency: int | None = None,
        order: Order | None = None,
        timeout: float | None = None,
        retry: Retry | None = None,
        on_error: OnError = "fail",
        parallelism: int | Parallel | None = None,
        resources: Resources | None = None,
        scale: Scale | None = None,
        name: str = "",
    ) -> Stream[Any]:
        """One result per record.

        For async functions: `concurrency` calls in flight (64), `order` "any" or "input" (as they come),
        seconds of `timeout` per call, and `retry`. An async generator yields `Part`s, then the result.
        For sync ones: `parallelism`, a number of worker processes or a `Parallel`, and how they `scale`.
        `resources` are what one worker, or the async operator, takes of its machine.
        """
        call = Call(concurrency, order, timeout, retry, on_error)
        return self._then("map", fn, name, call, provisioned(parallelism, resources, scale))

    def flatmap(
        self,
        fn: Callable[[T], Iterable[U]],
        *,
        on_error: OnError = "fail",
        parallelism: int | Parallel | None = None,
        resources: Resources | None = None,
        scale: Scale | None = None,
        name: str = "",
    ) -> Stream[U]:
        """Any number of results per record; a record whose results fail half way gives none."""
        provision = provisioned(parallelism, resources, scale)
        return self._then("flatmap", fn, name, Call(on_error=on_error), provision)

    def filter(
        self,
        fn: Callable[[T], object],
        *,
        on_error: OnError = "fail",
        parallelism: int | Parallel | None = None,
        resources: Resources | None = None,
        scale: Scale | None = None,
        name: str = "",
    ) -> Stream[T]:
        """Keep the records for which `fn` is true."""
        provision = provisioned(parallelism, resources, scale)
        return self._then("filter", fn, name, Call(on_error=on_error), provision)

    def map_batch(
        self,
        fn: Callable[[Sequence[T]], Sequence[U] | Awaitable[Sequence[U]]] | type[Model[T, U]],
        batch: Batch = Batch(),  # noqa: B008 - frozen
        *,
        concurrency: int | None = None,
        order: Order | None = None,
        timeout: float | None = None,
        retry: Retry | None = None,
        on_error: OnError = "fail",
        parallelism: int | Parallel | None = None,
        resources: Resources | None = None,
        scale: Scale | None = None,
        name: str = "",
    ) -> Stream[U]:
        """One result per record, many records per call; a class is made, set up and closed once per run,
        or once per worker.

        A call that fails counts for each record of its batch. Options are those of `map`, with
        `concurrency` counting calls (8).
        """
        call = Call(concurrency, order, timeout, retry, on_error)
        provision = provisioned(parallelism, resources, scale)
        add = self.flow._builder.add
        return Stream(self.flow, Port(add("map_batch", (self.port,), fn, name, call, batch, provision)))

    def merge(self, *others: Stream[T], name: str = "") -> Stream[T]:
        """The records of all these streams, as they come; it ends when all have ended."""
        ports = (self.port, *(self.flow._own(other) for other in others))
        return Stream(self.flow, Port(self.flow._builder.add("merge", ports, None, name)))

    def event_time(
        self,
        at: Callable[[T], float],
        *,
        lateness: float = 0.0,
        idle: float = 0.0,
        on_error: OnError = "fail",
        name: str = "",
    ) -> Stream[T]:
        """Give each record its time, `at(record)` in seconds, for the windows and joins behind.

        A record may come `lateness` seconds of event time after a later one. After `idle` seconds without a
        record, streams that this one meets do not wait for it; 0 = they do.
        """
        return self._then("event_time", EventTime(at, lateness, idle), name, Call(on_error=on_error))

    def connect(self, other: Stream[U]) -> Connected[T, U]:
        """Two streams of different types, for operators that take both."""
        self.flow._own(other)
        return Connected(self, other)

    def keyby(self, key: Callable[[T], K]) -> Keyed[K, T]:
        """Group the records by a hashable key, for an operator with state."""
        return Keyed(self, key)

    @property
    def diverted(self) -> Stream[Failure[Any]]:
        """What the operator gave up on, where its `on_error` is "divert"."""
        return Stream(self.flow, Port(self.port.node, "diverted"))

    def sink(self, to: Sink[T] | SinkFn[T], *, name: str = "") -> None:
        """End here: a function called with each record, or a `Sink` that takes batches."""
        self.flow._builder.add("sink", (self.port,), to, name)

    def _then(
        self,
        verb: Verb,
        fn: Any,
        name: str,
        call: Call | None = None,
        provision: Provision = Provision(),  # noqa: B008 - frozen
    ) -> Stream[Any]:
        add = self.flow._builder.add
        return Stream(self.flow, Port(add(verb, (self.port,), fn, name, call, provision=provision)))


class Connected(Generic[T, U]):
    """Two streams side by side."""

    def __init__(self, left: Stream[T], right: Stream[U]) -> None:
        self._left = left
        self._right = right

    def comap(
        self, left: Callable[[T], V], right: Callable[[U], V], *, on_error: OnError = "fail", name: str = ""
    ) -> Stream[V]:
        """One stream of both: the records of each go through their own function, in the order they come.

        With `name` the two maps are NAME-left and NAME-right. To share state, give two methods of one object.
        """
        names = (f"{name}-left", f"{name}-right") if name else ("", "")
        one = self._left._then("map", left, names[0], Call(on_error=on_error))
        other = self._right._then("map", right, names[1], Call(on_error=on_error))
        return cast("Stream[V]", one.merge(other, name=name))


class Keyed(Generic[K, T]):
    """Records grouped by key; records with equal keys keep their order."""

    def __init__(self, stream: Stream[T], key: Callable[[T], K]) -> None:
        self._stream = stream
        self._key = key

    def scan(
        self, init: Callable[[], S], step: Callable[[S, T], tuple[S, U]], *, name: str = ""
    ) -> Stream[U]:
        """Fold each key's records: `step(state, record)` gives the next state and one result."""
        fold = Fold(self._key, init, step)
        return cast("Stream[U]", self._stream._then("scan", fold, name))

    def window(self, window: Window) -> Windowed[K, T]:
        """Group each key's records by their event times as well."""
        return Windowed(self._stream, self._key, window)

    def join(
        self,
        other: Keyed[K, U],
        *,
        within: float,
        on_late: OnError = "skip",
        on_error: OnError = "fail",
        name: str = "",
    ) -> Stream[tuple[T, U]]:
        """Every pair of records with one key whose times are at most `within` seconds apart.

        A pair comes out once both halves are here. A record behind the watermark is late.
        """
        flow = self._stream.flow
        ports = (self._stream.port, flow._own(other._stream))
        spec = Join(self._key, other._key, within, on_late)
        return Stream(flow, Port(flow._builder.add("join", ports, spec, name, Call(on_error=on_error))))


class Windowed(Generic[K, T]):
    """Records grouped by key and window."""

    def __init__(self, stream: Stream[T], key: Callable[[T], K], window: Window) -> None:
        self._stream = stream
        self._key = key
        self._window = window

    def reduce(
        self,
        init: Callable[[], S],
        step: Callable[[S, T], S],
        *,
        merge: Callable[[S, S], S] | None = None,
        on_error: OnError = "fail",
        name: str = "",
    ) -> Stream[Pane[K, S]]:
        """Fold the records of each window: `step(state, record)` gives the next state; the last comes out.

        Sessions need `merge(state, state)`, for a record that makes one of two.
        """
        spec = WindowFold(self._window, self._key, init, step, merge)
        return cast("Stream[Pane[K, S]]", self._stream._then("window", spec, name, Call(on_error=on_error)))

    def collect(self, *, on_error: OnError = "fail", name: str = "") -> Stream[Pane[K, list[T]]]:
        """The records of each window as a list, in the order they came."""
        return self.reduce(list, appended, merge=extended, on_error=on_error, name=name)


def appended(items: list[T], item: T) -> list[T]:
    """The step of `Windowed.collect`."""
    items.append(item)
    return items


def extended(items: list[T], more: list[T]) -> list[T]:
    """The merge of `Windowed.collect`."""
    items.extend(more)
    return items
