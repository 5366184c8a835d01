"""How a question and its passages become one text: the same as the chat template, which is here too.

Each sentence stands between its own pair of marks and ends with the citation of its passage:
`<|s3|> The<|b1|> port<|b2|> is<|b3|> 80. [2]<|e3|>`. The answer begins with the mark of the sentence that it
copies. Before each word but the first stands a beat, which is copied too: beats are counted through the whole
prompt, so that each word has a place of its own, however often it comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = [
    *("ABOUT_TEXT", "BEATS", "MARKS", "REFUSAL_TEXT", "SPECIAL"),
    *("Sentence", "beaten", "render"),
]

MARKS = 88
"""The most sentences that a prompt may hold; the template leaves out what comes after."""

BEATS = 192
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


def beaten(text: str, first: int) -> str:
    """The words, which are counted from `first`, each but the first with its beat before it."""
    return "".join(
        f"<|b{(first + at) % BEATS}|> {word}" if at else f" {word}" for at, word in enumerate(text.split())
    )


def render(question: str, sentences: Sequence[Sentence], marks: Sequence[int] | None = None) -> str:
    """The whole prompt. `marks`: which pair of marks each sentence has; in order where it is not given."""
    marks = range(len(sentences)) if marks is None else marks
    body, words = "", 0
    for m, s in zip(marks, sentences, strict=True):
        body += f"<|s{m}|>{beaten(s.text, words)} [{s.number}]<|e{m}|>"
        words += len(s.text.split())
    return f"<|begin|><|question|> {question}<|passages|>{body}<|question|> {question}<|answer|>"
