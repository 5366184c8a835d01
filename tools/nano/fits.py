"""What projections of heads are fitted with: gradients, least squares, and linear discriminants."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import torch
from tools.nano.looks import led, scores
from torch import Tensor
from torch.nn import functional

__all__ = ["HEAD", "Aim", "classes", "constant", "correlated", "fit", "ridge", "telling", "turned", "whiten"]

HEAD = 64
"""Dimensions of a head."""
_HARD = 2.0  # weight of telling apart what follows the same token
_STAYS = 2.0  # weight of a place that stays, beside one of a place that asks


@dataclass(frozen=True, slots=True)
class Aim:
    """States, places that ask, and where they are to look (-1: nowhere).

    `ids`: the tokens, where places that follow the same token as the asking one are to be told apart first of
    all. `stays`: places that are to look where they do at the start, whatever that is.
    """

    states: Tensor
    asks: Tensor
    places: Tensor
    ids: Tensor | None = None
    stays: Tensor | None = None


def fit(
    query: Tensor, key: Tensor, aims: list[Aim], turn: Tensor, steps: int, rate: float, margin: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Projections that make one head look where it is to, which is to lead by `margin`.

    `turn`: how fast each pair of it turns.
    """
    start = (query, key)
    query, key = query.clone().requires_grad_(), key.clone().requires_grad_()
    optimizer = torch.optim.AdamW([query, key], lr=rate, betas=(0.9, 0.99), weight_decay=0.1)
    order = Random(1)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, 1.5 * (1 - step / steps))
        aim = order.choice(aims)
        real = aim.places >= 0
        x = aim.states.float()
        both = turned(x, query, key, turn)
        found = scores(both, 0, aim.asks, HEAD**-0.5)[real]
        found = led(found, aim.places[real], margin)
        loss = functional.cross_entropy(found, aim.places[real], reduction="sum")
        if aim.ids is not None:
            before = aim.ids.roll(1, 1)[:, None]
            rivals = (before == aim.ids.gather(1, aim.asks)[..., None])[real]
            hard = functional.cross_entropy(
                found.masked_fill(~rivals, -1e4), aim.places[real], reduction="sum"
            )
            loss = loss + _HARD * hard
        if aim.stays is not None:
            was = scores(turned(x, *start, turn), 0, aim.stays, HEAD**-0.5).softmax(-1)
            now = scores(both, 0, aim.stays, HEAD**-0.5).log_softmax(-1)
            loss = loss - _STAYS * (was * now).sum()
        optimizer.zero_grad()
        (loss / max(1, len(found))).backward()
        optimizer.step()
    return query.detach(), key.detach()


def turned(x: Tensor, query: Tensor, key: Tensor, turn: Tensor) -> Tensor:
    """The queries and the keys of states, turned by their places as RoPE does it."""
    both = torch.stack((x @ query.T, x @ key.T), 1)
    angles = torch.outer(torch.arange(x.shape[1]).float(), turn)
    left, right = both.chunk(2, -1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((left * cos - right * sin, right * cos + left * sin), -1)


def ridge(x: Tensor, y: Tensor) -> Tensor:
    """The columns w of the least squares of x w = y."""
    some = 1e-3 * len(x) * x.square().mean() * torch.eye(x.shape[1])
    return torch.linalg.solve(x.T @ x + some, x.T @ y)


def whiten(square: Tensor, some: float) -> Tensor:
    """What makes directions with these squares vary alike; `some` of the mean square is added."""
    values, vectors = torch.linalg.eigh(square)
    return vectors * (values + some * values.mean()).rsqrt() @ vectors.T


def telling(x: Tensor, kinds: Tensor, top: int) -> Tensor:
    """Rows that tell kinds apart best against the spread within a kind (Fisher's discriminant)."""
    counts = torch.bincount(kinds).clamp(min=1)[:, None]
    means = torch.zeros(len(counts), x.shape[1]).index_add_(0, kinds, x) / counts
    within = x - means[kinds]
    white = whiten(within.T @ within / len(x), 1e-2)
    apart = (means - x.mean(0)) * (counts / len(x)).sqrt() @ white
    vectors = torch.linalg.eigh(apart.T @ apart)[1][:, -top:]
    return vectors.T @ white


def correlated(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Rows for x and for y, whose products with pairs of them agree most first (canonical correlation)."""
    x, y = x - x.mean(0), y - y.mean(0)
    white_x, white_y = whiten(x.T @ x / len(x), 3e-3), whiten(y.T @ y / len(y), 3e-3)
    left, _, right = torch.linalg.svd(white_x @ (x.T @ y / len(x)) @ white_y)
    return (white_x @ left).T, (white_y @ right.T).T


def constant(x: Tensor) -> Tensor:
    """What has a product of about one with every state."""
    return ridge(x, torch.ones(len(x)))


def classes(x: Tensor, kinds: Tensor, table: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Values and output of a head whose products with the rows of `table` tell of which kind x is."""
    start = ridge(x, functional.one_hot(kinds, len(table)).float() - 1 / len(table))
    left, size, right = torch.linalg.svd(start, full_matrices=False)
    size = 6 * size[:HEAD].sqrt()
    value = (left[:, :HEAD] * size).T.clone().requires_grad_()
    back = torch.linalg.pinv(table)
    out = (back @ (right[:HEAD].T * size)).requires_grad_()
    optimizer = torch.optim.Adam([value, out], lr=0.003)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.003 * min(1.0, 1.5 * (1 - step / steps))
        some = torch.randint(len(x), (1024,))
        found = x[some] @ value.T @ (table @ out).T
        loss = functional.cross_entropy(found, kinds[some]) + 5e-4 * found.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return value.detach(), back @ table @ out.detach()
