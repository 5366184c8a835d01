"""How many bytes a batch holds, as a cheap estimate: texts exactly, other records from a few of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import islice
from sys import getsizeof
from typing import Any, Final

from sage.kernel.runtime.columns import Batch

__all__ = ["BATCH_BYTES", "CHANNEL_BYTES", "weigh"]

CHANNEL_BYTES: Final = 64 << 20
"""How much may queue between two stages, unless the environment says otherwise."""

BATCH_BYTES: Final = 4 << 20
"""Above this a batch is not made larger: what a stage has in hand counts beside what queues."""

_LIGHT: Final = frozenset({int, float, bool, complex, type(None)})
_TEXTS: Final = frozenset({str, bytes, bytearray})
_SAMPLES: Final = 4
_PARTS: Final = 8
_DEPTH: Final = 3


def weigh(batch: Batch) -> int:
    """Bytes of the records of a batch. Numbers count nothing: so many of them as may queue are no burden."""
    values = batch if isinstance(batch, list) else batch.values
    if not values:
        return 0
    kind = type(values[0])
    if kind in _LIGHT and type(values[-1]) in _LIGHT:
        return 0
    if kind in _TEXTS:
        try:
            return sum(map(len, values))
        except TypeError:
            pass  # not all of them are texts
    sample = values[:: max(1, len(values) // _SAMPLES)]
    return sum(_size(value, _DEPTH) for value in sample) * len(values) // len(sample)


def _size(value: Any, depth: int) -> int:
    kind = type(value)
    if kind in _LIGHT:
        return 0
    if kind in _TEXTS:
        return len(value)
    size = getattr(value, "nbytes", None)  # arrays and views of memory
    if isinstance(size, int):
        return size
    parts, count = _parts(value)
    if not count or not depth:
        return getsizeof(value, 0)
    sample = list(islice(parts, _PARTS))
    return sum(_size(part, depth - 1) for part in sample) * count // max(1, len(sample))


def _parts(value: Any) -> tuple[Iterable[Any], int]:
    """What a record consists of, and how many there are of it."""
    if isinstance(value, dict):
        return value.values(), len(value)
    if isinstance(value, list | tuple | set | frozenset | deque):
        return value, len(value)
    if fields := getattr(value, "__dict__", None):
        return fields.values(), len(fields)
    slots = getattr(type(value), "__slots__", ())
    found = [getattr(value, name, None) for name in ((slots,) if isinstance(slots, str) else slots)]
    return found, len(found)
