"""The small values a plan is made of: options, failures, partial results and named operators."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

from sage.common.errors import UsageError

__all__ = ["Batch", "Call", "Failure", "OnError", "Order", "Part", "Retry", "Use", "use"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

Order = Literal["input", "any"]
OnError = Literal["fail", "skip", "divert"]


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
