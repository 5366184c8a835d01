"""Sentences of prose that may be Markdown."""

from __future__ import annotations

import re

__all__ = ["sentences"]

_FENCED = re.compile(r"^ {0,3}(`{3,}|~{3,}).*?(?:^ {0,3}\1[`~]*[^\S\n]*$|\Z)", re.MULTILINE | re.DOTALL)
_NOT_PROSE = re.compile(r"^\s*(?:#{1,6}\s.*|\|.*|[-*_=]{3,}\s*|<!--.*|!\[.*|\s*)$", re.MULTILINE)
_MARKER = re.compile(r"^\s*(?:[-*+]|\d{1,3}[.)]|>)\s+", re.MULTILINE)
_LINK = re.compile(r"\[([^\]\n]+)\]\([^)\n]*\)")
# Only before something that can begin a sentence, and not after an initial or a common abbreviation.
_END = re.compile(r"""[.!?…]['")\]*`]*(?= ["'(`*\[]*[A-Z0-9])""")
_ABBREVIATED = re.compile(r"(?:\b[A-Za-z]|\be\.g|\bi\.e|\betc|\bvs|\bcf)$")


def sentences(text: str) -> list[str]:
    """The sentences of a text, in order, without headings, tables, code blocks and link targets.

    White space inside a sentence becomes one space; a list item is a paragraph of its own.

    >>> sentences("# Title\\n\\nSAGE has layers. Each may import\\nonly lower ones.\\n\\n- One port: 8888.")
    ['SAGE has layers.', 'Each may import only lower ones.', 'One port: 8888.']
    """
    prose = _NOT_PROSE.sub("\n", _FENCED.sub("\n", text))
    prose = _LINK.sub(r"\1", _MARKER.sub("\n\n", prose))
    found: list[str] = []
    for paragraph in re.split(r"\n\s*\n", prose):
        flat = " ".join(paragraph.split())
        start = 0
        for end in _END.finditer(flat):
            if not _ABBREVIATED.search(flat[start : end.start()]):
                found.append(flat[start : end.end()].strip())
                start = end.end()
        if rest := flat[start:].strip():
            found.append(rest)
    return found
