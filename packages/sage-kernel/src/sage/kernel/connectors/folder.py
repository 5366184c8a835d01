"""The text files of a folder, one record each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from sage.common.errors import BadRequestError, NotFoundError
from sage.kernel.connectors.text import SLICE

__all__ = ["Document", "Files"]


@dataclass(frozen=True, slots=True)
class Document:
    """A text file: `path` is relative to the folder it was found in, with forward slashes."""

    path: str
    text: str


class Files:
    """The text files under `folder` that match `glob`, in the order of their names.

    The position is the name of the last one read: a file that comes later with a name before it is not read,
    and one that changes is not read again. Raises `NotFoundError` when the folder is missing or nothing
    matches.
    """

    def __init__(self, folder: Path, glob: str = "**/*", encoding: str = "utf-8") -> None:
        if not folder.is_dir():
            what = "is a file, not a folder" if folder.exists() else "does not exist"
            raise NotFoundError(f"folder {str(folder)!r} {what}.", hint="Name a folder of text files.")
        self._folder, self._glob, self._encoding = folder, glob, encoding
        if not self._found():
            raise NotFoundError(f"folder {str(folder)!r} has no file that matches {glob!r}.")

    def read(self, position: Any | None) -> Iterator[tuple[dict[str, str], list[Document]]]:
        """Documents, several small ones at once; raises `BadRequestError` for one that is not text."""
        documents: list[Document] = []
        size = 0
        for name in self._found():
            if position and name <= PurePosixPath(position["path"]):
                continue
            documents.append(Document(str(name), self._text(self._folder / name)))
            size += len(documents[-1].text)
            if size >= SLICE or len(documents) == 64:
                yield {"path": documents[-1].path}, documents
                documents, size = [], 0
        if documents:
            yield {"path": documents[-1].path}, documents

    def _found(self) -> list[PurePosixPath]:
        paths = (path for path in self._folder.glob(self._glob) if path.is_file())
        return sorted(PurePosixPath(path.relative_to(self._folder).as_posix()) for path in paths)

    def _text(self, path: Path) -> str:
        try:
            return path.read_text(encoding=self._encoding)
        except UnicodeDecodeError as error:
            raise BadRequestError(
                f"file {str(path)!r} is not {self._encoding} text (byte {error.start}).",
                hint="Narrow the glob.",
            ) from error
