"""The pure checks of the front door, one head at a time."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage.common.errors import (
    BadRequestError,
    ForbiddenError,
    RequestTooLargeError,
    SageError,
    UnauthorizedError,
)
from sage.gateway.edge import (
    COLD_BODY_BYTES,
    FORM_BYTES,
    Deadlines,
    Edge,
    HeadLimits,
    fold_headers,
    hostname,
    request_id_of,
)
from sage.gateway.keys import new_admin_token, new_default_key, presented
from sage.gateway.testing import key_record, ring_of
from sage.middleware.engines.port import Route

KEY, TOKEN = new_default_key(), new_admin_token()
RING = ring_of(KEY, admin_token=TOKEN)
EDGE = Edge(RING, hosts=("127.0.0.1", "localhost", "[::1]"), bodies=dict.fromkeys(Route, 1000))
ADMIN = Edge(RING, hosts=("127.0.0.1",), bodies={}, admin_only=True, hot={})
CHAT = b"/v1/chat/completions"


def head(**changes: bytes | None) -> dict[bytes, bytes]:
    usual: dict[str, bytes | None] = {
        "host": b"127.0.0.1:8888",
        "authorization": b"Bearer " + KEY.encode(),
        "content-type": b"application/json",
    }
    usual |= {name.replace("_", "-"): value for name, value in changes.items()}
    return {name.encode(): value for name, value in usual.items() if value is not None}


def test_only_an_upload_may_be_large() -> None:
    edge = Edge(RING, hosts=("127.0.0.1",), bodies=dict.fromkeys(Route, 1000), max_file=10**6)
    upload = edge.admit(b"POST", b"/v1/files?x=1", head(content_length=b"1000000"))
    assert (upload.upload, upload.max_body, upload.route) == (True, 10**6 + FORM_BYTES, None)
    for method, target in ((b"GET", b"/v1/files"), (b"POST", b"/v1/files/"), (b"POST", b"/v1/batches")):
        other = edge.admit(method, target, head())
        assert (other.upload, other.max_body) == (False, COLD_BODY_BYTES)
    with pytest.raises(RequestTooLargeError):
        edge.admit(b"POST", b"/v1/files", head(content_length=str(10**6 + FORM_BYTES + 1).encode()))
    assert not ADMIN.admit(b"POST", b"/v1/files", head(authorization=b"Bearer " + TOKEN.encode())).upload


@pytest.mark.parametrize(
    ("header", "total", "count", "words"),
    [(8192, 32768, 100, None), (8193, 1, 1, "8192"), (1, 32769, 1, "32768"), (1, 1, 101, "more than 100")],
)
def test_headers_are_bounded(header: int, total: int, count: int, words: str | None) -> None:
    refusal = HeadLimits().refusal(header, total, count)
    assert (refusal is None) == (words is None)
    assert words is None or words in str(refusal)


@given(st.floats(0, 1e6), st.floats(0, 1e4), st.integers(0, 2**30))
def test_a_body_has_until_its_idle_time_or_its_whole_time_ends(began: float, later: float, size: int) -> None:
    times, now = Deadlines(), began + later
    due = times.of_body(now, began, size)
    assert due <= now + times.body_idle
    assert due <= began + times.body_total + size / times.body_rate
    assert due in (now + times.body_idle, began + times.body_total + size / times.body_rate)


def test_a_good_head_passes() -> None:
    admission = EDGE.admit(b"POST", CHAT + b"?api-version=1", head(content_length=b"1000"))
    assert (admission.route, admission.max_body, admission.principal.admin) == (Route.CHAT, 1000, False)


@pytest.mark.parametrize(
    ("method", "target", "changes", "status"),
    [
        (b"POST", CHAT, {"host": None}, 400),
        (b"POST", CHAT, {"host": b"evil.example"}, 403),
        (b"POST", CHAT, {"host": b"127.0.0.1.evil.example:8888"}, 403),
        (b"POST", CHAT, {"host": b"localhost"}, None),
        (b"POST", CHAT, {"host": b"LOCALHOST:1"}, None),
        (b"POST", CHAT, {"host": b"[::1]:8888"}, None),
        (b"POST", CHAT, {"authorization": None}, 401),
        (b"POST", CHAT, {"authorization": b"Basic " + KEY.encode()}, 401),
        (b"POST", CHAT, {"authorization": b"bearer " + KEY.encode()}, None),
        (b"POST", CHAT, {"authorization": None, "x_api_key": KEY.encode()}, None),
        (b"POST", CHAT, {"authorization": b"Bearer wrong", "x_api_key": KEY.encode()}, 401),
        (b"POST", CHAT, {"authorization": b"Bearer " + KEY.encode()[:-1]}, 401),
        (b"POST", CHAT, {"authorization": b"Bearer " + KEY.partition(".")[0].encode()}, 401),
        (b"POST", CHAT, {"authorization": b"Bearer \xff\xfe"}, 401),
        (b"POST", CHAT, {"origin": b"http://127.0.0.1:8888"}, None),
        (b"POST", CHAT, {"origin": b"http://evil.example"}, 403),
        (b"POST", CHAT, {"origin": b"null"}, 403),
        (b"POST", CHAT, {"sec_fetch_site": b"cross-site"}, 403),
        (b"POST", CHAT, {"sec_fetch_site": b"same-site"}, 403),
        (b"POST", CHAT, {"sec_fetch_site": b"same-origin"}, None),
        (b"GET", b"/v1/models", {"sec_fetch_site": b"cross-site"}, None),
        (b"GET", CHAT, {}, 405),
        (b"DELETE", CHAT, {}, 405),
        (b"POST", b"http://127.0.0.1/v1/models", {}, 400),
        (b"OPTIONS", b"*", {}, 400),
        (b"POST", CHAT, {"content_type": None}, 415),
        (b"POST", CHAT, {"content_type": b"text/plain"}, 415),
        (b"POST", CHAT, {"content_type": b"application/x-www-form-urlencoded"}, 415),
        (b"POST", CHAT, {"content_type": b"Application/JSON; charset=utf-8"}, None),
        (b"POST", CHAT, {"content_encoding": b"gzip"}, 415),
        (b"POST", CHAT, {"content_length": b"1001"}, 413),
        (b"PUT", b"/other", {"content_length": b"70000"}, 413),
        (b"POST", CHAT, {"expect": b"100-Continue"}, None),
        (b"POST", CHAT, {"expect": b"200-ok"}, 417),
    ],
)
def test_each_check(method: bytes, target: bytes, changes: dict[str, Any], status: int | None) -> None:
    if status is None:
        EDGE.admit(method, target, head(**changes))
        return
    with pytest.raises(SageError) as caught:
        EDGE.admit(method, target, head(**changes))
    assert caught.value.status == status
    assert KEY not in str(caught.value)


def test_a_key_is_no_admin_and_an_admin_may_call_the_data_plane() -> None:
    with pytest.raises(SageError) as caught:
        ADMIN.admit(b"GET", b"/admin/v1/status", head())
    assert caught.value.status == 403
    token = b"Bearer " + TOKEN.encode()
    assert ADMIN.admit(b"GET", b"/admin/v1/status", head(authorization=token)).principal.admin
    assert EDGE.admit(b"POST", CHAT, head(authorization=token)).principal.admin


def test_a_scope_is_needed_before_anything_of_the_body_is_judged() -> None:
    ring = ring_of(admin_token=TOKEN)
    ring.put(key_record(ring, KEY, scopes=frozenset(("chat", "models"))), 0.0)
    edge = Edge(ring, hosts=("127.0.0.1",), bodies=dict.fromkeys(Route, 1000))
    assert edge.admit(b"POST", CHAT, head()).principal.scopes == {"chat", "models"}
    for path in (b"/v1/embeddings", b"/v1/completions"):
        with pytest.raises(ForbiddenError, match="it is for: chat, models"):
            edge.admit(b"POST", path, head(content_length=b"9999"))


def test_the_scope_admin_opens_the_admin_listener() -> None:
    ring = ring_of(admin_token=TOKEN)
    ring.put(key_record(ring, KEY, scopes=frozenset(("admin",))), 0.0)
    edge = Edge(ring, hosts=("127.0.0.1",), bodies={}, admin_only=True, hot={})
    assert edge.admit(b"GET", b"/admin/v1/status", head()).principal.admin


def test_no_hot_route_on_the_admin_listener() -> None:
    token = b"Bearer " + TOKEN.encode()
    assert ADMIN.admit(b"POST", CHAT, head(authorization=token)).route is None


def test_an_ambiguous_repeat_is_refused_and_others_are_joined() -> None:
    assert fold_headers([(b"accept", b"a"), (b"accept", b"b")]) == {b"accept": b"a, b"}
    for name in (b"host", b"authorization", b"x-api-key", b"content-type", b"origin"):
        with pytest.raises(SageError, match="twice"):
            fold_headers([(name, b"a"), (name, b"a")])


def test_a_request_id_is_kept_if_it_is_well_formed() -> None:
    assert request_id_of([(b"x-request-id", b"trace-1.2:3")]) == "trace-1.2:3"
    for bad in (b"", b"a b", b"a\tb", b"x" * 129, b"\xff"):
        assert request_id_of([(b"x-request-id", bad)]).startswith("req-")


def test_hostnames() -> None:
    assert hostname(b"Example:80") == b"example"
    assert hostname(b"[::1]:80") == b"[::1]"
    assert hostname(b"[::1]") == b"[::1]"
    assert hostname(b"a:b") == b"a:b"


@given(st.binary(max_size=200))
def test_no_other_bytes_open_the_door(key: bytes) -> None:
    if key.strip() not in (KEY.encode(), TOKEN.encode()):
        with pytest.raises(UnauthorizedError):
            RING.verify(presented({b"authorization": b"Bearer " + key}))


@given(
    st.binary(max_size=100), st.binary(max_size=100), st.dictionaries(st.binary(), st.binary(), max_size=5)
)
def test_any_head_passes_or_is_a_clean_refusal(
    method: bytes, target: bytes, extra: dict[bytes, bytes]
) -> None:
    extra.pop(b"content-length", None)  # digits only, says the parser before us
    with contextlib.suppress(BadRequestError, ForbiddenError):  # and nothing else
        EDGE.admit(method, target, {**extra, **head()})
