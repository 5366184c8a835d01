"""Building on two streams side by side, and on records grouped by key and window."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar, cast

from sage.kernel.options import Call, OnError, Pane, Window
from sage.kernel.plan import Fold, Join, WindowFold

if TYPE_CHECKING:
    from sage.kernel.flow import Stream

__all__ = ["Connected", "Keyed", "Windowed"]

T = TypeVar("T")
U = TypeVar("U")
V = TypeVar("V")
K = TypeVar("K")
S = TypeVar("S")


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
