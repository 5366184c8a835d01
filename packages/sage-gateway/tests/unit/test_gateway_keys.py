"""Keys: their form, and who they open the door to."""

from __future__ import annotations

import re

from sage.gateway.keys import KeyRing, new_admin_token, new_default_key, presented


def test_their_form() -> None:
    assert re.fullmatch(r"sk-sage-[0-9a-f]{8}\.[\w-]{43}", new_default_key())
    assert re.fullmatch(r"sk-sage-admin\.[\w-]{43}", new_admin_token())
    assert new_default_key() != new_default_key()


def test_who_holds_them() -> None:
    keys, token = (new_default_key(), new_default_key()), new_admin_token()
    ring = KeyRing(keys=keys, admin_token=token)
    for key in keys:
        principal = ring.verify(key.encode())
        assert principal is not None
        assert (principal.id, principal.admin) == (key.removeprefix("sk-sage-").partition(".")[0], False)
    admin = ring.verify(token.encode())
    assert admin is not None
    assert admin.admin


def test_a_secret_under_another_id_opens_nothing() -> None:
    key, token = new_default_key(), new_admin_token()
    ring = KeyRing(keys=(key,), admin_token=token)
    mixed = f"sk-sage-admin.{key.partition('.')[2]}"
    assert ring.verify(mixed.encode()) is None
    assert ring.verify(b"") is None


def test_the_ring_holds_no_key_in_clear() -> None:
    key, token = new_default_key(), new_admin_token()
    ring = KeyRing(keys=(key,), admin_token=token)
    held = repr(vars(ring))
    assert key.partition(".")[2] not in held
    assert token.partition(".")[2] not in held


def test_which_header_counts() -> None:
    assert presented({b"authorization": b"Bearer abc"}) == b"abc"
    assert presented({b"x-api-key": b" abc "}) == b"abc"
    assert presented({b"authorization": b"Digest abc", b"x-api-key": b"abc"}) == b""
    assert presented({}) == b""
