"""The checkpoints in a store: written as changes, merged now and then, and found again. It blocks."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any
from zlib import crc32

from sage.common.errors import NotFoundError
from sage.kernel.ports import SnapshotStore
from sage.kernel.runtime.frames import DamagedError, frame, unframed
from sage.kernel.runtime.manifest import FileMark, Manifest
from sage.kernel.runtime.report import CheckpointError
from sage.kernel.runtime.state import Changes, unpickled

__all__ = ["Archive", "Restored"]

BUCKETS = 64
"""Files are merged one bucket of keys at a time, so that a merge needs little memory."""
MERGE_FILES = 16
SMALL = 4 << 20

_MANIFEST, _STATE = "manifest-", "state-"
_Record = tuple[str, int, list[bytes], list[bytes]]  # operator, bucket, keys, states


@dataclass(slots=True)
class Restored:
    """What a checkpoint holds, as bytes: `plain` by stage; `states` by operator, then by key."""

    manifest: Manifest
    plain: dict[str, bytes] = field(default_factory=dict)
    states: dict[str, dict[bytes, bytes]] = field(default_factory=dict)


class Archive:
    """Checkpoints of one run in a store that is open."""

    def __init__(self, store: SnapshotStore, keep: int) -> None:
        self._store = store
        self._keep = keep
        self._chain: list[FileMark] = []
        self._kept: list[Manifest] = []

    def newest(self) -> tuple[Restored | None, list[str]]:
        """The newest sound checkpoint, and what is wrong with newer ones, which are removed.

        None if there is none at all; raises `CheckpointError` if there are some and all are damaged.
        """
        epochs = sorted(filter(_is_manifest, self._store.names()), reverse=True)
        damaged: list[str] = []
        for name in epochs:
            try:
                found = self._read(name)
            except (DamagedError, NotFoundError) as error:
                damaged.append(f"checkpoint {name.removeprefix(_MANIFEST).lstrip('0')} is damaged: {error}")
                continue
            for bad in epochs[: len(damaged)]:
                self._store.remove(bad)
            self._take(found.manifest, epochs[: len(damaged) : -1])
            return found, damaged
        if damaged:
            raise CheckpointError(
                f"no checkpoint is sound: {'; '.join(damaged)}.",
                hint="Begin anew with an empty folder, or bring these files back.",
            )
        return None, []

    def save(
        self, manifest: Manifest, plain: Mapping[str, bytes], changes: Mapping[str, Changes]
    ) -> Manifest:
        """Make a checkpoint durable: what changed since the one before, then the manifest that names it."""
        mark = self._write(f"{_STATE}{manifest.epoch:08}", _frames(plain, changes))
        self._chain = [*self._chain, mark]
        whole = replace(manifest, files=tuple(self._chain))
        self._store.write(f"{_MANIFEST}{manifest.epoch:08}", [whole.to_bytes()])
        self._kept.append(whole)
        return whole

    def tidy(self) -> int:
        """Merge the changes if they have become many, and remove what no kept checkpoint needs.

        Gives the oldest epoch that a run can still go on from.
        """
        if len(self._chain) > 1 and self._worth_it():
            self._merge()
        while len(self._kept) > self._keep:
            self._store.remove(f"{_MANIFEST}{self._kept.pop(0).epoch:08}")
        needed = {mark.name for one in self._kept for mark in one.files} | {mark.name for mark in self._chain}
        for name in self._store.names():
            if name.startswith(_STATE) and name not in needed:
                self._store.remove(name)
        return self._kept[0].epoch

    def _worth_it(self) -> bool:
        first, *later = self._chain
        return len(later) >= MERGE_FILES or sum(mark.size for mark in later) > 2 * first.size + SMALL

    def _merge(self) -> None:
        epoch = self._kept[-1].epoch
        parts = [_records(unframed(self._store.read(mark.name))) for mark in self._chain]
        self._chain = [self._write(f"{_STATE}{epoch:08}m", map(frame, map(_dumped, _merged(parts))))]

    def _write(self, name: str, parts: Iterable[bytes]) -> FileMark:
        digest, size = sha256(), 0

        def watched() -> Iterator[bytes]:
            nonlocal size
            for part in parts:
                digest.update(part)
                size += len(part)
                yield part

        self._store.write(name, watched())
        return FileMark(name, size, digest.hexdigest())

    def _read(self, name: str) -> Restored:
        found = Restored(Manifest.from_bytes(b"".join(self._store.read(name))))
        for mark in found.manifest.files:
            digest, size = sha256(), 0

            def watched(mark: FileMark = mark) -> Iterator[bytes]:
                nonlocal size
                for part in self._store.read(mark.name):
                    digest.update(part)  # noqa: B023 - used up within this turn
                    size += len(part)
                    yield part

            try:
                for payload in unframed(watched()):
                    _apply(unpickled(payload, mark.name), found)
            except DamagedError as error:
                raise DamagedError(f"{mark.name}: {error}") from error
            except NotFoundError as error:
                raise DamagedError(f"{mark.name} is missing") from error
            if (size, digest.hexdigest()) != (mark.size, mark.sha256):
                raise DamagedError(f"{mark.name} is not the file that was written")
        return found

    def _take(self, manifest: Manifest, older: list[str]) -> None:
        self._chain = list(manifest.files)
        for name in older:
            try:
                self._kept.append(Manifest.from_bytes(b"".join(self._store.read(name))))
            except DamagedError:
                self._store.remove(name)
        self._kept.append(manifest)


def _is_manifest(name: str) -> bool:
    return name.startswith(_MANIFEST) and name.removeprefix(_MANIFEST).isdigit()


def _frames(plain: Mapping[str, bytes], changes: Mapping[str, Changes]) -> Iterator[bytes]:
    yield frame(pickle.dumps(dict(plain), pickle.HIGHEST_PROTOCOL))
    sorted_in = {operator: _by_bucket(found) for operator, found in changes.items() if found.keys}
    for bucket in range(BUCKETS):
        for operator, buckets in sorted_in.items():
            if (found := buckets[bucket]).keys:
                yield frame(_dumped((operator, bucket, found.keys, found.states)))


def _by_bucket(changes: Changes) -> list[Changes]:
    buckets = [Changes() for _ in range(BUCKETS)]
    for key, state in zip(changes.keys, changes.states, strict=True):
        bucket = buckets[crc32(key) % BUCKETS]
        bucket.keys.append(key)
        bucket.states.append(state)
    return buckets


def _dumped(record: _Record) -> bytes:
    return pickle.dumps(record, pickle.HIGHEST_PROTOCOL)


def _records(payloads: Iterable[bytes]) -> Iterator[_Record]:
    """The records of keyed state in a file; what is plain is only of use in its own checkpoint."""
    for payload in payloads:
        record = unpickled(payload, "a file of changes")
        if isinstance(record, tuple):
            yield record


def _merged(files: list[Iterator[_Record]]) -> Iterator[_Record]:
    """The records of all files as one, the later ones over the earlier; each file is sorted by bucket."""
    heads = [next(file, None) for file in files]
    for bucket in range(BUCKETS):
        states: dict[str, dict[bytes, bytes]] = {}
        for at, file in enumerate(files):
            while (head := heads[at]) is not None and head[1] == bucket:
                _over(states.setdefault(head[0], {}), head[2], head[3])
                heads[at] = next(file, None)
        for operator, found in states.items():
            if found:
                yield operator, bucket, list(found), list(found.values())


def _over(states: dict[bytes, bytes], keys: list[bytes], newer: list[bytes]) -> None:
    states.update(zip(keys, newer, strict=True))
    if b"" in newer:
        for key, state in zip(keys, newer, strict=True):
            if not state:
                del states[key]


def _apply(record: Any, found: Restored) -> None:
    if isinstance(record, tuple):
        _over(found.states.setdefault(record[0], {}), record[2], record[3])
    else:
        found.plain = record
