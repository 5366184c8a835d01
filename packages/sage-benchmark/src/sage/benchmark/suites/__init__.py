"""Suites: one module each, found by name and imported only when run."""

from __future__ import annotations

from typing import Final

__all__ = ["SUITES"]

SUITES: Final[dict[str, str]] = {
    "smoke": "Chat streams and embeddings together, open loop, at a fixed rate: TTFT, TPOT, latency, goodput."
}
