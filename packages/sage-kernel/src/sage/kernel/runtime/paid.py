"""Results of async calls, kept so that a run that goes on from a checkpoint need not pay for them twice.

A log of (operator, digest of the input, result). It is a multiset: two calls with equal inputs have two
results. A segment holds what came after the checkpoint before it, and goes when no kept checkpoint needs it.
"""

from __future__ import annotations

import asyncio
import os
import pickle
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from itertools import count
from typing import Any, TypeVar

from sage.kernel.ports import SnapshotStore
from sage.kernel.runtime.frames import DamagedError, frame, unframed
from sage.kernel.runtime.report import CheckpointError, spell
from sage.kernel.runtime.state import pickled, plain_bytes, unpickled

__all__ = ["Calls", "Paid", "ResultLog"]

T = TypeVar("T")

_RESULTS = "results-"
_Entry = tuple[str, bytes, bytes, tuple[bytes, int]]  # operator, digest of the input, result, which it is

AHEAD = 8 << 20
"""Bytes that may wait to be written before calls wait, too."""


class ResultLog:
    """The results of a run, written behind its back: durable soon, in batches, off the event loop."""

    def __init__(self, store: SnapshotStore) -> None:
        self._store = store
        self._waiting: dict[str, list[bytes]] = {}
        self._size = 0
        self._more = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._operators: dict[str, Paid] = {}
        self._run, self._numbers = os.urandom(8), count()
        self._epoch = 1
        self._thread = ThreadPoolExecutor(1, "sage-results")

    def operator(self, name: str) -> Paid:
        """What one operator has paid for."""
        return self._operators.setdefault(name, Paid(name, self, self._epoch))

    async def open(self, epoch: int) -> None:
        """Read what was paid for after the checkpoint of `epoch`, for the calls that are made again."""
        self._epoch = epoch + 1
        entries = await self._do(self._read, epoch)
        for name, digest, data, which in entries:
            self.operator(name).give(digest, data, which)

    def which(self) -> tuple[bytes, int]:
        """What no other entry of any run is called: one that was carried over is in two segments."""
        return self._run, next(self._numbers)

    def add(self, epoch: int, entry: _Entry) -> None:
        """Have an entry written."""
        data = frame(pickle.dumps(entry, pickle.HIGHEST_PROTOCOL))
        self._waiting.setdefault(_name(epoch), []).append(data)
        self._size += len(data)
        if self._size > AHEAD:
            self._room.clear()
        self._more.set()

    async def room(self) -> None:
        """Wait while too much is to be written."""
        await self._room.wait()

    async def run(self) -> None:
        """Write what comes."""
        while True:
            await self._more.wait()
            await self._flush()

    async def close(self) -> None:
        """Write the rest, and wait for what is being written."""
        await self._flush()
        await self._do(self._thread.shutdown, False)

    async def cut(self, epoch: int) -> None:
        """Remove what was paid for before the checkpoint of `epoch`."""
        await self._flush()
        await self._do(self._cut, epoch)

    def _cut(self, epoch: int) -> None:
        for name in self._store.names():
            if name.startswith(_RESULTS) and name <= _name(epoch):
                self._store.remove(name)

    async def _flush(self) -> None:
        self._more.clear()
        waiting, self._waiting = self._waiting, {}
        self._size = 0
        self._room.set()
        if waiting:
            # Not given up when the run is: its thread writes it before what `close` brings.
            await asyncio.shield(self._do(self._write, waiting))

    async def _do(self, call: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *args)

    def _write(self, waiting: dict[str, list[bytes]]) -> None:
        for name, parts in waiting.items():
            self._store.append(name, b"".join(parts))

    def _read(self, epoch: int) -> list[_Entry]:
        names = [n for n in self._store.names() if n.startswith(_RESULTS) and n > _name(epoch)]
        found = {entry[3]: entry for name in names for entry in self._entries(name)}
        entries = list(found.values())
        if names:
            # One sound segment in place of all: the end of the last one may be torn.
            parts = (frame(pickle.dumps(entry, pickle.HIGHEST_PROTOCOL)) for entry in entries)
            self._store.write(_name(epoch + 1), parts)
            for name in names:
                if name != _name(epoch + 1):
                    self._store.remove(name)
        return entries

    def _entries(self, name: str) -> Iterator[_Entry]:
        try:
            for payload in unframed(self._store.read(name)):
                yield unpickled(payload, name)
        except DamagedError:
            return  # what was being written when the run was killed: its calls are made again


