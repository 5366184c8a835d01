"""Names of request classes, metrics and headers: written once, spelled the same everywhere."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

__all__ = [
    "HEADER_CLASS",
    "HEADER_DEADLINE",
    "HEADER_ENGINE",
    "HEADER_EXPLAIN",
    "HEADER_PARENT",
    "HEADER_PRIORITY",
    "HEADER_QUEUE_MS",
    "HEADER_REASON",
    "HEADER_REQUEST_ID",
    "HEADER_SLO_TPOT",
    "HEADER_SLO_TTFT",
    "HEADER_TENANT",
    "RequestClass",
    "ShedReason",
]


class RequestClass(StrEnum):
    """What a request is to the scheduler."""

    CHAT = "chat"
    COMPLETION = "completion"
    EMBED_INTERACTIVE = "embed_interactive"
    EMBED_BULK = "embed_bulk"
    RERANK = "rerank"
    BATCH = "batch"


class ShedReason(StrEnum):
    """Why a request was refused before an engine had it: the kind; the words are in its decision."""

    QUEUE_FULL = "queue_full"  # its class waits at its bound of count or bytes
    EXPIRED = "expired"  # it waited longer than anything may
    DEADLINE = "deadline"  # its own hard deadline passed while it waited
    FORECAST = "forecast"  # the policy predicted that it would miss its goal
    NO_ENGINE = "no_engine"  # no engine of its model may be sent work
    OTHER = "other"


HEADER_CLASS: Final = "x-sage-class"
HEADER_DEADLINE: Final = "x-sage-deadline-ms"
HEADER_TENANT: Final = "x-sage-tenant"
HEADER_SLO_TTFT: Final = "x-sage-slo-ttft-ms"
HEADER_SLO_TPOT: Final = "x-sage-slo-tpot-ms"
HEADER_PRIORITY: Final = "x-sage-priority"
HEADER_PARENT: Final = "x-sage-parent"
HEADER_EXPLAIN: Final = "x-sage-explain"
HEADER_REQUEST_ID: Final = "x-request-id"
HEADER_ENGINE: Final = "x-sage-engine"
HEADER_QUEUE_MS: Final = "x-sage-queue-ms"
HEADER_REASON: Final = "x-sage-reason"
