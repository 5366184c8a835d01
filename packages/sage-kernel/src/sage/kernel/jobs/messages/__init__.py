"""What the manager of jobs and their processes say to each other: one JSON object on a line.

Orders go to a process, words come back.
"""

from __future__ import annotations

from sage.kernel.jobs.messages.codec import LONGEST, decode_order, decode_word, encode
from sage.kernel.jobs.messages.orders import Begin, Check, Decide, Drain, Gates, Order, Pause, Source
from sage.kernel.jobs.messages.words import (
    Answer,
    Beat,
    Checked,
    Failed,
    Finished,
    Paused,
    Running,
    Saved,
    Word,
)

__all__ = [
    "LONGEST",
    "Answer",
    "Beat",
    "Begin",
    "Check",
    "Checked",
    "Decide",
    "Drain",
    "Failed",
    "Finished",
    "Gates",
    "Order",
    "Pause",
    "Paused",
    "Running",
    "Saved",
    "Source",
    "Word",
    "decode_order",
    "decode_word",
    "encode",
]