class Calls(ABC):
    """The calls of one operator, which are made only if their results are not there."""

    def __init__(self, operator: str) -> None:
        self.operator = operator

    def digest(self, item: Any) -> bytes:
        """What stands for an input."""
        try:
            data = plain_bytes(item)
        except Exception as error:
            raise CheckpointError(
                f"{self.what(item)} cannot be pickled: {type(error).__name__}: {error}.",
                hint="With checkpoints on, what is in flight is kept: give async operators plain data.",
            ) from error
        return blake2b(data, digest_size=16).digest()

    def each(self, call: Callable[[Any], Awaitable[Any]]) -> Callable[[Any], Awaitable[Any]]:
        """The call of one item, which is made only if its result is not here."""

        async def paid(item: Any) -> Any:
            digest = self.digest(item)
            if (data := self.find(digest)) is not None:
                return unpickled(data, f"the result of {self.what(item)}")
            return await self.keep(digest, item, await call(item))

        return paid

    @abstractmethod
    def find(self, digest: bytes) -> bytes | None:
        """A result of this input, which is given back once."""

    @abstractmethod
    async def keep(self, digest: bytes, item: Any, result: Any) -> Any:
        """Have a result kept; gives it."""

    def pickled(self, item: Any, result: Any) -> bytes:
        """A result as it is kept."""
        return pickled(result, lambda: f"what operator {self.operator!r} gave for {spell(item)}")

    def what(self, item: Any) -> str:
        """An input in words."""
        return f"an item of operator {self.operator!r} ({spell(item)})"


class Paid(Calls):
    """The results of one operator: those of an earlier run to give back, and new ones to keep."""

    def __init__(self, operator: str, log: ResultLog, epoch: int) -> None:
        super().__init__(operator)
        self.epoch = epoch
        self._log = log
        self._left: dict[bytes, list[tuple[bytes, tuple[bytes, int]]]] = {}

    def turn(self, epoch: int) -> None:
        """A barrier has passed: what comes now is of `epoch`, and so is what was not given back yet."""
        self.epoch = epoch
        for digest, results in self._left.items():
            for data, which in results:
                self._log.add(epoch, (self.operator, digest, data, which))

    def give(self, digest: bytes, data: bytes, which: tuple[bytes, int]) -> None:
        """A result that is to be given back."""
        self._left.setdefault(digest, []).append((data, which))

    def batch(self, call: Callable[[Any], Awaitable[Any]]) -> Callable[[Any], Awaitable[Any]]:
        """The call of a batch, which is made with those items whose results are not here."""

        async def paid(items: list[Any]) -> list[Any]:
            digests = [self.digest(item) for item in items]
            found = [self.find(digest) for digest in digests]
            missing = [at for at, data in enumerate(found) if data is None]
            made = iter(await call([items[at] for at in missing]) if missing else ())
            results = []
            for item, digest, data in zip(items, digests, found, strict=True):
                if data is None:
                    results.append(await self.keep(digest, item, next(made)))
                else:
                    results.append(unpickled(data, f"the result of {self.what(item)}"))
            return results

        return paid

    def preset(self, item: Any, result: Any) -> None:
        """Give this result back for this item."""
        self.give(self.digest(item), self.pickled(item, result), self._log.which())

    def find(self, digest: bytes) -> bytes | None:
        """See `Calls`."""
        left = self._left.get(digest)
        if not left:
            return None
        data, _ = left.pop(0)
        if not left:
            del self._left[digest]
        return data

    async def keep(self, digest: bytes, item: Any, result: Any) -> Any:
        """See `Calls`."""
        data = self.pickled(item, result)
        self._log.add(self.epoch, (self.operator, digest, data, self._log.which()))
        await self._log.room()
        return result


def _name(epoch: int) -> str:
    return f"{_RESULTS}{epoch:08}"
