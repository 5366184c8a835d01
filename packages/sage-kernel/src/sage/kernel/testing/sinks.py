"""A transactional sink for tests, and sources that tell what was read of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sage.kernel.runtime.state import pickled, unpickled

__all__ = ["EpochFiles", "Numbers"]


class EpochFiles:
    """A `Transactional` sink: one file per epoch in a folder, which has its final name once it is committed.

    Raises AssertionError where a runtime breaks the contract of sinks: an epoch out of turn, a write between
    `prepare` and the next epoch, a commit of what was not prepared.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._epoch = 1
        self._items: list[Any] = []
        self._prepared: int | None = None

    def setup(self) -> None:
        """Make the folder."""
        self._folder.mkdir(parents=True, exist_ok=True)

    async def write(self, epoch: int, items: Sequence[Any], /) -> None:
        """Keep a batch until its epoch is prepared."""
        assert epoch == self._epoch, f"a write of epoch {epoch} in epoch {self._epoch}"
        self._items += items

    async def prepare(self, epoch: int, /) -> Any:
        """Write the records of the epoch under a name that does not count yet."""
        assert (epoch, self._prepared) == (self._epoch, None), f"epoch {epoch} prepared in {self._epoch}"
        self._file(epoch, "prepared").write_bytes(pickled(self._items, "what is written"))
        self._epoch, self._prepared, self._items = epoch + 1, epoch, []
        return {"epoch": epoch}

    async def commit(self, epoch: int, /) -> None:
        """Give the file its name. A run without checkpoints has not prepared it."""
        if self._prepared is None:
            await self.prepare(epoch)
        assert epoch == self._prepared, f"epoch {epoch} committed, and {self._prepared} is prepared"
        self._file(epoch, "prepared").rename(self._file(epoch, "part"))
        self._prepared = None

    async def recover(self, epoch: int, prepared: Any, /) -> None:
        """Commit what the checkpoint has, undo the rest."""
        assert prepared == ({"epoch": epoch} if epoch else None), f"{prepared} recovered for epoch {epoch}"
        self._epoch = epoch + 1
        for path in list(self._folder.iterdir()):
            if int(path.stem) > epoch:
                path.unlink()
            elif path.suffix == ".prepared":
                path.rename(path.with_suffix(".part"))

    def _file(self, epoch: int, kind: str) -> Path:
        return self._folder / f"{epoch:08}.{kind}"

    @staticmethod
    def records(folder: Path) -> list[Any]:
        """Everything that is committed, by epoch."""
        parts = sorted(folder.glob("*.part"))
        return [item for part in parts for item in unpickled(part.read_bytes(), part.name)]


class Numbers:
    """A `Replayable` source of 0, 1, … count - 1, ten at a time; a position is how many were read."""

    def __init__(self, count: int) -> None:
        self._count = count

    def read(self, position: Any | None, /) -> Iterator[tuple[Any, Sequence[int]]]:
        """The numbers behind `position`."""
        for start in range(position or 0, self._count, 10):
            end = min(start + 10, self._count)
            yield end, range(start, end)
