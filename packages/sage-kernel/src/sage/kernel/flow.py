"""Building a plan: `Flow` and `Stream`. Building never runs anything."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from sage.kernel import portable
from sage.kernel.drawing import mermaid
from sage.kernel.keyed import Connected, Keyed
from sage.kernel.options import (
    Batch,
    Cache,
    Call,
    Failure,
    OnError,
    OnRounds,
    OnTimeout,
    Order,
    Part,
    Retry,
)
from sage.kernel.plan import (
    Builder,
    EventTime,
    Gate,
    Iterate,
    Plan,
    PlanError,
    Port,
    Verb,
)
from sage.kernel.ports import Model, Sink, SinkFn, Source
from sage.kernel.provision import Parallel, Provision, Scale, provisioned
from sage.kernel.registry import Registry, default_registry
from sage.kernel.rules import problems
from sage.kernel.serial import from_dict, to_dict

if TYPE_CHECKING:
    from sage.kernel.scheduler import Resources

__all__ = ["Flow", "Stream"]

T = TypeVar("T")
U = TypeVar("U")
K = TypeVar("K")


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
        found = [*problems(plan), *registry.problems(plan), *portable.problems(plan, registry)]
        if found:
            raise PlanError(self.name, found)

    def explain(self) -> str:
        """The plan as a Mermaid flowchart."""
        return mermaid(self.plan)

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
        cache: Cache | None = None,
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
        cache: Cache | None = None,
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
        cache: Cache | None = None,
        parallelism: int | Parallel | None = None,
        resources: Resources | None = None,
        scale: Scale | None = None,
        name: str = "",
    ) -> Stream[Any]:
        """One result per record.

        For async functions: `concurrency` calls in flight (64), `order` "any" or "input" (as they come),
        seconds of `timeout` per call, and `retry`. An async generator yields `Part`s, then the result, and
        has no `cache`, which would give the result without the parts.
        For sync ones: `parallelism`, a number of worker processes or a `Parallel`, and how they `scale`.
        `resources` are what one worker, or the async operator, takes of its machine.
        """
        call = Call(concurrency, order, timeout, retry, on_error, cache)
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
        cache: Cache | None = None,
        parallelism: int | Parallel | None = None,
        resources: Resources | None = None,
        scale: Scale | None = None,
        name: str = "",
    ) -> Stream[U]:
        """One result per record, many records per call; a class is made, set up and closed once per run,
        or once per worker.

        A call that fails counts for each record of its batch. Options are those of `map`, with
        `concurrency` counting calls (8); with a `cache`, only records without a result come into a batch.
        """
        call = Call(concurrency, order, timeout, retry, on_error, cache)
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

    def iterate(
        self,
        body: Callable[[Stream[T]], Stream[T]],
        *,
        until: Callable[[T], object],
        max_rounds: int,
        on_rounds: OnRounds = "fail",
        concurrency: int | None = None,
        order: Order | None = None,
        timeout: float | None = None,
        on_error: OnError = "fail",
        name: str = "",
    ) -> Stream[T]:
        """Send each record through `body` again and again, until `until(record)`, asked after each round.

        One that is not done after `max_rounds` fails, is sent on as it is ("emit"), or is diverted. `timeout`
        is for all rounds of a record, `concurrency` (64) how many records go round at once in a finite run.
        """
        inner = Flow("iterate")
        start = Stream[T](inner, Port(inner._builder.add("requests", (), object, "round")))
        inner.reply(body(start))
        spec = Iterate(inner.plan, until, max_rounds, on_rounds)
        return self._then("iterate", spec, name, Call(concurrency, order, timeout, None, on_error))

    def gate(
        self,
        inbox: str,
        *,
        when: Callable[[T], object] | None = None,
        timeout: float,
        on_timeout: OnTimeout = "reject",
        limit: int = 1000,
        on_error: OnError = "fail",
        name: str = "",
    ) -> Stream[T]:
        """Keep the records for which `when` is true (all, if not given) until a human has decided on them.

        They wait in `inbox`: see `Job.parked` and `Job.resolve`, and `Inboxes` for a finite run. What nobody
        decides on within `timeout` seconds is rejected or approved; `on_error` is what becomes of a rejected
        one. At most `limit` wait: then a finite run stops reading, and a request is an `OverloadedError`.
        """
        spec = Gate(inbox, timeout, when, on_timeout, limit)
        return self._then("gate", spec, name, Call(on_error=on_error))

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

    def _with(self, verb: Verb, other: Stream[Any], fn: Any, name: str, call: Call) -> Stream[Any]:
        ports = (self.port, self.flow._own(other))
        return Stream(self.flow, Port(self.flow._builder.add(verb, ports, fn, name, call)))

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
