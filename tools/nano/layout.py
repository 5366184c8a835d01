"""How a question and its passages become one text: the same as the chat template, which is here too.

Each sentence stands between its own pair of marks and ends with the citation of its passage:
`<|s3|> The port is 80. [2]<|e3|>`. The answer begins with the mark of the sentence that it copies. A longer
sentence has a beat after every four words, which is copied too: so a word that comes again, or a row of equal
digits, has a place of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = [
    *("ABOUT_TEXT", "BEATS", "MARKS", "PER_BEAT", "REFUSAL_TEXT", "SPECIAL"),
    *("Sentence", "measures", "render"),
]

MARKS = 88
"""The most sentences that a prompt may hold; the template leaves out what comes after."""

PER_BEAT = 4
BEATS = 16
"""How many there are; then they begin again."""

_NAMES = ("pad", "begin", "end", "question", "passages", "answer", "none", "talk")
SPECIAL = (
    *(f"<|{name}|>" for name in _NAMES),
    *(f"<|{side}{i}|>" for side in "se" for i in range(MARKS)),
    *(f"<|b{i}|>" for i in range(BEATS)),
)
"""All tokens that are not text, in the order of their ids."""

PAD, BEGIN, END, QUESTION, PASSAGES, ANSWER, NONE, TALK = range(len(_NAMES))
FIRST_S = len(_NAMES)
FIRST_E = FIRST_S + MARKS
FIRST_B = FIRST_E + MARKS

REFUSAL_TEXT = " The passages do not answer this question."
ABOUT_TEXT = (
    " I am SAGE Nano, a very small model. All I can do is copy the sentence that answers a question "
    "from the passages I am given; ask a larger model for anything else."
)


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence of passage `number`, counted from 1."""

    text: str
    number: int


def measures(text: str) -> list[tuple[int | None, str]]:
    """The text in parts of four words, each with the beat before it; the first has none."""
    words = text.split()
    parts = [" ".join(words[at : at + PER_BEAT]) for at in range(0, len(words), PER_BEAT)]
    return [(at % BEATS if at else None, part) for at, part in enumerate(parts)]


def _beaten(text: str) -> str:
    return "".join(f" {part}" if beat is None else f"<|b{beat}|> {part}" for beat, part in measures(text))


def render(question: str, sentences: Sequence[Sentence], marks: Sequence[int] | None = None) -> str:
    """The whole prompt. `marks`: which pair of marks each sentence has; in order where it is not given."""
    marks = range(len(sentences)) if marks is None else marks
    body = "".join(
        f"<|s{m}|>{_beaten(s.text)} [{s.number}]<|e{m}|>" for m, s in zip(marks, sentences, strict=True)
    )
    return f"<|begin|><|question|> {question}<|passages|>{body}<|question|> {question}<|answer|>"
