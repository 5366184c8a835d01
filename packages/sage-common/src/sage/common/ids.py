"""Identifiers: short, sortable by nothing, unique without coordination."""

from __future__ import annotations

import os
import secrets
from typing import Final

__all__ = ["new_id", "new_secret"]

_BYTES: Final = 8
_AT_ONCE: Final = 256  # asking the kernel for each costs more than all the rest of an id

_ready: list[str] = []
os.register_at_fork(after_in_child=_ready.clear)  # a child must not give the same ones


def new_id(prefix: str) -> str:
    """`<prefix>-<16 hex digits>`, as in `req-5f0c…`."""
    while True:
        try:
            return f"{prefix}-{_ready.pop()}"
        except IndexError:
            _ready.extend(secrets.token_bytes(_BYTES * _AT_ONCE).hex(" ", _BYTES).split())


def new_secret(prefix: str, ident: str) -> str:
    """A key of the form `<prefix>-<ident>.<32 random bytes, URL-safe>`."""
    return f"{prefix}-{ident}.{secrets.token_urlsafe(32)}"
