"""What the manager of jobs and their processes say to each other: one JSON object on a line.

Orders go to a process, words come back.
"""

from __future__ import annotations

from sage.kernel.jobs.messages.codec import LONGEST, decode_order, decode_word, encode
from sage.kernel.jobs.messages.orders import Begin, Check, Drain, Order, Pause, Source
from sage.kernel.jobs.messages.words import Beat, Checked, Failed, Finished, Paused, Running, Saved, Word

__all__ = [
    "LONGEST",
    "Beat",
    "Begin",
    "Check",
    "Checked",
    "Drain",
    "Failed",
    "Finished",
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
