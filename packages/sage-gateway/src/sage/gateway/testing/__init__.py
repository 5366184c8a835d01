"""What tests of keys need: a ring without a store, and the conformance suites of the two stores."""

from __future__ import annotations

import secrets

from sage.common.api import SCOPES
from sage.gateway.app import Handlers
from sage.gateway.keys import KeyRing, ident_of
from sage.gateway.keystore import KeyRecord
from sage.gateway.routes import on_listener

__all__ = ["idle_handlers", "key_record", "ring_of"]


def key_record(ring: KeyRing, key: str, **fields: object) -> KeyRecord:
    """The record of a key that may do all but manage, as it was made at the epoch."""
    usual: dict[str, object] = {"scopes": frozenset(SCOPES) - {"admin"}, "created": 0.0, "name": "test"}
    ident = ident_of(key)
    return KeyRecord(id=ident, digest=ring.digest(key), **{**usual, **fields})  # type: ignore[arg-type]


def ring_of(*keys: str, admin_token: str) -> KeyRing:
    """A ring that knows these keys."""
    ring = KeyRing(pepper=secrets.token_hex(32), admin_token=admin_token)
    for key in keys:
        ring.put(key_record(ring, key), 0.0)
    return ring


def idle_handlers() -> Handlers:
    """What stands where files, batches and stored responses are served: it does nothing."""

    async def idle() -> None:
        return None

    own = ("index", "list_models", "get_model")
    return {entry.name: idle for entry in on_listener("data") if entry.name not in own}
