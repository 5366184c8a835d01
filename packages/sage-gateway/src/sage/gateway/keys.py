"""Keys: made at first start, kept 0600 on disk, compared in constant time."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from sage.common.ids import new_secret

__all__ = ["KEY_PREFIX", "KeyRing", "Principal", "new_admin_token", "new_default_key", "presented"]

KEY_PREFIX: Final = "sk-sage"
ADMIN_ID: Final = "admin"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks. An admin may call everything; a key may call the data plane."""

    id: str
    admin: bool = False


def new_default_key() -> str:
    """A fresh key `sk-sage-<id>.<secret>`."""
    return new_secret(KEY_PREFIX, secrets.token_hex(4))


def new_admin_token() -> str:
    """A fresh admin token `sk-sage-admin.<secret>`."""
    return new_secret(KEY_PREFIX, ADMIN_ID)


def presented(headers: Mapping[bytes, bytes]) -> bytes:
    """The key that a request carries in `Authorization: Bearer` or `x-api-key`; empty if none."""
    value = headers.get(b"authorization")
    if value is not None:
        scheme, _, token = value.partition(b" ")
        return token.strip() if scheme.lower() == b"bearer" else b""
    return headers.get(b"x-api-key", b"").strip()


class KeyRing:
    """Knows keys by their id; holds digests only, so that a dump of memory structures shows no key."""

    def __init__(self, *, keys: tuple[str, ...], admin_token: str) -> None:
        self._pepper = secrets.token_bytes(32)
        self._nobody = secrets.token_bytes(32)  # what an unknown id is compared with
        self._known: dict[bytes, tuple[bytes, Principal]] = {}
        for key in keys:
            ident = self._ident(key.encode())
            self._known[ident] = (self._digest(key.encode()), Principal(ident.decode()))
        token = admin_token.encode()
        self._known[self._ident(token)] = (self._digest(token), Principal(ADMIN_ID, admin=True))

    @staticmethod
    def _ident(key: bytes) -> bytes:
        return key.partition(b".")[0].removeprefix(KEY_PREFIX.encode() + b"-")

    def _digest(self, key: bytes) -> bytes:
        return hmac.digest(self._pepper, key, "sha256")

    def verify(self, key: bytes) -> Principal | None:
        """Who holds `key`, or None. An unknown id costs the same work as a wrong secret."""
        digest, principal = self._known.get(self._ident(key), (self._nobody, None))
        return principal if hmac.compare_digest(self._digest(key), digest) else None
