"""Power cuts: a disk that forgets what was not synced, below SQLite and below plain files.

What happens is recorded; `Disk.crash` then says how the disk could look if the power had failed after any of
the recorded events. So one run of a load gives as many crashes as it has events, and each has a seed.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import apsw

from sage.platform.state import FileSystem

__all__ = ["Crash", "Disk", "PowerCutFileSystem", "PowerCutVFS"]

_SECTOR = 512
_NOISE = 0.1  # of the lost sectors beyond the synced end of a file
# The unix VFS syncs the folder at the first sync of a file of these kinds that it created.
_SYNCS_FOLDER = apsw.SQLITE_OPEN_WAL | apsw.SQLITE_OPEN_MAIN_JOURNAL | apsw.SQLITE_OPEN_SUPER_JOURNAL


@dataclass(frozen=True, slots=True)
class _Write:
    file: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class _Truncate:
    file: int
    size: int


@dataclass(frozen=True, slots=True)
class _Sync:
    file: int


@dataclass(frozen=True, slots=True)
class _SyncFailed:
    file: int


@dataclass(frozen=True, slots=True)
class _Entry:
    """A name now means this file; `source`, if any, stops to be a name. No file: the name is gone."""

    name: Path
    file: int | None
    source: Path | None = None


@dataclass(frozen=True, slots=True)
class _SyncFolder:
    path: Path


@dataclass(frozen=True, slots=True)
class _Acknowledged:
    what: Hashable


_Event = _Write | _Truncate | _Sync | _SyncFailed | _Entry | _SyncFolder | _Acknowledged


@dataclass(frozen=True, slots=True)
class Crash:
    """How the disk looks after a power cut, and what had been acknowledged before it."""

    at: int
    files: dict[Path, bytes]
    acknowledged: frozenset[Hashable]

    def write_to(self, folder: Path) -> None:
        """Write the image: each file by its name, without the folders it was in."""
        for path, data in self.files.items():
            (folder / path.name).write_bytes(data)


class Disk:
    """Records what is written, synced, renamed and acknowledged; `len()` is the number of events so far.

    What a file held when the disk first sees it counts as synced. Safe to use from several threads.
    """

    def __init__(self) -> None:
        self._events: list[_Event] = []
        self._files: dict[Path, int] = {}
        self._count = 0
        self.lock = threading.RLock()  # a call and its record are one step

    def __len__(self) -> int:
        return len(self._events)

    def acknowledge(self, what: Hashable) -> None:
        """Somebody was told that `what` is stored: from here on a crash must not lose it."""
        self._events.append(_Acknowledged(what))

    def opened(self, path: Path, existed: bool) -> int:
        """The number of the file at `path`, which was there before, or has just been made."""
        with self.lock:
            known = self._files.get(path)
            if known is not None:
                return known
            self._count += 1
            self._files[path] = self._count
            self._events.append(_Entry(path, self._count))
            if existed:
                self._events += [
                    _Write(self._count, 0, path.read_bytes()),
                    _Sync(self._count),
                    _SyncFolder(path.parent),
                ]
            return self._count

    def written(self, file: int, offset: int, data: bytes) -> None:
        """Bytes went into the cache of the disk."""
        self._events.append(_Write(file, offset, data))

    def truncated(self, file: int, size: int) -> None:
        """The size was set, in the cache."""
        self._events.append(_Truncate(file, size))

    def synced(self, file: int) -> None:
        """All that was written to the file so far is on the platter."""
        self._events.append(_Sync(file))

    def sync_failed(self, file: int) -> None:
        """The kernel gave up: what waited has arrived in part, and no later sync writes the rest."""
        self._events.append(_SyncFailed(file))

    def renamed(self, source: Path, target: Path) -> None:
        """A name was changed, in the cache."""
        with self.lock:
            file = self._files.pop(source)
            self._files[target] = file
            self._events.append(_Entry(target, file, source))

    def deleted(self, path: Path) -> None:
        """A name was removed, in the cache."""
        with self.lock:
            self._files.pop(path, None)
            self._events.append(_Entry(path, None))

    def folder_synced(self, path: Path) -> None:
        """The names in this folder are on the platter."""
        self._events.append(_SyncFolder(path))

    def crash(self, seed: int, at: int | None = None) -> Crash:
        """The disk after a power cut that came when `at` events had happened (all of them, if None).

        All that was synced is there. Of the rest, `seed` chooses: each sector of 512 bytes of each write,
        each truncation and each change of a name may have arrived or not. Beyond the synced end of a file,
        a sector that did not arrive is zeros or noise.
        """
        at = len(self._events) if at is None else at
        platter = _Platter(random.Random(seed))  # noqa: S311 - a test that can be repeated
        for event in self._events[:at]:
            platter.take(event)
        return Crash(at, platter.lose_power(), frozenset(platter.acknowledged))


@dataclass(slots=True)
class _Content:
    data: bytearray = field(default_factory=bytearray)
    pending: list[_Write | _Truncate] = field(default_factory=list)


@dataclass(slots=True)
class _Platter:
    """The synced state, and what waits in the cache."""

    rng: random.Random
    contents: dict[int, _Content] = field(default_factory=dict)
    names: dict[Path, int] = field(default_factory=dict)
    pending: list[_Entry] = field(default_factory=list)
    acknowledged: set[Hashable] = field(default_factory=set)

    def take(self, event: _Event) -> None:
        match event:
            case _Write() | _Truncate():
                self.contents.setdefault(event.file, _Content()).pending.append(event)
            case _Sync():
                content = self.contents.setdefault(event.file, _Content())
                for change in content.pending:
                    _apply(content.data, change)
                content.pending.clear()
            case _SyncFailed():
                self._tear(self.contents.setdefault(event.file, _Content()), self._share())
            case _Entry():
                self.pending.append(event)
            case _SyncFolder():
                for entry in [entry for entry in self.pending if entry.name.parent == event.path]:
                    self._apply(entry)
                    self.pending.remove(entry)
            case _Acknowledged():
                self.acknowledged.add(event.what)

    def lose_power(self) -> dict[Path, bytes]:
        """What is left. Ends the use of this object."""
        share = self._share()
        for entry in self.pending:
            if self.rng.random() < share:
                self._apply(entry)
        for content in self.contents.values():
            self._tear(content, share)
        return {
            name: bytes(self.contents[file].data) if file in self.contents else b""
            for name, file in self.names.items()
        }

    def _share(self) -> float:
        """How much arrives: some cuts lose all of the cache, some nothing; both find other faults."""
        return self.rng.choice((0.0, 0.1, 0.5, 0.9, 1.0))

    def _tear(self, content: _Content, share: float) -> None:
        synced = len(content.data)
        for change in content.pending:
            if isinstance(change, _Truncate):
                if self.rng.random() < share:
                    _apply(content.data, change)
                continue
            for part in _sectors(change):
                if self.rng.random() < share:
                    _apply(content.data, part)
                elif part.offset >= synced and self.rng.random() < _NOISE:
                    noise = self.rng.randbytes(len(part.data))
                    _apply(content.data, _Write(part.file, part.offset, noise))
        content.pending.clear()

    def _apply(self, entry: _Entry) -> None:
        if entry.source is not None:
            self.names.pop(entry.source, None)
        if entry.file is None:
            self.names.pop(entry.name, None)
        else:
            self.names[entry.name] = entry.file


def _apply(data: bytearray, change: _Write | _Truncate) -> None:
    if isinstance(change, _Truncate):
        del data[change.size :]
        data.extend(bytes(change.size - len(data)))
        return
    data.extend(bytes(max(0, change.offset - len(data))))
    data[change.offset : change.offset + len(change.data)] = change.data


def _sectors(write: _Write) -> Iterator[_Write]:
    begin = 0
    while begin < len(write.data):
        offset = write.offset + begin
        end = begin + _SECTOR - offset % _SECTOR
        yield _Write(write.file, offset, write.data[begin:end])
        begin = end


class PowerCutVFS(apsw.VFS):
    """A VFS that records on `disk`. Pass `name` as `vfs=` when a database is opened.

    `base` is the name of the VFS below: the usual one, or one with faults; a sync that fails is recorded too.
    Keep a reference as long as a database is open by it. The index beside a WAL (`-shm`) and temporary files
    are not recorded: SQLite makes them anew after a power cut.
    """

    def __init__(self, name: str, disk: Disk, base: str = "") -> None:
        self.name = name
        self._disk = disk
        self._base = base
        super().__init__(name, base)

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:  # noqa: N802
        """Open by the VFS below, and record the new name if there is one."""
        if name is None:
            return apsw.VFSFile(self._base, name, flags)
        path = Path(name if isinstance(name, str) else name.filename())
        with self._disk.lock:
            existed = path.exists()
            file = _PowerCutFile(self._base, name, flags, self._disk)
            number = self._disk.opened(path, existed)
        file.attach(number, path.parent if not existed and flags[0] & _SYNCS_FOLDER else None)
        return file

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802
        """Delete; the name comes back after a power cut unless the folder is synced."""
        path = Path(filename)
        with self._disk.lock:
            super().xDelete(filename, syncdir)
            self._disk.deleted(path)
            if syncdir:
                self._disk.folder_synced(path.parent)


class _PowerCutFile(apsw.VFSFile):
    def __init__(self, base: str, name: str | apsw.URIFilename, flags: list[int], disk: Disk) -> None:
        super().__init__(base, name, flags)
        self._disk = disk

    def attach(self, number: int, new_in: Path | None) -> None:
        self._number = number
        self._new_in = new_in

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        with self._disk.lock:
            super().xWrite(data, offset)
            self._disk.written(self._number, offset, bytes(data))

    def xTruncate(self, newsize: int) -> None:  # noqa: N802
        with self._disk.lock:
            super().xTruncate(newsize)
            self._disk.truncated(self._number, newsize)

    def xSync(self, flags: int) -> None:  # noqa: N802
        with self._disk.lock:
            try:
                super().xSync(flags)
            except apsw.Error:
                self._disk.sync_failed(self._number)
                raise
            self._disk.synced(self._number)
            if self._new_in is not None:
                self._disk.folder_synced(self._new_in)
                self._new_in = None


class PowerCutFileSystem(FileSystem):
    """The usual calls, recorded on `disk`; for `write_atomic(..., fs=...)`."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._numbers: dict[int, int] = {}

    def create(self, target: Path) -> tuple[int, Path]:
        """Record the new name."""
        if target.exists():
            self._disk.opened(target, existed=True)
        fd, path = super().create(target)
        self._numbers[fd] = self._disk.opened(path, existed=False)
        return fd, path

    def write(self, fd: int, data: bytes) -> None:
        """Record the bytes, as far into the file as it has been written."""
        offset = os.lseek(fd, 0, os.SEEK_CUR)
        super().write(fd, data)
        self._disk.written(self._numbers[fd], offset, data)

    def sync(self, fd: int) -> None:
        """Record that its bytes are safe."""
        super().sync(fd)
        self._disk.synced(self._numbers[fd])

    def rename(self, source: Path, target: Path) -> None:
        """Record the change of the name."""
        super().rename(source, target)
        self._disk.renamed(source, target)

    def sync_folder(self, path: Path) -> None:
        """Record that its names are safe."""
        super().sync_folder(path)
        self._disk.folder_synced(path)
