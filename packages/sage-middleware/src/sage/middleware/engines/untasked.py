"""Native steps for calls that no task awaits, from their sending to their end.

Each is the native form of a method here or in the control plane, does the same in the case that nearly all
chats and single texts are, and says so; whatever is not plain it leaves to that method, before it has changed
anything. See `cpp/bind_calls.hpp`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from sage.middleware.native import uses_native

__all__ = ["Steps", "native_steps"]


def _none(*_: Any) -> None:
    """Nothing is plain."""


class Steps(NamedTuple):
    """The first argument of each is the object whose method it is; see `_native`."""

    begin_call: Callable[..., Any] = _none  # `Desk.begin`
    settle_call: Callable[..., Any] = _none  # `Upstreams._told`, by the control plane
    start_call: Callable[..., Any] = _none  # `HttpPool.start`
    take_answer: Callable[..., Any] = _none  # `Connection.data_received`


@cache
def native_steps() -> Steps:
    """Those of the native module; with `SAGE_NATIVE=0` steps that do nothing."""
    if not uses_native():
        return Steps()
    from sage.middleware import _native

    return Steps(_native.begin_call, _native.settle_call, _native.start_call, _native.take_answer)
