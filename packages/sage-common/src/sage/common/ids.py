"""Identifiers: short, sortable by nothing, unique without coordination."""

from __future__ import annotations

import os
import secrets
from typing import Final

__all__ = ["new_id", "new_secret"]

_AT_A_TIME: Final = 256
_DIGITS: Final = 16

_fresh: list[str] = []  # drawn already: one at a time would take the kernel's part of them all each time
os.register_at_fork(after_in_child=_fresh.clear)


def new_id(prefix: str) -> str:
    """`<prefix>-<16 hex digits>`, as in `req-5f0c…`."""
    while True:
        try:
            return f"{prefix}-{_fresh.pop()}"
        except IndexError:
            drawn = os.urandom(_AT_A_TIME * _DIGITS // 2).hex()
            _fresh.extend(drawn[at : at + _DIGITS] for at in range(0, len(drawn), _DIGITS))


def new_secret(prefix: str, ident: str) -> str:
    """A key of the form `<prefix>-<ident>.<32 random bytes, URL-safe>`."""
    return f"{prefix}-{ident}.{secrets.token_urlsafe(32)}"
