"""Keys: their form, who holds them, and what those may. Compared in constant time, known by digests alone."""

from __future__ import annotations

import hmac
import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import msgspec

from sage.common.api import SCOPES
from sage.common.errors import ForbiddenError, ModelNotFoundError, SageError, UnauthorizedError
from sage.common.ids import new_secret
from sage.gateway.keystore import KeyRecord

__all__ = [
    "KEY_PREFIX",
    "KeyRing",
    "Principal",
    "ident_of",
    "new_admin_token",
    "new_default_key",
    "new_key",
    "new_pepper",
    "presented",
]

KEY_PREFIX: Final = "sk-sage"
ADMIN_ID: Final = "admin"
ALL: Final = frozenset(SCOPES)
_MARK: Final = f"{KEY_PREFIX}-".encode()


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks, and what for. No `models` = all of them.

    `tenant`: the only one that it acts for; empty = it is its own, and may act for configured ones.
    `lowered`: it may use the low classes only.
    """

    id: str
    scopes: frozenset[str] = ALL
    models: frozenset[str] = frozenset()
    tenant: str = ""
    lowered: bool = False

    @property
    def admin(self) -> bool:
        """Whether it may manage the stack."""
        return "admin" in self.scopes

    def check_scope(self, scope: str) -> None:
        """Raise ForbiddenError, which says what it may, for a scope that it lacks. '' is everyone's."""
        if scope and scope not in self.scopes:
            raise ForbiddenError(
                f"This key may not be used for {scope}; it is for: {', '.join(sorted(self.scopes))}.",
                hint="Use a key with this scope; `sage key list` shows them.",
            )

    def may_use(self, model: str) -> bool:
        """Whether it may ask for this model."""
        return not self.models or model in self.models

    def check_model(self, model: str) -> None:
        """Raise ForbiddenError, which says which it may, for a model that it may not ask for."""
        if self.models and model not in self.models:
            raise ForbiddenError(
                f"This key may not use the model {model[:128]!r};"
                f" it may use: {', '.join(sorted(self.models))}.",
                param="model",
            )

    def told(self, error: SageError) -> SageError:
        """`error` as it may read it: the names of models that are not its own are kept from it."""
        if not self.models or not isinstance(error, ModelNotFoundError):
            return error
        return ModelNotFoundError(
            f"There is no such model now; this key may use: {', '.join(sorted(self.models))}.", param="model"
        )


def new_default_key() -> str:
    """A fresh key `sk-sage-<id>.<secret>`."""
    return new_key(secrets.token_hex(4))


def new_key(ident: str) -> str:
    """A fresh key with this id: 32 random bytes."""
    return new_secret(KEY_PREFIX, ident)


def new_admin_token() -> str:
    """A fresh admin token `sk-sage-admin.<secret>`."""
    return new_key(ADMIN_ID)


def new_pepper() -> str:
    """32 fresh random bytes, in hexadecimal digits: what the digests of one state directory are made with."""
    return secrets.token_hex(32)


def ident_of(key: str) -> str:
    """The id in a key; what is no key has some id too, which nobody has."""
    return key.partition(".")[0].removeprefix(f"{KEY_PREFIX}-")


def presented(headers: Mapping[bytes, bytes]) -> bytes:
    """The key that a request carries in `Authorization: Bearer` or `x-api-key`; empty if none."""
    value = headers.get(b"authorization")
    if value is not None:
        scheme, _, token = value.partition(b" ")
        return token.strip() if scheme.lower() == b"bearer" else b""
    return headers.get(b"x-api-key", b"").strip()


@dataclass(frozen=True, slots=True)
class _Entry:
    """What a key is compared with, and what its holder is told. `due`: when time changes that."""

    digest: bytes
    previous: bytes
    principal: Principal | None
    why: str = ""
    due: float = math.inf


class KeyRing:
    """Knows keys by their id; holds digests only, so that a dump of memory structures shows no key.

    `version` changes with every change of what a key may: what was decided at another one is void.
    """

    def __init__(self, *, pepper: str, admin_token: str) -> None:
        self._pepper = pepper.encode()
        self._nobody = secrets.token_bytes(32)  # what an unknown id is compared with
        self._nobodys = _Entry(self._nobody, self._nobody, None, "is not known here")
        self._entries: dict[bytes, _Entry] = {}
        self._records: dict[str, KeyRecord] = {}
        self._scopes: dict[frozenset[str], frozenset[str]] = {}  # each set once, not once for each key
        self._due = math.inf
        self.version = 0
        admin = _Entry(self.digest(admin_token), self._nobody, Principal(ADMIN_ID))
        self._entries[ident_of(admin_token).encode()] = admin

    def digest(self, key: str) -> bytes:
        """What is kept of a key."""
        return self._digest(key.encode())

    def _digest(self, key: bytes) -> bytes:
        return hmac.digest(self._pepper, key, "sha256")

    @property
    def records(self) -> dict[str, KeyRecord]:
        """All keys by id, revoked ones too, in the order in which they came. Read it, never change it."""
        return self._records

    def put(self, record: KeyRecord, wall: float) -> None:
        """Know a key, or know it better. `wall`: Unix seconds."""
        scopes = self._scopes.setdefault(record.scopes, record.scopes)
        self._records[record.id] = record = msgspec.structs.replace(record, scopes=scopes)
        entry = self._entries[record.id.encode()] = self._entry(record, wall)
        self._due = min(self._due, entry.due)
        self.version += 1

    def tick(self, wall: float) -> None:
        """Let time do what is due: end keys and former secrets."""
        if wall < self._due:
            return
        self._due = math.inf
        for record in self._records.values():
            before = self._entries[record.id.encode()]
            if before.due <= wall:
                self.put(record, wall)
            else:
                self._due = min(self._due, before.due)

    def verify(self, key: bytes) -> Principal:
        """Who holds `key`. Raises UnauthorizedError, which says why only to who has a secret that was good.

        An unknown id costs the same work as a wrong secret.
        """
        entry = self._entries.get(key.partition(b".")[0].removeprefix(_MARK), self._nobodys)
        digest = self._digest(key)
        good = hmac.compare_digest(digest, entry.digest) | hmac.compare_digest(digest, entry.previous)
        if good and entry.principal is not None:
            return entry.principal
        raise UnauthorizedError(
            f"This API key {entry.why if good else self._nobodys.why}.",
            hint="`sage up` prints the one of this stack; `sage key create` makes another.",
        )

    def holder(self, ident: str) -> Principal:
        """Who holds the key with this id now. Raises UnauthorizedError, which says why it opens nothing."""
        entry = self._entries.get(ident.encode(), self._nobodys)
        if entry.principal is None:
            raise UnauthorizedError(f"The API key {ident} {entry.why}.")
        return entry.principal

    def _entry(self, record: KeyRecord, wall: float) -> _Entry:
        previous, due = self._nobody, math.inf
        if record.previous and wall < record.previous_until:
            previous, due = record.previous, record.previous_until
        if record.revoked is not None:
            return _Entry(record.digest, previous, None, f"was revoked at {_utc(record.revoked)}")
        if record.expires is not None and record.expires <= wall:
            return _Entry(record.digest, previous, None, f"has expired at {_utc(record.expires)}", due)
        principal = Principal(record.id, record.scopes, record.models, record.tenant, record.lowered)
        return _Entry(record.digest, previous, principal, due=min(due, record.expires or math.inf))


def _utc(wall: float) -> str:
    return datetime.fromtimestamp(wall, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
