"""Documents from a folder, and their passages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from sage.common.errors import NotFoundError
from sage.libs.text import SplitOptions, split_markdown, split_text
from sage.middleware.operators.records import Document, Passage

__all__ = ["SUFFIXES", "documents", "find_documents", "split"]

SUFFIXES = (".md", ".markdown", ".rst", ".txt")
_MARKDOWN = (".md", ".markdown")


def find_documents(folder: Path, suffixes: Sequence[str] = SUFFIXES) -> list[Path]:
    """The text files below a folder, sorted; hidden files and folders are left out.

    Raises NotFoundError when the folder does not exist or has no such file.
    """
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise NotFoundError(f"The documents folder {folder} {what}.")
    found = sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in suffixes
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )
    if not found:
        raise NotFoundError(f"The folder {folder} has no documents; they end in {', '.join(suffixes)}.")
    return found


def documents(folder: Path, suffixes: Sequence[str] = SUFFIXES) -> Callable[[], Iterator[Document]]:
    """A source of the documents of a folder; each is named by its path below it.

    Bytes that are not UTF-8 become U+FFFD. Raises as `find_documents` does, here and not while it runs.
    """
    files = find_documents(folder, suffixes)

    def read() -> Iterator[Document]:
        for file in files:
            text = file.read_text(encoding="utf-8", errors="replace")
            yield Document(file.relative_to(folder).as_posix(), text)

    return read


def split(size: int = 800, overlap: int = 100) -> Callable[[Document], list[Passage]]:
    """An operator for `flatmap`: passages of at most `size` characters; Markdown is cut at its own seams.

    Passages of nothing but white space are left out.

    >>> [passage.id for passage in split(size=8, overlap=0)(Document("a.txt", "One two three"))]
    ['a.txt#0-8', 'a.txt#8-13']
    """
    options = SplitOptions(size, overlap)

    def passages(document: Document) -> list[Passage]:
        cut = split_markdown if document.name.lower().endswith(_MARKDOWN) else split_text
        chunks = cut(document.text, doc=document.name, options=options)
        return [Passage(c.doc, c.text, c.start, c.end) for c in chunks if c.text.strip()]

    return passages
