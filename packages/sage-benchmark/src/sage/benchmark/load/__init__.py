"""Load: pure schedules, a lean client that stamps, open and closed loops beside each other."""

from __future__ import annotations

from sage.benchmark.load.drive import ask, drive
from sage.benchmark.load.plan import (
    Arrival,
    Plan,
    Request,
    Shot,
    Storm,
    Target,
    chat_request,
    embed_request,
    models,
)
from sage.benchmark.load.process import Report, measure
from sage.benchmark.load.schedule import gamma, mixed, on_off, poisson, replay, shots

__all__ = [
    "Arrival",
    "Plan",
    "Report",
    "Request",
    "Shot",
    "Storm",
    "Target",
    "ask",
    "chat_request",
    "drive",
    "embed_request",
    "gamma",
    "measure",
    "mixed",
    "models",
    "on_off",
    "poisson",
    "replay",
    "shots",
]
