"""Building on a stream of records: `Stream`, two of them, records grouped by key and window."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast, overload

from sage.kernel.options import (
    Batch,
    Cache,
    Call,
    Failure,
    OnError,
    OnRounds,
    OnTimeout,
    Order,
    Pane,
    Part,
    Retry,
    Window,
)
from sage.kernel.plan import Builder, EventTime, Fold, Gate, Iterate, Join, Plan, Port, Verb, WindowFold
from sage.kernel.ports import Model, Sink, SinkFn
from sage.kernel.provision import Parallel, Provision, Scale, provisioned

if TYPE_CHECKING:
    from sage.kernel.scheduler import Resources

__all__ = ["Connected", "Home", "Keyed", "Stream", "Windowed"]

T = TypeVar("T")
U = TypeVar("U")
V = TypeVar("V")
K = TypeVar("K")
S = TypeVar("S")


class Home(Protocol):
    """The flow that a stream belongs to."""

    name: str
    _builder: Builder

    @property
    def plan(self) -> Plan:
        """What it has built so far."""
        ...

    def check(self) -> None:
        """Raise one `PlanError` that lists every problem."""
        ...

    def reply(self, stream: Stream[Any], *, name: str = "") -> None:
        """End with what arrives here."""
        ...

    def _anew(self, name: str) -> Home:
        """An empty one."""
        ...

    def _own(self, stream: Stream[Any]) -> Port:
        """Where a stream of this flow comes from; raises `PlanError` for another flow's."""
        ...


class Stream(Generic[T]):
    """The records that leave one operator."""

    def __init__(self, flow: Home, port: Port) -> None:
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
        inner = self.flow._anew("iterate")
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
        self,
        init: Callable[[], S],
        step: Callable[[S, T], tuple[S, U]],
        *,
        ttl: float = 0.0,
        name: str = "",
    ) -> Stream[U]:
        """Fold each key's records: `step(state, record)` gives the next state and one result.

        A key that no record came for in `ttl` seconds begins anew, in event time where the records have it,
        else by the clock; 0 = its state is kept for good.
        """
        fold = Fold(self._key, init, step, ttl)
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
        spec = Join(self._key, other._key, within, on_late)
        paired = self._stream._with("join", other._stream, spec, name, Call(on_error=on_error))
        return cast("Stream[tuple[T, U]]", paired)


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
