"""What to ask of a folder that nobody has asked anything about yet."""

from __future__ import annotations

import re
from collections.abc import Iterable

from sage.middleware.operators.records import Document

__all__ = ["OWN_DOCS", "from_headings"]

OWN_DOCS = (
    "Which layers does SAGE have, and which way may they import?",
    "What does a status of 499 mean?",
    "Which stages does a request pass on its way to an engine?",
)
"""Questions that the project's own documentation answers."""

_HEADING = re.compile(r"^ {0,3}#{1,4}\s+(.+?)\s*#*$", re.MULTILINE)
_FENCED = re.compile(r"^ {0,3}```.*?^ {0,3}```", re.MULTILINE | re.DOTALL)


def from_headings(documents: Iterable[Document], count: int = 3) -> list[str]:
    """Questions about `count` headings, spread evenly over the documents; their names where headings lack.

    >>> from_headings([Document("a.md", "# Ports\\n\\ntext\\n\\n# Keys\\n\\ntext\\n")], 1)
    ['What is said about “Ports”?']
    """
    kept = list(documents)
    topics = [h.strip("`*_ ") for doc in kept for h in _HEADING.findall(_FENCED.sub("", doc.text))]
    unique = list(dict.fromkeys(t for t in topics if t)) or [doc.name for doc in kept]
    step = max(1, len(unique) // count)
    return [f"What is said about “{topic}”?" for topic in unique[::step][:count]]
