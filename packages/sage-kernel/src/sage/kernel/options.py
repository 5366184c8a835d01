"""The small values a plan is made of: options, failures, partial results and named operators."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from sage.common.errors import UsageError
from sage.kernel.ports import SnapshotStore

__all__ = [
    "Batch",
    "Cache",
    "Call",
    "Checkpoints",
    "Failure",
    "OnError",
    "OnRounds",
    "OnTimeout",
    "Order",
    "Pane",
    "Part",
    "Retry",
    "Use",
    "Window",
    "use",
]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
K = TypeVar("K")
S = TypeVar("S")

Order = Literal["input", "any"]
OnError = Literal["fail", "skip", "divert"]
OnRounds = Literal["fail", "emit", "divert"]
OnTimeout = Literal["reject", "approve"]


@dataclass(frozen=True, slots=True)
class Batch:
    """At most `size` items per call.

    `wait` is how many seconds a first item may be held back for others; 0 takes what is queued.
    """

    size: int = 64
    wait: float = 0.0

    def __post_init__(self) -> None:
        if self.size < 1 or self.wait < 0:
            raise UsageError(f"Batch(size={self.size}, wait={self.wait:g}) needs size >= 1 and wait >= 0.")


@dataclass(frozen=True, slots=True)
class Retry:
    """Call again, `attempts` calls in all, when one of `on` is raised.

    The pause before call n+1 is drawn from the upper half of `backoff * 2**(n-1)` seconds, at most 30.
    """

    attempts: int = 3
    backoff: float = 0.5
    on: tuple[type[Exception], ...] = (TimeoutError, ConnectionError)

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.backoff < 0:
            given = f"Retry(attempts={self.attempts}, backoff={self.backoff:g})"
            raise UsageError(f"{given} needs attempts >= 1 and backoff >= 0.")

    def ceiling(self, failed: int) -> float:
        """The longest pause after `failed` failed calls, in seconds."""
        # The exponent is capped as well: 2.0**1024 does not fit in a float.
        return min(30.0, self.backoff * 2.0 ** min(failed - 1, 30))


@dataclass(frozen=True, slots=True)
class Cache:
    """Keep results by what they were made from, so that equal records cost one call.

    A result is kept for `ttl` seconds, 0 = as long as there is room: for `size` results of `bytes` in all;
    those that nobody asked for longest make place. With a `path`, a SQLite file, results of plain data also
    outlive the run, each for its `ttl`. `key(record)`: what makes records equal, where it is not all of them.
    """

    ttl: float = 0.0
    size: int = 10_000
    bytes: int = 64 << 20
    path: str = ""
    key: Any = None

    def __post_init__(self) -> None:
        if self.ttl < 0 or self.size < 1 or self.bytes < 1:
            given = f"Cache(ttl={self.ttl:g}, size={self.size}, bytes={self.bytes})"
            raise UsageError(f"{given} needs ttl >= 0, size >= 1 and bytes >= 1.")
        if self.path and not self.ttl:
            raise UsageError(
                f"Cache(path={self.path!r}) has no ttl, so nothing would ever leave that file.",
                hint="Say for how many seconds a result is good, such as ttl=30 * 86400.",
            )


@dataclass(frozen=True, slots=True)
class Window:
    """Windows over event time, in seconds: `Window(60)` tumbles, `Window(60, slide=10)` slides by 10, and
    `Window(gap=30)` is a session, which ends when its key has been silent for 30.

    A window closes when the watermark passes its end. It is kept `late` seconds longer, and a record that
    comes meanwhile gives another pane; what comes after that is late: skipped, diverted, or an error.
    """

    size: float = 0.0
    slide: float = 0.0
    gap: float = 0.0
    late: float = 0.0
    on_late: OnError = "skip"

    def __post_init__(self) -> None:
        sizes = (self.size, self.slide, self.gap, self.late)
        one_kind = (self.size > 0) != (self.gap > 0) and (not self.gap or not self.slide)
        if min(sizes) < 0 or not one_kind or self.slide > self.size:
            raise UsageError(
                f"{self} is no window: it has a size, and perhaps a slide of at most that, or it has a gap.",
                hint="Window(60) tumbles, Window(60, slide=10) slides, Window(gap=30) is a session.",
            )


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """Checkpoints of a run: in `folder`, or another store, `every` so many seconds (0 = when asked for).

    The newest `keep` of them are kept. A run goes on from the newest one that is sound.
    """

    folder: Path | str | SnapshotStore
    every: float = 10.0
    keep: int = 3

    def __post_init__(self) -> None:
        if self.every < 0 or self.keep < 1:
            given = f"Checkpoints(every={self.every:g}, keep={self.keep})"
            raise UsageError(f"{given} needs every >= 0 seconds and keep >= 1.")


class Pane(NamedTuple, Generic[K, S]):
    """What a window of one key came to; it holds the records with `start` <= time < `end`."""

    key: K
    start: float
    end: float
    value: S


@dataclass(frozen=True, slots=True)
class Failure(Generic[T_co]):
    """An item that its operator gave up on, as `Stream.diverted` carries it."""

    item: T_co
    operator: str
    error: str
    attempts: int


@dataclass(frozen=True, slots=True)
class Part(Generic[T_co]):
    """A partial result.

    An async-generator operator yields parts as they come and, last, the one value that goes on.
    """

    value: T_co


@dataclass(frozen=True, slots=True)
class Use:
    """A registered operator by name, with the parameters its factory is called with."""

    name: str
    params: Mapping[str, Any] = field(default_factory=dict)


def use(name: str, /, **params: Any) -> Any:
    """Name a registered operator instead of giving a function: `stream.map(use("sage.split", size=500))`.

    It is typed `Any` because what a named operator takes and gives is known when it is loaded.
    """
    return Use(name, params)


@dataclass(frozen=True, slots=True)
class Call:
    """How an operator is called; None means that the flow did not say."""

    concurrency: int | None = None
    order: Order | None = None
    timeout: float | None = None
    retry: Retry | None = None
    on_error: OnError = "fail"
    cache: Cache | None = None
