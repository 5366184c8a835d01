"""Names of request classes, metrics and headers: written once, spelled the same everywhere."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

__all__ = [
    "HEADER_CLASS",
    "HEADER_DEADLINE",
    "HEADER_ENGINE",
    "HEADER_QUEUE_MS",
    "HEADER_REASON",
    "HEADER_REQUEST_ID",
    "HEADER_TENANT",
    "RequestClass",
]


class RequestClass(StrEnum):
    """What a request is to the scheduler."""

    CHAT = "chat"
    COMPLETION = "completion"
    EMBED_INTERACTIVE = "embed_interactive"
    EMBED_BULK = "embed_bulk"


HEADER_CLASS: Final = "x-sage-class"
HEADER_DEADLINE: Final = "x-sage-deadline-ms"
HEADER_TENANT: Final = "x-sage-tenant"
HEADER_REQUEST_ID: Final = "x-request-id"
HEADER_ENGINE: Final = "x-sage-engine"
HEADER_QUEUE_MS: Final = "x-sage-queue-ms"
HEADER_REASON: Final = "x-sage-reason"
