"""What the admin API of keys refuses, and how names of keys go."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(module_spawner: Any) -> AsyncIterator[Any]:
    """A gateway without engines."""
    gateway = await module_spawner.start({})
    yield gateway
    assert await gateway.stop() == 0


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("POST", "/keys", {}, 400, "name"),
        ("POST", "/keys", {"name": "a b"}, 400, "name"),
        ("POST", "/keys", {"name": "default"}, 400, "first start"),
        ("POST", "/keys", {"name": "x", "rpmm": 3}, 400, "rpmm"),
        ("POST", "/keys", {"name": "x", "rpm": 0}, 400, "rpm"),
        ("POST", "/keys", {"name": "x", "rpm": "many"}, 400, "rpm"),
        ("POST", "/keys", {"name": "x", "scopes": ["everything"]}, 400, "scopes"),
        ("POST", "/keys", {"name": "x", "scopes": []}, 400, "scopes"),
        ("POST", "/keys", {"name": "x", "ceiling": "sky"}, 400, "ceiling"),
        ("POST", "/keys", {"name": "x", "expires_at": "2020-01-01T00:00:00Z"}, 400, "that is past"),
        ("POST", "/keys", {"name": "x", "expires_at": "2050-01-01T00:00:00"}, 400, "expires_at"),
        ("POST", "/keys", b"[]", 400, ""),
        ("GET", "/keys/none", None, 404, "there are: default ("),
        ("DELETE", "/keys/none", None, 404, "none"),
        ("PATCH", "/keys/none", {"rpm": 1}, 404, "none"),
        ("POST", "/keys/none/rotate", None, 404, "none"),
        ("PATCH", "/keys/default", {}, 400, "nothing is to be changed"),
        ("PATCH", "/keys/default", {"scopes": None}, 400, "scopes"),
        ("PATCH", "/keys/default", {"name": "admin"}, 400, "first start"),
        ("PATCH", "/keys/default", {"digest": ""}, 400, "digest"),
        ("POST", "/keys/default/rotate", {"grace_s": -1}, 400, "grace_s"),
        ("POST", "/keys/default/rotate", {"grace": 5}, 400, "grace"),
        ("GET", "/usage?from=2026-02-01&to=2026-01-01", None, 400, "from ≤ to"),
        ("GET", "/usage?from=yesterday", None, 400, "from"),
        ("GET", "/usage?since=2026-02-01", None, 400, "since"),
        ("GET", "/usage?key=none", None, 404, "none"),
        ("GET", "/keys/sk-sage-abc.secretsecret", None, 400, "neither the id nor the name"),
    ],
)
async def test_what_is_refused(
    gateway: Any, method: str, path: str, body: Any, status: int, words: str
) -> None:
    answer = await gateway.admin(method, path, body)
    assert answer.status == status, answer.body
    assert words in answer.error["message"]
    assert "secretsecret" not in answer.error["message"]


async def test_a_name_is_taken_until_its_key_is_revoked(gateway: Any) -> None:
    ident = (await gateway.admin("POST", "/keys", {"name": "ci"})).json["key"]["id"]
    twin = await gateway.admin("POST", "/keys", {"name": "ci"})
    assert (twin.status, twin.error["code"]) == (409, "conflict")
    other = (await gateway.admin("POST", "/keys", {"name": "other"})).json["key"]["id"]
    assert (await gateway.admin("PATCH", f"/keys/{other}", {"name": "ci"})).status == 409
    assert (await gateway.admin("GET", "/keys/ci")).json["id"] == ident
    assert (await gateway.admin("DELETE", "/keys/ci")).status == 200
    for method, path, body in (("PATCH", "", {"rpm": 1}), ("POST", "/rotate", None)):
        gone = await gateway.admin(method, f"/keys/{ident}{path}", body)
        assert (gone.status, gone.error["code"]) == (409, "conflict")
    assert (await gateway.admin("GET", "/keys/ci")).json["state"] == "revoked"
    second = (await gateway.admin("POST", "/keys", {"name": "ci"})).json["key"]["id"]
    assert (await gateway.admin("GET", "/keys/ci")).json["id"] == second != ident
