"""The plain case in one native step: a generation that goes straight to an engine, and the end of it.

Nearly all requests are plain: the policy is `hybrid`, nothing waits in the lane, the engines are trusted and
the best of them has it in time. `cpp/bind_direct.hpp` takes their events in as the core's own steps would,
decision by decision and bit by bit, and leaves everything else to those before it has changed anything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sage.middleware.native import uses_native

__all__ = ["direct_steps"]


def direct_steps() -> Callable[[Any, Any, list[Any]], bool] | None:
    """Takes (core, event, actions) and says whether that was all; None without native operators."""
    if not uses_native():
        return None
    from sage.middleware import _native

    return _native.direct
