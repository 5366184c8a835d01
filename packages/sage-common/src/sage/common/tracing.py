"""Which trace the work at hand belongs to, for those who send a part of it elsewhere."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Final

__all__ = ["TRACEPARENT"]

TRACEPARENT: Final[ContextVar[str]] = ContextVar("sage_traceparent", default="")
"""The `traceparent` (https://www.w3.org/TR/trace-context/) of what goes on here; empty = none."""
