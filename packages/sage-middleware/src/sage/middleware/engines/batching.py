"""Which texts, or pairs of texts, to compute together: pure decisions of the embedding server."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

__all__ = ["Text", "Work", "cut", "patience", "plan", "take"]

Text = str | tuple[str, str]  # what a model reads at once: a text to embed, or two to compare

MAX_TEXTS = 64
MAX_CHARS = 8192  # of one round: what a text that comes now has to wait for
PIECE = 2048  # characters of one batch without padding: more outgrows a core's cache
PADDING = 1024  # characters of padding that cost about as much as one more batch
_GATHER_S = 0.003
_GATHER = 0.05  # of a round


@dataclass(eq=False)
class Work:
    """The texts of one request that are not taken yet, the longest first; `cancelled` drops the rest.

    `threads`: how many it may be computed with.
    """

    texts: Sequence[Text]
    done: Callable[[list[object], int], object]  # vectors or scores in input order, tokens
    failed: Callable[[Exception], object]
    threads: int = 1
    cancelled: bool = False
    tokens: int = 0
    order: deque[int] = field(init=False)
    vectors: list[object] = field(init=False)
    missing: int = field(init=False)

    def __post_init__(self) -> None:
        self.order = deque(sorted(range(len(self.texts)), key=lambda i: -length(self.texts[i])))
        self.vectors = [None] * len(self.texts)
        self.missing = len(self.texts)


Item = tuple[Work, int]


def length(text: Text) -> int:
    """Characters that the model reads."""
    return len(text) if isinstance(text, str) else len(text[0]) + len(text[1])


def take(queue: deque[Work], texts: int = MAX_TEXTS, chars: int = MAX_CHARS) -> list[Item]:
    """The next texts, one from each request in turn, so that a short request rides the next batch.

    At most `texts`, and no more once they have `chars` characters together. Requests that have nothing left,
    or that were cancelled, leave the queue.
    """
    items: list[Item] = []
    while queue and len(items) < texts and chars > 0:
        work = queue.popleft()
        if work.cancelled or not work.order:
            continue
        items.append((work, work.order.popleft()))
        chars -= length(work.texts[items[-1][1]])
        queue.append(work)
    for work in [work for work in queue if not work.order or work.cancelled]:
        queue.remove(work)
    return items


def patience(waiting: int, requests: int, seconds: float) -> float:
    """How long the `waiting` requests may be held back, so that those that were just answered can join them.

    The last round was of so many `requests` and took so many `seconds`: its clients ask again at once. What
    comes from as many clients as it did is held back no longer, however few texts it has.
    """
    return 0.0 if waiting >= requests else min(_GATHER_S, _GATHER * seconds)


def plan(items: Iterable[Item], padding: int = PADDING) -> list[list[Item]]:
    """Cut `items` into batches of similar length, the shortest first.

    A batch is padded to its longest text; a new one begins where the padding saved outweighs its fixed cost.
    """
    rest = sorted(items, key=lambda item: -length(item[0].texts[item[1]]))
    lengths = [length(work.texts[index]) for work, index in rest]
    batches: list[list[Item]] = []
    start = 0
    tail = sum(lengths)  # characters of what follows
    for at, size in enumerate(lengths):
        saved = (lengths[start] - size) * (len(lengths) - at)
        if at > start and saved > padding and tail:
            batches.append(rest[start:at])
            start = at
        tail -= size
    if rest[start:]:
        batches.append(rest[start:])
    return batches[::-1]


def cut(items: Iterable[Item], chars: int = PIECE) -> list[list[Item]]:
    """Cut `items`, for a model that does not pad, into batches of about `chars` characters, equally large.

    The shortest texts come first: none waits for longer ones than it must.
    """
    rest = sorted(items, key=lambda item: length(item[0].texts[item[1]]))
    lengths = [length(work.texts[index]) for work, index in rest]
    whole = sum(lengths)
    count = max(1, round(whole / chars))
    batches: list[list[Item]] = [[] for _ in range(count)]
    passed = 0
    for item, size in zip(rest, lengths, strict=True):
        batches[min(count - 1, (passed + size // 2) * count // max(1, whole))].append(item)
        passed += size
    return [batch for batch in batches if batch]
