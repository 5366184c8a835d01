"""Batches: items of similar lengths as tensors."""

from __future__ import annotations

from typing import Self

import torch
from tools.nano.items import Item, Pool, Stage
from tools.nano.layout import END, PAD

__all__ = ["Batch", "batches", "cut"]

_ROUND = 32
_LONGEST = 1792  # tokens; attention grows with the square, and `docs-qa` asks 1,690 of our docs at most
_AHEAD = 4  # batches made at a time, so that lengths in a batch are similar


class Batch:
    """Items as rows of one length. `gold` of an item that nothing answers is one past the last end.

    `asks`: where the next token is to be copied, `places`: from where; -1 where there is nothing more.
    `failed`: the items that a step of training has not answered as they were to be, for the first time.
    """

    def __init__(self, items: list[Item], length: int) -> None:
        rows, most = len(items), max(1, max(len(i.ends) for i in items))
        self._items = items
        self.failed: list[Item] = []
        self.ids = torch.full((rows, length), PAD)
        self.flags = torch.full((rows, length), -1)
        self.owner = torch.full((rows, length), -1)
        self.copy = torch.zeros(
            (rows, length), dtype=torch.bool
        )  # where the next token is one of the answer's
        self.ends = torch.zeros((rows, most), dtype=torch.long)
        self.has_end = torch.zeros((rows, most), dtype=torch.bool)
        self.shares = torch.zeros((rows, most))
        self.gold = torch.tensor([i.gold if i.gold >= 0 else most for i in items])
        self.start = torch.tensor([i.start for i in items])
        self.chance = sum(1 / max(1, len(i.ends)) for i in items) / rows
        copied = [_copied(i) for i in items]
        longest = max(1, max(len(asks) for asks, _ in copied))
        self.asks = torch.zeros((rows, longest), dtype=torch.long)
        self.places = torch.full((rows, longest), -1)
        for row, i in enumerate(items):
            size = len(i.ids)
            self.ids[row, :size] = torch.tensor(i.ids)
            self.flags[row, :size] = torch.tensor(i.flags)
            self.owner[row, :size] = torch.tensor(i.owner)
            for at in (i.start, *i.copies):
                self.copy[row, at : i.ids.index(END, at)] = True
            self.ends[row, : len(i.ends)] = torch.tensor(i.ends, dtype=torch.long)
            self.has_end[row, : len(i.ends)] = True
            self.shares[row, : len(i.ends)] = torch.tensor(i.shares)
            asks, places = copied[row]
            self.asks[row, : len(asks)] = torch.tensor(asks)
            self.places[row, : len(asks)] = torch.tensor(places)

    def note(self, rows: list[int]) -> None:
        """Remember which rows were not answered as they were to be."""
        for item in (self._items[row] for row in rows):
            if not item.again:
                item.again = True
                self.failed.append(item)

    def to(self, device: torch.device) -> Self:
        """The same batch, its tensors moved."""
        for name, value in vars(self).items():
            if isinstance(value, torch.Tensor):
                setattr(self, name, value.to(device))
        return self


def _copied(item: Item) -> tuple[list[int], list[int]]:
    """The tokens of what is copied that others follow, and where those stand in the prompt."""
    asks: list[int] = []
    places: list[int] = []
    for at in ([] if item.gold < 0 else [item.start]) + item.copies:
        size = item.ids.index(END, at) - 1 - at
        source = item.ids.index(item.ids[at]) + 1
        asks += range(at, at + size)
        places += range(source, source + size)
    return asks, places


def batches(pool: Pool, stage: Stage, tokens: int) -> list[Batch]:
    """Some batches of about that many tokens; of few shapes, as each new one costs time at first."""
    made: list[Item] = []
    while sum(len(i.ids) for i in made) < tokens * _AHEAD:
        made += [item for _ in range(8) if len((item := pool.item(stage)).ids) <= _LONGEST]
    return cut(made, tokens)


def cut(made: list[Item], tokens: int) -> list[Batch]:
    """Batches of about that many tokens, taken out of `made`; what fills none stays there."""
    made.sort(key=lambda i: -len(i.ids))
    found: list[Batch] = []
    while made:
        length = -(-len(made[0].ids) // _ROUND) * _ROUND
        rows = max(1, tokens // length)
        if len(made) < rows and found:
            break
        found.append(Batch(made[:rows], length))
        del made[:rows]
    return found
