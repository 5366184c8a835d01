"""Sources and sinks that come with the kernel: `files`, `lines`, `jsonl`, `items` and `stdout`."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import IO, Any

from sage.common.errors import BadRequestError, NotFoundError

__all__ = ["Document", "JsonlFile", "Stdout", "files", "items", "lines", "read_jsonl", "to_json"]


@dataclass(frozen=True, slots=True)
class Document:
    """A text file: `path` is relative to the folder it was found in, with forward slashes."""

    path: str
    text: str


def files(folder: Path, glob: str = "**/*", encoding: str = "utf-8") -> Iterator[Document]:
    """The text files under `folder` that match `glob`, in the order of their names, read one by one.

    Raises `NotFoundError` when the folder is missing or nothing matches, `BadRequestError` for a file that
    is not text in `encoding`.
    """
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise NotFoundError(f"folder {str(folder)!r} {what}.", hint="Name a folder of text files.")
    found = sorted(path for path in folder.glob(glob) if path.is_file())
    if not found:
        raise NotFoundError(f"folder {str(folder)!r} has no file that matches {glob!r}.")
    return (Document(path.relative_to(folder).as_posix(), _text(path, encoding)) for path in found)


def lines(path: Path, encoding: str = "utf-8") -> Iterator[str]:
    """The lines of a text file, without their ends."""
    _need_file(path)

    def read() -> Iterator[str]:
        with path.open(encoding=encoding) as file:
            for line in file:
                yield line.rstrip("\r\n")

    return read()


def read_jsonl(path: Path) -> Iterator[Any]:
    """The JSON values of a file that has one per line; blank lines are passed over."""
    _need_file(path)

    def read() -> Iterator[Any]:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _parse(path, number, line)

    return read()


def items(values: list[Any]) -> list[Any]:
    """A list that is written in the plan itself."""
    return values


class Stdout:
    """Writes each record as one line of JSON to standard output."""

    async def write(self, _epoch: int, items: Sequence[Any]) -> None:
        """Write and flush a batch."""
        sys.stdout.write("".join(f"{to_json(item)}\n" for item in items))
        sys.stdout.flush()

    async def commit(self, _epoch: int) -> None:
        """Everything is out already."""


class JsonlFile:
    """Writes each record as one line of JSON into a file that appears, whole, when the run has succeeded."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[str] | None = None

    def setup(self) -> None:
        """Open a temporary file beside the target; its folder must exist."""
        folder = self._path.parent
        if not folder.is_dir():
            raise NotFoundError(
                f"folder {str(folder)!r}, where {self._path.name!r} would go, does not exist."
            )
        self._file = tempfile.NamedTemporaryFile(  # noqa: SIM115 - closed in `close`
            "w", encoding="utf-8", dir=folder, prefix=f".{self._path.name}.", suffix=".part", delete=False
        )

    async def write(self, _epoch: int, items: Sequence[Any]) -> None:
        """Append a batch."""
        self._open().writelines(f"{to_json(item)}\n" for item in items)

    async def commit(self, _epoch: int) -> None:
        """Put the file in its place."""
        file = self._open()
        file.flush()
        os.fsync(file.fileno())
        # A temporary file is private; the result has the mode that an ordinary new file would have.
        mask = os.umask(0)
        os.umask(mask)
        os.fchmod(file.fileno(), 0o666 & ~mask)
        os.replace(file.name, self._path)

    def close(self) -> None:
        """Remove what was not committed."""
        file, self._file = self._file, None
        if file is not None:
            file.close()
            Path(file.name).unlink(missing_ok=True)

    def _open(self) -> IO[str]:
        if self._file is None:
            raise BadRequestError(f"the sink for {str(self._path)!r} is not set up.")
        return self._file


def to_json(item: Any) -> str:
    """One line of JSON; dataclasses become objects, paths strings. Raises TypeError for other objects."""
    return json.dumps(item, ensure_ascii=False, default=_plain, allow_nan=False)


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, set | frozenset):
        return list(value)
    # NumPy's scalars and arrays, without importing it.
    if callable(to_list := getattr(value, "tolist", None)):
        return to_list()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON; map it to plain data before the sink")


def _text(path: Path, encoding: str) -> str:
    try:
        return path.read_text(encoding=encoding)
    except UnicodeDecodeError as error:
        raise BadRequestError(
            f"file {str(path)!r} is not {encoding} text (byte {error.start}).", hint="Narrow the glob."
        ) from error


def _need_file(path: Path) -> None:
    if not path.is_file():
        raise NotFoundError(f"file {str(path)!r} does not exist.")


def _parse(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        where = f"{path}:{number}:{error.colno}"
        raise BadRequestError(f"{where}: not JSON: {error.msg}.") from error
