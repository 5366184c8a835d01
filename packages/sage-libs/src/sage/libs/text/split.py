"""Recursive splitting: paragraphs first, then lines, sentences, words, and characters last."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from sage.common.errors import UsageError

__all__ = ["Chunk", "Span", "SplitOptions", "cut", "pack", "split_text"]

Span = tuple[int, int]  # [start, end) in characters of the whole document

# A boundary lies after each match, so that nothing is lost and each piece keeps its own separator.
_PARAGRAPH = re.compile(r"\n[^\S\n]*\n\s*")
_LINE = re.compile(r"\n")
_SENTENCE = re.compile(r"[.!?…]['\")\]]*\s+|[\u3002\uff01\uff1f]")
_WORD = re.compile(r"\s+")
_COARSE_TO_FINE = (_PARAGRAPH, _LINE, _SENTENCE, _WORD)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a document: `text` is the document's characters `start` to `end` (exclusive)."""

    doc: str
    text: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class SplitOptions:
    """At most `size` characters a chunk, of which at most `overlap` repeat the end of the one before."""

    size: int = 800
    overlap: int = 100

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UsageError(f"Chunk size is {self.size}; it has to be at least 1 character.")
        if not 0 <= self.overlap < self.size:
            raise UsageError(
                f"Chunk overlap is {self.overlap}; it has to be from 0 to less than the size, {self.size}."
            )


def split_text(text: str, *, doc: str = "", options: SplitOptions | None = None) -> list[Chunk]:
    """Split plain text into chunks of at most `options.size` characters.

    The chunks cover the text: the first starts at 0, the last ends at its end, and each starts where the one
    before ended or up to `overlap` characters earlier. An empty text has no chunks.

    >>> [c.text for c in split_text("One. Two. Three.", options=SplitOptions(size=10, overlap=0))]
    ['One. Two. ', 'Three.']
    """
    options = options or SplitOptions()
    return pack(text, cut(text, (0, len(text)), options.size), doc, options)


def cut(text: str, span: Span, size: int) -> list[Span]:
    """Cut a span into consecutive pieces of at most `size` characters at the coarsest boundaries that do."""
    return _cut(text, span, size, 0)


def _cut(text: str, span: Span, size: int, level: int) -> list[Span]:
    start, end = span
    if end - start <= size:
        return [span] if end > start else []
    if level == len(_COARSE_TO_FINE):
        return [(at, min(at + size, end)) for at in range(start, end, size)]
    edges = [m.end() for m in _COARSE_TO_FINE[level].finditer(text, start, end)]
    bounds = [start, *(e for e in edges if e < end), end]
    pieces: list[Span] = []
    for piece in pairwise(bounds):
        pieces += _cut(text, piece, size, level + 1)
    return pieces


def pack(text: str, pieces: Sequence[Span], doc: str, options: SplitOptions) -> list[Chunk]:
    """Join consecutive pieces greedily into chunks; pieces cover the text and none is over the size."""
    chunks: list[Chunk] = []
    words = [m.end() for m in _WORD.finditer(text)] if options.overlap else []
    start = end = 0
    for piece_start, piece_end in pieces:
        if end > start and piece_end - start > options.size:
            chunks.append(Chunk(doc, text[start:end], start, end))
            room = min(options.overlap, options.size - (piece_end - piece_start))
            start = _overlap_start(words, max(end - room, start + 1), end)
        end = piece_end
    if end > start:
        chunks.append(Chunk(doc, text[start:end], start, end))
    return chunks


def _overlap_start(words: Sequence[int], earliest: int, end: int) -> int:
    """The first word that begins at or after `earliest`; `end` (no overlap) if there is none."""
    at = bisect_left(words, earliest)
    return words[at] if at < len(words) and words[at] < end else end
