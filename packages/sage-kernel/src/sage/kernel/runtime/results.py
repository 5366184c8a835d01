"""Results that are kept: in memory up to a bound, and in a file where they shall outlive the run."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, Final

from sage.common.clock import Clock
from sage.common.errors import UsageError
from sage.kernel.compile import Op
from sage.kernel.options import Cache, Use
from sage.kernel.runtime.digest import digest
from sage.kernel.runtime.kernels import AsyncCall
from sage.kernel.runtime.report import Counters

if TYPE_CHECKING:
    from sage.platform.storage.keyvalue import SqliteKeyValue
    from sage.platform.storage.sqlite import Database

__all__ = ["ResultFile", "Results", "cached", "weigh"]

_NOTHING: Final[Any] = object()
_LEAVES: Final = {int, float, bool, type(None), str, bytes}
SWEEP = 1000
"""After so many results that were written, a file is rid of those that are too old."""


class Results:
    """Results by digest, the one that was asked for longest ago first."""

    def __init__(self, spec: Cache, clock: Clock) -> None:
        self._spec = spec
        self._clock = clock
        self._held: dict[str, tuple[Any, float, int]] = {}  # result, until when, bytes
        self._bytes = 0

    def get(self, key: str) -> Any:
        """The result, or `_NOTHING`."""
        found = self._held.pop(key, None)
        if found is None:
            return _NOTHING
        if self._spec.ttl and found[1] <= self._clock.now():
            self._bytes -= found[2]
            return _NOTHING
        self._held[key] = found  # now the last to go
        return found[0]

    def put(self, key: str, value: Any) -> None:
        """Keep a result, unless it alone is larger than all may be; what was not asked for longest goes."""
        weight = weigh(value)
        if weight > self._spec.bytes:
            return
        if key in self._held:
            self._bytes -= self._held.pop(key)[2]
        self._held[key] = (value, self._clock.now() + self._spec.ttl, weight)
        self._bytes += weight
        while len(self._held) > self._spec.size or self._bytes > self._spec.bytes:
            self._bytes -= self._held.pop(next(iter(self._held)))[2]


class ResultFile:
    """Results in a SQLite file, as JSON, each for its time."""

    def __init__(self, spec: Cache, clock: Clock, namespace: str) -> None:
        self._spec = spec
        self._clock = clock
        self._namespace = namespace
        self._written = 0
        self._database: Database | None = None
        self._store: SqliteKeyValue | None = None

    async def open(self) -> None:
        """Open the file, and make it where it is not there; raises `SageError` that names it."""
        from sage.platform.storage.keyvalue import SqliteKeyValue
        from sage.platform.storage.sqlite import Database

        self._database = Database(Path(self._spec.path))
        self._store = await SqliteKeyValue.open(self._database, clock=self._clock)
        await self._store.expire()

    async def close(self) -> None:
        """Close it."""
        database, self._database = self._database, None
        if database is not None:
            await database.close()

    async def get(self, key: str) -> Any:
        """The result, or `_NOTHING`."""
        assert self._store is not None, "the run has opened it"
        entry = await self._store.get(self._namespace, key)
        return _NOTHING if entry is None else json.loads(entry.value)

    async def put(self, key: str, value: Any) -> None:
        """Write a result; raises `UsageError` for what would not come back as it is."""
        assert self._store is not None, "the run has opened it"
        data = _plain(value)
        if data is None:
            raise UsageError(
                f"a result, a {type(value).__name__}, cannot be written to {self._spec.path!r}: only "
                "text, numbers, true, false, null, lists, and dictionaries with text as keys can.",
                hint="Leave path= away to keep results in memory, or map them to plain data and back.",
            )
        if len(data) <= self._spec.bytes:
            await self._store.put(self._namespace, key, data, ttl=self._spec.ttl)
            self._written += 1
            if self._written % SWEEP == 0:
                await self._store.expire()


class _Flight:
    """A call under way, for all who want its result."""

    __slots__ = ("done", "error", "value")

    def __init__(self) -> None:
        self.done = asyncio.Event()
        self.value: Any = _NOTHING
        self.error: Exception | None = None


def cached(
    call: AsyncCall, spec: Cache, counters: Counters, clock: Clock, file: ResultFile | None
) -> AsyncCall:
    """`call` for what no result is kept of. Equal records in flight share one call, and its failure too."""
    results, flights, key_of = Results(spec, clock), dict[str, _Flight](), spec.key

    async def run(item: Any) -> Any:
        key = digest(item if key_of is None else key_of(item))
        while True:
            if (found := results.get(key)) is not _NOTHING:
                counters.hits += 1
                return found
            flight = flights.get(key)
            if flight is None:
                return await lead(key, item)
            await flight.done.wait()
            if flight.error is not None:
                raise flight.error
            if flight.value is not _NOTHING:
                counters.hits += 1
                return flight.value
            # Who made the call was cancelled: another one makes it.

    async def lead(key: str, item: Any) -> Any:
        flight = flights[key] = _Flight()
        try:
            flight.value = await made(key, item)
        except Exception as error:
            flight.error = error
            raise
        finally:
            del flights[key]
            flight.done.set()
        results.put(key, flight.value)
        return flight.value

    async def made(key: str, item: Any) -> Any:
        if file is not None and (found := await file.get(key)) is not _NOTHING:
            counters.hits += 1
            return found
        counters.misses += 1
        value = await call(item)
        if file is not None:
            await file.put(key, value)
        return value

    return run


def _plain(value: Any) -> bytes | None:
    """The value as JSON, or None where that does not hold all of it."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return None
    return text.encode() if json.loads(text) == value else None


def namespace_of(flow: str, op: Op) -> str:
    """Where the results of an operator are in a file: other parameters or other code have another place."""
    fn = op.node.fn
    if isinstance(fn, Use):
        what = digest((fn.name, dict(fn.params)))
    else:
        what = f"{getattr(fn, '__module__', '')}:{getattr(fn, '__qualname__', type(fn).__qualname__)}"
    return f"{flow}/{op.node.name}/{what}"


def weigh(value: Any) -> int:
    """About how many bytes of memory a value takes, with all that it holds."""
    seen: set[int] = set()
    todo, total = [value], 0
    while todo:
        one = todo.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        # An array or tensor tells itself what it holds outside of the object.
        total += max(sys.getsizeof(one), int(getattr(one, "nbytes", 0)))
        if isinstance(one, list | tuple) and set(map(type, one)) <= _LEAVES:
            total += sum(map(sys.getsizeof, one))  # such as a vector: one by one that takes long
        elif isinstance(one, dict):
            todo += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple | set | frozenset):
            todo += one
        elif not isinstance(one, type | ModuleType | FunctionType):
            todo += getattr(one, "__dict__", {}).values()
            names = [name for kind in type(one).__mro__ for name in getattr(kind, "__slots__", ())]
            todo += [getattr(one, name) for name in names if hasattr(one, name)]
    return total
