"""How a question and its passages become one text: the same as the chat template, which is here too.

Each sentence stands between its own pair of marks and ends with the citation of its passage:
`<|s3|> The port is 80. [2]<|e3|>`. The answer begins with the mark of the sentence that it copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["ABOUT_TEXT", "MARKS", "REFUSAL_TEXT", "SPECIAL", "Sentence", "render"]

MARKS = 96
"""The most sentences that a prompt may hold; the template leaves out what comes after."""

_NAMES = ("pad", "begin", "end", "question", "passages", "answer", "none", "talk")
SPECIAL = (*(f"<|{name}|>" for name in _NAMES), *(f"<|{side}{i}|>" for side in "se" for i in range(MARKS)))
"""All tokens that are not text, in the order of their ids."""

PAD, BEGIN, END, QUESTION, PASSAGES, ANSWER, NONE, TALK = range(len(_NAMES))
FIRST_S = len(_NAMES)
FIRST_E = FIRST_S + MARKS

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


def render(question: str, sentences: Sequence[Sentence], marks: Sequence[int] | None = None) -> str:
    """The whole prompt. `marks`: which pair of marks each sentence has; in order where it is not given."""
    marks = range(len(sentences)) if marks is None else marks
    body = "".join(f"<|s{m}|> {s.text} [{s.number}]<|e{m}|>" for m, s in zip(marks, sentences, strict=True))
    return f"<|begin|><|question|> {question}<|passages|>{body}<|question|> {question}<|answer|>"
