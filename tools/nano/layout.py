"""How a question and its passages become one text: the same as the chat template, which is here too.

Each sentence stands between its own pair of marks and ends with the citation of its passage:
`<|s3|> The<|b1|> port<|b2|> is<|b3|> 80. [2]<|e3|>`. The answer begins with the mark of the sentence that it
copies. Before each word but the first stands a beat, which is copied too: beats are counted through the whole
prompt, so that each word has a place of its own, however often it comes. Where something comes again inside a
word, and before each digit there, stands one more: ` 26.0.0.1` is ` 2<|b4|>6.<|b5|>0.<|b6|>0.<|b7|>1`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = [
    *("ABOUT_TEXT", "BEATS", "MARKS", "REFUSAL_TEXT", "SPECIAL"),
    *("Sentence", "beaten", "render", "stretches"),
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


_PIECE = re.compile(r"[A-Za-z]+|\S")


def stretches(text: str) -> list[str]:
    """What beats stand between: words, cut before each digit inside them and before what comes again in them.

    >>> stretches("On 1,000 of --a-b")
    [' On', ' 1,', '0', '0', '0', ' of', ' -', '-a', '-b']
    """
    found: list[str] = []
    for word in text.split():
        found.append(" ")
        seen: set[str] = set()
        for piece in _PIECE.findall(word):
            if seen and (piece in "0123456789" or piece in seen):
                found.append("")
                seen = set()
            found[-1] += piece
            seen.add(piece)
    return found


def beaten(text: str, first: int) -> str:
    """The stretches, which are counted from `first`, each but the first with its beat before it."""
    return "".join(
        f"<|b{(first + at) % BEATS}|>{part}" if at else part for at, part in enumerate(stretches(text))
    )


def render(question: str, sentences: Sequence[Sentence], marks: Sequence[int] | None = None) -> str:
    """The whole prompt. `marks`: which pair of marks each sentence has; in order where it is not given."""
    marks = range(len(sentences)) if marks is None else marks
    body, parts = "", 0
    for m, s in zip(marks, sentences, strict=True):
        body += f"<|s{m}|>{beaten(s.text, parts)} [{s.number}]<|e{m}|>"
        parts += len(stretches(s.text))
    return f"<|begin|><|question|> {question}<|passages|>{body}<|question|> {question}<|answer|>"
