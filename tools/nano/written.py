"""Passages that people wrote: the project's own text outside its documentation, which is measured with."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from sage.libs.text import SplitOptions, split_markdown

__all__ = ["passages", "sentences"]

_ROOT = Path(__file__).parents[2]
_SIZE = 400  # characters of a passage, as `docs-qa` cuts them
_RUN = 5  # so many words in a row that the documentation has too, and the sentence is left out
_LONGEST = 60  # words
_HELD = 10  # one of so many passages is kept for choosing between weights
_SEAMS = ("\n\n", "\n- ", "\n* ", "\n|", "\n#", "\n```")
_STOPS = (". ", "? ", "! ")


def sentences(passage: str) -> list[str]:
    """As the chat template cuts them, and without what it leaves out.

    >>> sentences("# Ports\\n\\nOne is open.\\nIs it? Yes, it is.\\n- Two, e.g. this")
    ['One is open.', 'Is it?', 'Yes, it is.', 'Two, e.g. this']
    """
    text = passage.rstrip()
    for seam in _SEAMS:
        text = text.replace(seam, "\x1f" + seam.strip("\n- *"))
    text = text.replace("\n", " ")
    for stop in _STOPS:
        text = text.replace(stop, stop[0] + "\x1f")
    for short in ("e.g.", "i.e."):
        text = text.replace(short + "\x1f", short + " ")
    cut = (" ".join(part.split()) for part in text.split("\x1f"))
    return [p.removeprefix("- ") for p in cut if len(p) > 3 and not p.startswith("#") and "---" not in p]


@cache
def passages(root: Path = _ROOT, *, held: bool = False) -> list[list[str]]:
    """The sentences of each; none of them has five words in a row with a page of `docs`.

    `held`: those that are kept from training, one of ten, in place of the others.
    """
    known = {run for file in sorted((root / "docs").rglob("*.md")) for run in _runs(file.read_text("utf-8"))}
    found = []
    for text in _texts(root):
        for chunk in split_markdown(text, options=SplitOptions(_SIZE, 0)):
            told = [s for s in sentences(chunk.text) if _fits(s) and known.isdisjoint(_runs(s))]
            if told:
                found.append(told)
    return [told for at, told in enumerate(found) if (at % _HELD == 0) == held]


def _fits(sentence: str) -> bool:
    return len(sentence.split()) <= _LONGEST and "<|" not in sentence


def _runs(text: str) -> Iterator[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return zip(*(words[at:] for at in range(_RUN)), strict=False)


def _texts(root: Path) -> Iterator[str]:
    """Pages beside the code, and what the code says of itself."""
    for folder in ("benchmarks", "packages", "tools"):
        for file in sorted((root / folder).rglob("*.md")):
            yield file.read_text("utf-8")
        for file in sorted((root / folder).rglob("*.py")):
            tree = ast.parse(file.read_text("utf-8"))
            yield "\n\n".join(
                found
                for node in ast.walk(tree)
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
                and (found := ast.get_docstring(node))
            )
