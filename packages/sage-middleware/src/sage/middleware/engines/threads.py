"""How many threads compute an embedding batch and on which cores: the server's own, or lent ones as well."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from sage.common.errors import BadRequestError, UsageError

__all__ = ["THREADS_HEADER", "Cores", "ThreadTeam", "pin", "usable"]

THREADS_HEADER: Final = "x-sage-threads"


@dataclass(frozen=True, slots=True)
class Cores:
    """What a server may compute on: `threads` by itself, up to `most` when asked to.

    With `own` cores the first `threads` stay there and the others on `lent`; without, nothing is pinned.
    """

    threads: int = 1
    most: int = 1
    own: tuple[int, ...] = ()
    lent: tuple[int, ...] = ()

    @classmethod
    def of(cls, own: Iterable[int], threads: int, most: int, usable: Collection[int]) -> Cores:
        """`own` cores out of those that this process can use; the rest of them can be lent.

        0 `threads` is one for each own core, or for each there is; 0 for `most` is no more than `threads`.
        Raises UsageError for cores that this process cannot use and for fewer `most` than `threads`.
        """
        cores = tuple(sorted(set(own)))
        if not set(cores) <= set(usable):
            raise UsageError(f"The cores are {list(cores)}; this process can use {sorted(usable)}.")
        threads = threads or len(cores) or len(usable)
        most = most or threads
        if not 1 <= threads <= most:
            raise UsageError(
                f"There are {threads} threads and {most} at most; valid is 1 or more, at most {most}."
            )
        return cls(threads, most, cores, tuple(sorted(set(usable) - set(cores))) if cores else ())

    def asked(self, header: str) -> int:
        """Threads for a request with this header: the own ones for an empty one or 0, never more than `most`.

        Raises BadRequestError for anything but a whole number from 0.
        """
        if not header:
            return self.threads
        if not (header.isascii() and header.isdecimal()):
            raise BadRequestError(
                f"{THREADS_HEADER} is {header!r}; valid is a whole number, 0 for the server's own threads."
            )
        return min(int(header), self.most) or self.threads


def usable() -> frozenset[int]:
    """The cores that the calling thread may run on."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def pin(cores: Sequence[int]) -> None:
    """Keep the calling thread, and every thread that it makes later on these cores; none = all as it is."""
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)


class ThreadTeam:
    """The OpenMP threads of one computing thread: the first stay on its own cores, the others on lent ones.

    `set_count` tells the library how many to use, `fork` runs one small parallel region, `pin_to` pins the
    calling thread. All calls come from the computing thread, as OpenMP keeps a team for each such thread.

    Why this way: a thread inherits the affinity of the one that makes it, when it is made. libgomp makes
    the missing threads of a team at the first parallel region that wants them, in order; it ends the last
    ones when a smaller team of at least two runs; and it lets all sleep while one thread computes alone. So
    pinning the computing thread around a small region puts just the new ones elsewhere, and no thread has
    to be looked up and moved. Two other ways were measured beside a busy engine on the lent core: threads
    that may run on all cores gave it a worse p99, as the kernel moves them to and fro; threads of low
    priority did not disturb it, but the batch then took six times as long and held up what came after it.
    """

    def __init__(
        self,
        cores: Cores,
        set_count: Callable[[int], object],
        fork: Callable[[int], object],
        pin_to: Callable[[Sequence[int]], object] = pin,
    ) -> None:
        self._cores = cores
        self._set_count = set_count
        self._fork = fork
        self._pin_to = pin_to
        self._count = 0

    def use(self, count: int) -> None:
        """Compute with `count` threads from here on. Costs some microseconds, and 15 ms for a new thread."""
        own = self._cores.threads
        if self._count < count:
            if self._count < own:
                self._grow(min(count, own), self._cores.own)
            if count > own:
                self._grow(count, self._cores.lent)
        elif count < self._count:
            self._set_count(count)
        self._count = count

    def _grow(self, count: int, cores: tuple[int, ...]) -> None:
        self._pin_to(cores)
        try:
            self._set_count(count)
            self._fork(count)
        finally:
            self._pin_to(self._cores.own)
