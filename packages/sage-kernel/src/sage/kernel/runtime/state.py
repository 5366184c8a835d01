"""State of operators, as checkpoints see it: what changed, as bytes by key."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Final, Protocol

from sage.kernel.runtime.columns import Batch, Control
from sage.kernel.runtime.report import CheckpointError, spell

__all__ = [
    "GONE",
    "LOOP_SECONDS",
    "Changes",
    "Stateful",
    "Untracked",
    "changed",
    "changed_now",
    "pickled",
    "pickled_batch",
    "plain_bytes",
    "unpickled",
]

GONE: Final[Any] = object()
"""Stands for the state of a key that has none any more."""

LOOP_SECONDS = 0.004
"""How long pickling may keep the event loop at a time."""
_CHECK_EVERY = 128
_PROTOCOL: Final = pickle.HIGHEST_PROTOCOL
_SIMPLE: Final = frozenset((str, int, bytes))
"""Keys whose bytes are the same whenever they are equal."""


class Stateful(Protocol):
    """An operator with state, by key and besides. It is not called while its changes are read."""

    def begin(self, states: Iterable[tuple[Any, Any]], plain: Any, /) -> None:
        """Go on from a checkpoint, or from nothing and None, and note from now on which keys change."""
        ...

    def changes(self) -> Iterator[tuple[Any, Any]]:
        """(key, state or `GONE`) of every key that changed since the last call, or since `begin`."""
        ...

    def plain(self) -> Any:
        """What is no state of a key, such as a watermark; small, and kept whole each time."""
        ...


class Untracked(set[Any]):
    """The changed keys of an operator that nobody takes checkpoints of: it stays empty."""

    def add(self, key: Any, /) -> None:
        """Forget it."""


@dataclass(slots=True)
class Changes:
    """Changed states of one operator, side by side; an empty state is that of a key which is gone."""

    keys: list[bytes] = field(default_factory=list)
    states: list[bytes] = field(default_factory=list)


async def changed(operator: str, stateful: Stateful) -> Changes:
    """Pickle what changed; a turn of the event loop now and then, so that it is never kept for long."""
    import asyncio  # which worker processes never need

    found = Changes()
    start = perf_counter()
    for count, _ in enumerate(_pickling(operator, stateful, found), 1):
        if not count % _CHECK_EVERY and perf_counter() - start > LOOP_SECONDS:
            await asyncio.sleep(0)
            start = perf_counter()
    return found


def changed_now(operator: str, stateful: Stateful) -> Changes:
    """The same at once, where little has changed."""
    found = Changes()
    for _ in _pickling(operator, stateful, found):
        pass
    return found


def _pickling(operator: str, stateful: Stateful, found: Changes) -> Iterator[None]:
    keep_key, keep_state, dumps = found.keys.append, found.states.append, pickle.dumps
    for key, state in stateful.changes():
        try:
            keep_key(dumps(key, _PROTOCOL) if type(key) in _SIMPLE else plain_bytes(_canonical(key)))
            keep_state(b"" if state is GONE else dumps(state, _PROTOCOL))
        except Exception as error:
            raise _unpicklable(f"the state of operator {operator!r} for key {spell(key)}", error) from error
        yield


def pickled(value: Any, what: str | Callable[[], str]) -> bytes:
    """The value as bytes; raises `CheckpointError` that says what it is."""
    try:
        return pickle.dumps(value, _PROTOCOL)
    except Exception as error:
        raise _unpicklable(what if isinstance(what, str) else what(), error) from error


def pickled_batch(batch: Batch | Control, stage: str) -> bytes:
    """A batch or message as bytes; raises `CheckpointError` that names the stage it was for, and the item."""
    try:
        return pickle.dumps(batch, _PROTOCOL)
    except Exception:
        for item in batch if isinstance(batch, list) else getattr(batch, "values", ()):
            pickled(item, f"an item for {stage!r} ({spell(item)})")
        raise


def unpickled(data: bytes, what: str) -> Any:
    """The value that was `pickled`; raises `CheckpointError` that says what it is."""
    try:
        return pickle.loads(data)  # noqa: S301 - from the user's own folder, checksummed
    except Exception as error:
        raise CheckpointError(
            f"{what} cannot be read from the checkpoint: {type(error).__name__}: {error}.",
            hint="Its class has changed or moved since: bring it back, or begin anew in another folder.",
        ) from error


def plain_bytes(value: Any) -> bytes:
    """Bytes that are equal for equal plain values, whatever objects they share; raises what pickling does."""
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, _PROTOCOL)
    pickler.fast = True
    try:
        pickler.dump(value)
    except ValueError:  # nested too deeply, or within itself: only a memo can pickle it
        return pickle.dumps(value, _PROTOCOL)
    return buffer.getvalue()


def _canonical(key: Any) -> Any:
    """Numbers that are equal are one key: 1, 1.0 and True, also within tuples."""
    kind = type(key)
    if kind is bool or (kind is float and key.is_integer()):
        return int(key)
    return tuple(map(_canonical, key)) if kind is tuple else key


def _unpicklable(what: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{what} cannot be pickled for a checkpoint: {type(error).__name__}: {error}.",
        hint="Records and states have to be plain data, or objects of classes that a module defines.",
    )
