"""What user code looks like to the kernel: sources, models and sinks."""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Sequence
from typing import Protocol, TypeAlias, TypeVar

__all__ = ["Model", "Sink", "SinkFn", "Source"]

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)
U_co = TypeVar("U_co", covariant=True)

Source: TypeAlias = Iterable[T] | AsyncIterable[T] | Callable[[], Iterable[T] | AsyncIterable[T]]
"""Anything that can be iterated, also asynchronously, or a function that makes such a thing for each run."""

SinkFn: TypeAlias = Callable[[T], object] | Callable[[T], Awaitable[object]]


class Model(Protocol[T_contra, U_co]):
    """Something costly that is set up once, called with batches, and closed once, also after a failure.

    Any operator object may have `setup` and `close`, sync or async; a class is given to `map_batch` as it is.
    """

    def setup(self) -> object:
        """Load what the calls need."""
        ...

    def __call__(self, items: Sequence[T_contra], /) -> Sequence[U_co]:
        """One result per item, in order."""
        ...

    def close(self) -> object:
        """Release what `setup` took."""
        ...


class Sink(Protocol[T_contra]):
    """Where records end. `setup` and `close` are called where they exist."""

    async def write(self, items: Sequence[T_contra], /) -> None:
        """Take a batch; until it returns, nothing more is sent."""
        ...

    async def commit(self) -> None:
        """Called once, after the last write of a run that did not fail."""
        ...
