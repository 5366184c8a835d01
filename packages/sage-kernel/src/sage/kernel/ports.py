"""What user code looks like to the kernel: sources, models and sinks."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any, Final, Protocol, TypeAlias, TypeVar

__all__ = ["FIRST_EPOCH", "Model", "Replayable", "Sink", "SinkFn", "SnapshotStore", "Source", "Transactional"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
T_contra = TypeVar("T_contra", contravariant=True)
U_co = TypeVar("U_co", covariant=True)

FIRST_EPOCH: Final = 1
"""The epoch of what is written before the first checkpoint; each checkpoint ends one."""


class Replayable(Protocol[T_co]):
    """A source that can be read again from where a checkpoint was taken.

    It may have `setup`, `close` and `committed(position)`, sync or async. `committed` is called when nothing
    can be asked for again up to `position`: a checkpoint that covers it is durable, or the run has ended
    without a failure. A queue acknowledges then.
    """

    def read(
        self, position: Any | None, /
    ) -> Iterator[tuple[Any, Sequence[T_co]]] | AsyncIterator[tuple[Any, Sequence[T_co]]]:
        """(position, records) pairs behind `position`; None = from the start.

        A position is plain data (JSON) and stands for "these records and all before them have been read". A
        pair is what can be had at once, about a thousand records at most: a checkpoint waits for its end.
        """
        ...


Source: TypeAlias = (
    Replayable[T] | Iterable[T] | AsyncIterable[T] | Callable[[], Iterable[T] | AsyncIterable[T]]
)
"""A `Replayable`, anything that can be iterated, also asynchronously, or a function that makes such a thing
for each run."""

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
    """Where records end. `setup` and `close` are called where they exist.

    What is written between two checkpoints is one epoch; a run without checkpoints is one epoch.
    """

    async def write(self, epoch: int, items: Sequence[T_contra], /) -> None:
        """Take a batch; until it returns, nothing more is sent."""
        ...

    async def commit(self, epoch: int, /) -> None:
        """The checkpoint that ends this epoch is durable, or the run has ended without a failure."""
        ...


class Transactional(Sink[T_contra], Protocol[T_contra]):
    """A sink whose records appear exactly once, however often a run is killed and resumed."""

    async def prepare(self, epoch: int, /) -> Any:
        """Make what was written for this epoch durable; gives plain data (JSON) for `recover`."""
        ...

    async def recover(self, epoch: int, prepared: Any, /) -> None:
        """After `setup`, before any write: go on from the checkpoint that ended `epoch`.

        What `prepare` had made durable up to it is committed, what was written later is undone. Without a
        checkpoint to go on from, `epoch` is 0 and `prepared` None.
        """
        ...


class SnapshotStore(Protocol):
    """Where checkpoints are kept: files by name, without folders. Its calls may block.

    They come from worker threads, several at a time, but for one name from one at a time.
    """

    def open(self) -> None:
        """Become the only user of it. Raises ConflictError where somebody else is."""
        ...

    def write(self, name: str, parts: Iterable[bytes], /) -> None:
        """Make a file of these parts, or replace it: durable on return, and whole or not there before."""
        ...

    def append(self, name: str, data: bytes, /) -> None:
        """Add to a file, which is made where it is missing: durable on return; a crash may leave a part."""
        ...

    def read(self, name: str, /) -> Iterator[bytes]:
        """The bytes of a file, in parts of any size. Raises NotFoundError."""
        ...

    def names(self) -> list[str]:
        """Every file that is there."""
        ...

    def remove(self, name: str, /) -> None:
        """Remove a file; nothing happens if it is not there."""
        ...

    def close(self) -> None:
        """Let others use it."""
        ...
