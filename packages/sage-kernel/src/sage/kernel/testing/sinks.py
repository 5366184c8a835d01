"""A transactional sink for tests, and sources that tell what was read of them."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

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
        self._file(epoch, "prepared").write_bytes(pickle.dumps(self._items))
        self._epoch, self._prepared, self._items = epoch + 1, epoch, []
        return {"epoch": epoch}

    async def commit(self, epoch: int, /) -> None:
        """Give the file its name."""
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
        return [item for part in parts for item in pickle.loads(part.read_bytes())]  # noqa: S301


class Numbers:
    """A `Replayable` source of 0, 1, … count - 1; the position of a number is itself."""

    def __init__(self, count: int) -> None:
        self._count = count

    def read(self, position: Any | None, /) -> Iterator[tuple[Any, int]]:
        """The numbers behind `position`."""
        start = 0 if position is None else position + 1
        return ((number, number) for number in range(start, self._count))
