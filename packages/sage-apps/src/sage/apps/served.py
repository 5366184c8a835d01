"""What was served: the control plane's decision records as one row per class and engine. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from sage.common.api import Decision

__all__ = ["HEADINGS", "Row", "cells", "summarise"]

HEADINGS = (
    "class",
    "requests",
    "engine",
    "why",
    "queue ms",
    "TTFT ms",
    "latency ms",
    "tokens in",
    "tokens out",
)


@dataclass(frozen=True, slots=True)
class Row:
    """Requests of one class at one engine. Times are medians in seconds, tokens are sums."""

    request_class: str
    requests: int
    done: int
    engine: str
    reason: str
    queue_s: float | None
    ttft_s: float | None
    latency_s: float | None
    prompt_tokens: int
    completion_tokens: int


def summarise(decisions: Iterable[Decision]) -> list[Row]:
    """One row per class and engine, by class; the reason is the one given most often."""
    groups: dict[tuple[str, str], list[Decision]] = {}
    for decision in decisions:
        groups.setdefault((decision.request_class, decision.engine or "none"), []).append(decision)
    return [_row(key, group) for key, group in sorted(groups.items())]


def cells(row: Row) -> Sequence[str]:
    """A row as text, under `HEADINGS`."""
    served = str(row.requests) if row.done == row.requests else f"{row.done} of {row.requests}"
    times = [_ms(row.queue_s), _ms(row.ttft_s), _ms(row.latency_s)]
    tokens = [str(row.prompt_tokens), str(row.completion_tokens)]
    return [row.request_class, served, row.engine, row.reason, *times, *tokens]


def _row(key: tuple[str, str], group: Sequence[Decision]) -> Row:
    return Row(
        request_class=key[0],
        requests=len(group),
        done=sum(d.outcome == "done" for d in group),
        engine=key[1],
        reason=Counter(d.reason for d in group).most_common(1)[0][0],
        queue_s=_median(d.queue_s for d in group),
        ttft_s=_median(d.ttft_s for d in group),
        latency_s=_median(d.latency_s for d in group),
        prompt_tokens=sum(d.prompt_tokens or 0 for d in group),
        completion_tokens=sum(d.completion_tokens or 0 for d in group),
    )


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.1f}"
