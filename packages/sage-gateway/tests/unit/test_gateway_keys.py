"""Keys: their form, and who they open the door to."""

from __future__ import annotations

import contextlib
import gc
import hmac
import re
import tracemalloc
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage.common.api import DATA_SCOPES
from sage.common.errors import BadRequestError, ForbiddenError, UnauthorizedError
from sage.gateway.edge import Edge, fold_headers
from sage.gateway.keys import (
    KeyRing,
    Principal,
    new_admin_token,
    new_default_key,
    new_key,
    new_pepper,
    presented,
)
from sage.gateway.keystore import KeyRecord
from sage.gateway.testing import key_record, ring_of
from sage.middleware.engines.port import Route

KEY, OTHER, TOKEN = new_default_key(), new_default_key(), new_admin_token()
PEPPER = new_pepper()


def ring(**fields: Any) -> KeyRing:
    """A ring with one key that has these fields, put in at 100 s."""
    made = KeyRing(pepper=PEPPER, admin_token=TOKEN)
    made.put(key_record(made, KEY, **fields), 100.0)
    return made


def refused(ring: KeyRing, key: str) -> str:
    with pytest.raises(UnauthorizedError) as caught:
        ring.verify(key.encode())
    assert key not in str(caught.value)
    return caught.value.message


def test_their_form() -> None:
    assert re.fullmatch(r"sk-sage-[0-9a-f]{8}\.[\w-]{43}", new_default_key())
    assert re.fullmatch(r"sk-sage-admin\.[\w-]{43}", new_admin_token())
    assert re.fullmatch(r"[0-9a-f]{64}", new_pepper())
    assert new_default_key() != new_default_key()


def test_who_holds_them() -> None:
    both = ring_of(KEY, OTHER, admin_token=TOKEN)
    for key in (KEY, OTHER):
        principal = both.verify(key.encode())
        assert (principal.id, principal.admin) == (key.removeprefix("sk-sage-").partition(".")[0], False)
    assert both.verify(TOKEN.encode()).admin


def test_a_secret_under_another_id_opens_nothing() -> None:
    mixed = f"sk-sage-admin.{KEY.partition('.')[2]}"
    assert refused(ring(), mixed) == "This API key is not known here."
    assert refused(ring(), "sk-sage-.") == "This API key is not known here."


def test_the_ring_holds_no_key_in_clear() -> None:
    held = ring()
    words = "".join(repr(getattr(held, name)) for name in vars(held))
    assert KEY.partition(".")[2] not in words
    assert TOKEN.partition(".")[2] not in words


def test_another_pepper_makes_another_digest() -> None:
    made = [
        KeyRing(pepper=pepper, admin_token=TOKEN).digest(KEY) for pepper in (PEPPER, PEPPER, new_pepper())
    ]
    assert made[0] == made[1] != made[2]
    assert len(made[0]) == 32


