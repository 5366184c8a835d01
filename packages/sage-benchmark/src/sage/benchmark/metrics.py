"""What is measured, defined once: pure functions over the record of each request.

Times in a record are seconds from the start of the run. Every latency counts from the *intended* send, so a
client or a server that falls behind cannot hide its queue (no coordinated omission).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, Literal

__all__ = [
    "CONVERSATIONAL",
    "EMBEDDING",
    "INTERACTIVE",
    "Kind",
    "Limits",
    "Outcome",
    "Record",
    "attainment",
    "e2e",
    "goodput",
    "itl",
    "lag",
    "meets",
    "texts_per_s",
    "tpot",
    "ttft",
]

Kind = Literal["chat", "embed", "bulk"]
Outcome = Literal["ok", "shed", "failed", "timeout"]


@dataclass(frozen=True, slots=True)
class Record:
    """One issued request. `pieces`: when each non-empty piece of the answer came; an embedding has one.

    `embed` is an interactive embedding, `bulk` one of many `texts`. A request of a `closed` loop
    was sent when the one before it was answered, so that its intended send is its actual one.
    """

    index: int
    kind: Kind
    intended: float
    sent: float
    outcome: Outcome
    pieces: tuple[float, ...] = field(default=())
    prompt_tokens: int = 0
    completion_tokens: int = 0
    status: int = 0  # HTTP status; 0 = no answer came
    request_id: str = ""
    error: str = ""
    texts: int = 0
    closed: bool = False
    ended: float = 0.0  # when the last of its answer was here, or it was clear that none comes


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one class in seconds; None = not limited. A request attains when it meets all of them."""

    ttft: float | None = None
    tpot: float | None = None
    e2e: float | None = None


INTERACTIVE: Final = Limits(ttft=0.5, tpot=0.030)
CONVERSATIONAL: Final = Limits(ttft=2.0, tpot=0.100)
EMBEDDING: Final = Limits(e2e=0.5)


def lag(record: Record) -> float:
    """How late the client itself sent: actual - intended send."""
    return record.sent - record.intended


def ttft(record: Record) -> float:
    """Time to first token: first non-empty token - intended send. ValueError without a token."""
    return _pieces(record)[0] - record.intended


def e2e(record: Record) -> float:
    """End to end: last token (or the end of the answer) - intended send. ValueError without an answer."""
    return _pieces(record)[-1] - record.intended


def tpot(record: Record) -> float | None:
    """Time per output token after the first: (last - first) / (n - 1); None when n < 2.

    n is the engine's own count where it reports one, else the number of pieces.
    """
    pieces = _pieces(record)
    n = record.completion_tokens or len(pieces)
    return (pieces[-1] - pieces[0]) / (n - 1) if n > 1 else None


def itl(record: Record) -> list[float]:
    """Inter-token latencies: the gaps between consecutive pieces."""
    pieces = _pieces(record)
    return [later - earlier for earlier, later in pairwise(pieces)]


def meets(record: Record, limits: Limits) -> bool:
    """Whether the request was answered inside all limits. Shed, failed and timed out ones never are."""
    if record.outcome != "ok":
        return False
    checks = ((limits.ttft, ttft(record)), (limits.tpot, tpot(record)), (limits.e2e, e2e(record)))
    return all(limit is None or value is None or value <= limit for limit, value in checks)


def attainment(records: Sequence[Record], limits: Limits) -> tuple[int, int]:
    """(requests that meet all limits, requests issued); their ratio is the attainment."""
    return sum(meets(record, limits) for record in records), len(records)


def goodput(records: Sequence[Record], limits: Limits, wall: float) -> float:
    """Requests per second that meet all limits, over `wall` seconds."""
    if wall <= 0:
        raise ValueError(f"Goodput needs a positive wall time, got {wall}.")
    return attainment(records, limits)[0] / wall


def texts_per_s(records: Sequence[Record], window: float, *, begin: float = 0.0) -> float:
    """Texts embedded per second of the `window` seconds that start at `begin`.

    A call that reaches past the window counts by the part of its time that lies inside, so that calls of many
    seconds do not make steps in a short window.
    """
    if window <= 0:
        raise ValueError(f"A rate needs a positive window, got {window}.")
    done = 0.0
    for record in records:
        if record.outcome == "ok":
            end = _pieces(record)[-1]
            took = end - record.sent
            inside = max(0.0, min(end, begin + window) - max(record.sent, begin))
            done += record.texts * (inside / took if took > 0 else float(begin <= end <= begin + window))
    return done / window


def _pieces(record: Record) -> tuple[float, ...]:
    if not record.pieces:
        raise ValueError(f"Request {record.index} ({record.outcome}) has no answer to time.")
    return record.pieces
