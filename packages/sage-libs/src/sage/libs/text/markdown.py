"""Splitting Markdown: headings stay with their text, code blocks stay whole where they fit."""

from __future__ import annotations

import re
from collections.abc import Iterator

from sage.libs.text.split import Chunk, Span, SplitOptions, cut, pack

__all__ = ["split_markdown"]

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_HEADING = re.compile(r" {0,3}#{1,6}(\s|$)")


def split_markdown(text: str, *, doc: str = "", options: SplitOptions | None = None) -> list[Chunk]:
    """Split Markdown as `split_text` does, with two more rules.

    A heading is never the end of a chunk when text follows it (unless the heading alone fills a chunk), and a
    fenced code block is cut only if it is longer than a chunk.

    >>> text = "Intro text.\\n\\n# Ports\\n\\nThe gateway listens on 8888.\\n"
    >>> [c.text for c in split_markdown(text, options=SplitOptions(size=42, overlap=0))]
    ['Intro text.\\n\\n', '# Ports\\n\\nThe gateway listens on 8888.\\n']
    """
    options = options or SplitOptions()
    pieces: list[Span] = []
    for start, body, end in _blocks(text):
        heading = body - start
        if end - start <= options.size or heading >= options.size:
            pieces += cut(text, (start, end), options.size)
            continue
        parts = cut(text, (body, end), options.size - heading)
        pieces += [(start, parts[0][1]), *parts[1:]]
    return pack(text, pieces, doc, options)


def _blocks(text: str) -> Iterator[tuple[int, int, int]]:
    """Blocks as (start, where its body starts, end): headings belong to the block that follows them."""
    start: int | None = None
    for kind, low, high in _lines_to_runs(text):
        start = low if start is None else start
        if kind == "heading":
            continue
        yield start, low, high
        start = None
    if start is not None:
        yield start, start, len(text)


def _lines_to_runs(text: str) -> Iterator[tuple[str, int, int]]:
    """Runs of lines as (kind, start, end): a heading, a fenced code block, or a paragraph.

    Each run takes the blank lines behind it, so that runs cover the text.
    """
    kind, start, at, fence, blank = "", 0, 0, "", False
    for line in text.splitlines(keepends=True):
        here = _kind_of(line)
        if fence:
            closing = line.strip()
            if set(closing) == {fence[0]} and len(closing) >= len(fence):
                fence, blank = "", True  # whatever follows is a new run
        elif not line.strip():
            blank = True
        elif here != "text" or kind == "heading" or blank or not kind:
            if kind:
                yield kind, start, at
                start = at
            opened = _FENCE.match(line)
            kind, fence, blank = here, opened.group(1) if opened else "", False
        at += len(line)
    if at > start:
        yield kind or "text", start, at


def _kind_of(line: str) -> str:
    if _HEADING.match(line):
        return "heading"
    return "code" if _FENCE.match(line) else "text"
