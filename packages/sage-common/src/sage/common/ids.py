"""Identifiers: short, sortable by nothing, unique without coordination."""

from __future__ import annotations

import secrets

__all__ = ["new_id", "new_secret"]


def new_id(prefix: str) -> str:
    """`<prefix>-<16 hex digits>`, as in `req-5f0c…`."""
    return f"{prefix}-{secrets.token_hex(8)}"


def new_secret(prefix: str, ident: str) -> str:
    """A key of the form `<prefix>-<ident>.<32 random bytes, URL-safe>`."""
    return f"{prefix}-{ident}.{secrets.token_urlsafe(32)}"
