"""Heads of attention that have a place to look at, so that a copy knows where it is."""

from __future__ import annotations

from typing import Any

import torch
from tools.nano.batches import Batch
from tools.nano.layout import BEATS, FIRST_B, FIRST_E, FIRST_S
from torch import Tensor
from torch.nn import functional

__all__ = [
    *("BEFORE", "ITSELF", "LATEST", "MARGIN", "MATCH"),
    *("hold", "latest", "led", "look_losses", "scores", "turned_layers"),
]

LATEST = (2, 0)
"""Layer and head, counted from 0: looks at the latest beat or mark of a sentence, up to the token itself."""
BEFORE = (3, 0)
"""Looks at the token before, and so tells each token the beat of that."""
MATCH = ((4, 0), (4, 1))
"""Look at what comes after the same token of the same word of the same sentence."""

ITSELF = (5, 3)
"""Looks at the token itself, and tells the beat to come from the code of the latest one."""

MARGIN = 3.0
"""What the score of the place to match is to lead by, so that nearly all of a look goes there."""


def turned_layers() -> dict[int, Tensor]:
    """What `Forward` fills."""
    return {layer: torch.empty(0) for layer, _ in (LATEST, BEFORE, *MATCH)}


def hold(model: Any) -> None:
    """Take the gradients away from where these heads look: their queries and keys stay as they are."""
    for layer, head in (LATEST, BEFORE, *MATCH, ITSELF):
        attention = model.model.layers[layer].self_attn
        rows = slice(head * attention.head_dim, (head + 1) * attention.head_dim)
        for part in (attention.q_proj.weight, attention.k_proj.weight):
            if part.grad is not None:
                part.grad[rows] = 0


def latest(ids: Tensor) -> Tensor:
    """For each place the last one up to it that has a beat or begins a sentence; -1 before the first."""
    at = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    found = ((ids >= FIRST_B) & (ids < FIRST_B + BEATS)) | ((ids >= FIRST_S) & (ids < FIRST_E))
    return torch.where(found, at, -1).cummax(1).values


def look_losses(
    turned: dict[int, Tensor], batch: Batch, scale: float
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Cross entropy of attention with the places to look at, and where most of it is right.

    The queries are those of the answer that is copied, and of what it is copied from.
    """
    known = batch.places >= 0
    beats = latest(batch.ids)
    sources = (batch.places - 1).clamp(min=0)
    both = torch.cat((batch.asks, sources), 1)
    asked = {
        "latest": (LATEST, both, beats.gather(1, both), known.repeat(1, 2)),
        "before": (BEFORE, sources, (sources - 1).clamp(min=0), known),
    }
    for n, one in enumerate(MATCH):
        asked[f"match{n}"] = (one, batch.asks, batch.places, known)
    losses: dict[str, Tensor] = {}
    right: dict[str, Tensor] = {}
    for name, ((layer, head), asks, places, real) in asked.items():
        found = scores(turned[layer], head, asks, scale)[real]
        right[name] = found.argmax(-1) == places[real]
        wanted = led(found, places[real], MARGIN if (layer, head) in MATCH else 0.0)
        losses[name] = functional.cross_entropy(wanted, places[real], reduction="sum") / max(1, len(found))
    return losses, right


def led(found: Tensor, places: Tensor, margin: float) -> Tensor:
    """The scores, those of `places` lowered by `margin`: of no loss is what leads by more."""
    return found.scatter_add(1, places[:, None], found.new_full((len(found), 1), -margin))


def scores(turned: Tensor, head: int, asks: Tensor, scale: float) -> Tensor:
    """Of each asking place with every place up to it."""
    heads = turned.shape[1] // 2
    rows = torch.arange(len(asks), device=asks.device)[:, None]
    found = (turned[:, head][rows, asks] @ turned[:, heads + head].transpose(1, 2)).float() * scale
    at = torch.arange(found.shape[-1], device=asks.device)
    return found.masked_fill(at > asks[..., None], -1e4)