def test_an_unknown_id_costs_the_work_of_a_known_one(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    digest, compare = hmac.digest, hmac.compare_digest

    def counted_digest(*args: Any) -> bytes:
        done.append("digest")
        return digest(*args)

    def counted_compare(a: bytes, b: bytes) -> bool:
        done.append(f"compare {len(a)} {len(b)}")
        return compare(a, b)

    held = ring()
    monkeypatch.setattr(hmac, "digest", counted_digest)
    monkeypatch.setattr(hmac, "compare_digest", counted_compare)
    work = []
    for key in (KEY, KEY[:-1] + "!", "sk-sage-nobody.x"):
        done.clear()
        with contextlib.suppress(UnauthorizedError):
            held.verify(key.encode())
        work.append(done.copy())
    assert work[0] == work[1] == work[2] == ["digest", "compare 32 32", "compare 32 32"]


def test_a_revoked_key_is_told_so_and_only_to_its_holder() -> None:
    held = ring(revoked=86_400.0)
    assert refused(held, KEY) == "This API key was revoked at 1970-01-02 00:00:00 UTC."
    assert refused(held, KEY + "x") == "This API key is not known here."


def test_a_key_that_was_revoked_takes_less_than_a_kilobyte() -> None:
    """As it comes from the store, where nothing is shared."""
    made = KeyRing(pepper=PEPPER, admin_token=TOKEN)

    def stored(number: int) -> KeyRecord:
        plain = KeyRecord(
            id=f"{number:08x}", name=f"n{number}", digest=b"%032d" % number, scopes=DATA_SCOPES, created=1.0
        )
        raw = msgspec.json.encode(msgspec.structs.replace(plain, revoked=2.0))
        return msgspec.json.decode(raw, type=KeyRecord)

    made.put(stored(0), 100.0)
    gc.collect()
    tracemalloc.start()
    try:
        for number in range(1, 1001):
            made.put(stored(number), 100.0)
        assert tracemalloc.get_traced_memory()[0] / 1000 < 900
    finally:
        tracemalloc.stop()
    assert made.records[f"{7:08x}"] == stored(7)


def test_a_key_expires_on_time_and_another_date_brings_it_back() -> None:
    held = ring(expires=200.0)
    for wall in (150.0, 199.9):
        held.tick(wall)
        assert held.verify(KEY.encode()).id == key_record(held, KEY).id
    before = held.version
    held.tick(200.0)
    assert held.version > before
    assert refused(held, KEY) == "This API key has expired at 1970-01-01 00:03:20 UTC."
    held.put(key_record(held, KEY, expires=300.0), 250.0)
    assert held.verify(KEY.encode()).id == key_record(held, KEY).id
    assert refused(ring(expires=50.0), KEY).startswith("This API key has expired")


def test_time_that_changes_nothing_keeps_the_version() -> None:
    held = ring(expires=200.0)
    held.put(key_record(held, OTHER, expires=300.0), 100.0)
    before = held.version
    held.tick(199.0)
    assert held.version == before
    held.tick(200.0)
    assert held.version == before + 1
    held.tick(201.0)
    assert held.version == before + 1
    held.tick(300.0)
    assert held.version == before + 2


def test_after_a_rotation_the_former_secret_is_good_as_long_as_was_said() -> None:
    held = ring()
    renewed = new_key(key_record(held, KEY).id)
    fields = {"previous": held.digest(KEY), "previous_until": 160.0}
    held.put(key_record(held, renewed, **fields), 100.0)
    assert held.verify(KEY.encode()) == held.verify(renewed.encode())
    held.tick(160.0)
    assert refused(held, KEY) == "This API key is not known here."
    assert held.verify(renewed.encode()).id == key_record(held, KEY).id


def test_what_a_principal_may() -> None:
    asker = Principal("a", scopes=frozenset(("chat", "models")), models=frozenset(("b", "a")))
    asker.check_scope("chat")
    asker.check_scope("")
    with pytest.raises(ForbiddenError, match="may not be used for embeddings; it is for: chat, models"):
        asker.check_scope("embeddings")
    asker.check_model("a")
    with pytest.raises(ForbiddenError, match="may not use the model 'c'; it may use: a, b"):
        asker.check_model("c")
    assert Principal("a").may_use("anything")


def test_which_header_counts() -> None:
    assert presented({b"authorization": b"Bearer abc"}) == b"abc"
    assert presented({b"x-api-key": b" abc "}) == b"abc"
    assert presented({b"authorization": b"Digest abc", b"x-api-key": b"abc"}) == b""
    assert presented({}) == b""


# ---- whatever is sent --------------------------------------------------------------------------------------

RING = ring_of(KEY, OTHER, admin_token=TOKEN)
EDGE = Edge(RING, hosts=("localhost",), bodies=dict.fromkeys(Route, 1000))
HEAD = [(b"host", b"localhost"), (b"content-type", b"application/json")]
GOOD = {key.encode() for key in (KEY, OTHER, TOKEN)}


@st.composite
def near_keys(draw: st.DrawFn) -> bytes:
    """A good key, cut, prolonged, changed in one byte or mixed with another, in any scheme or none."""
    key = bytearray(draw(st.sampled_from(sorted(GOOD))))
    how = draw(st.sampled_from(("whole", "cut", "longer", "changed", "mixed", "anything")))
    if how == "cut":
        del key[draw(st.integers(0, len(key))) :]
    elif how == "longer":
        key += draw(st.binary(max_size=20))
    elif how == "changed":
        key[draw(st.integers(0, len(key) - 1))] = draw(st.integers(0, 255))
    elif how == "mixed":
        other = draw(st.sampled_from(sorted(GOOD)))
        key = bytearray(bytes(key).partition(b".")[0] + b"." + other.partition(b".")[2])
    elif how == "anything":
        key = bytearray(draw(st.binary(max_size=300)))
    return draw(st.sampled_from((b"Bearer ", b"bearer ", b"Bearer  ", b"Basic ", b"", b"Bearer"))) + bytes(
        key
    )


@given(st.sampled_from((b"authorization", b"x-api-key")), near_keys(), st.booleans())
def test_a_key_header_is_a_good_key_or_a_clean_refusal(name: bytes, value: bytes, twice: bool) -> None:
    headers = [*HEAD, (name, value), *([(name, value)] if twice else [])]
    key = presented(dict(headers))
    if key in GOOD and not twice:
        admission = EDGE.admit(b"POST", b"/v1/chat/completions", fold_headers(headers))
        assert admission.principal == RING.verify(key)
        return
    with pytest.raises((BadRequestError, UnauthorizedError)) as caught:
        EDGE.admit(b"POST", b"/v1/chat/completions", fold_headers(headers))
    secret = value.partition(b".")[2]
    assert len(secret) < 20 or secret[:20] not in str(caught.value).encode()
