"""`sage key` and `sage usage`: what is asked for, and what people and programs read."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from sage.common.api import DATA_SCOPES

Run = Callable[..., subprocess.CompletedProcess[str]]

SECRET = "sk-sage-ab12.the-secret-of-it"
KEY: dict[str, Any] = {
    "id": "ab12",
    "name": "ci",
    "state": "active",
    "scopes": ["chat", "models"],
    "models": ["org/tiny"],
    "tenant": "",
    "ceiling": "interactive",
    "rpm": 60,
    "tpm": None,
    "max_concurrent": 8,
    "day_tokens": None,
    "total_tokens": None,
    "expires_at": "2030-01-31T00:00:00Z",
    "created_at": "2026-01-02T03:04:05Z",
    "last_used_at": None,
    "revoked_at": None,
    "former_until": None,
}
MADE = {"key": KEY, "secret": SECRET}
ROW = {
    "day": "2026-11-28",
    "key": "ab12",
    "name": "ci",
    "model": "org/tiny",
    "request_class": "chat",
    "requests": 7,
    "prompt_tokens": 70,
    "completion_tokens": 35,
    "errors": 1,
    "refusals": 2,
}


def asked(stack: Any) -> tuple[str, str, Any]:
    """The last call: method, path and body."""
    method, path, _, body = stack.asked[-1]
    return method, path, body


def test_a_new_key_is_alone_on_stdout(running: Run, stack: Any) -> None:
    stack.answer("POST", "/admin/v1/keys", MADE)
    done = running("key", "create", "ci")
    assert (done.returncode, done.stdout) == (0, f"{SECRET}\n")
    assert "ab12" in done.stderr
    assert "not shown again" in done.stderr
    assert SECRET not in done.stderr
    _, _, body = asked(stack)
    assert (body["name"], body["max_concurrent"], body["rpm"]) == ("ci", 32, None)
    assert sorted(body["scopes"]) == sorted(DATA_SCOPES)


def test_every_option_reaches_the_server(running: Run, stack: Any) -> None:
    stack.answer("POST", "/admin/v1/keys", MADE)
    options = "--scope chat --scope models --model org/a --model b --rpm 5 --tpm 6 --max-concurrent 0"
    options += " --day-tokens 7 --total-tokens 8 --expires 2030-01-31 --ceiling batch --tenant team --json"
    done = running("key", "create", "ci", *options.split())
    assert json.loads(done.stdout) == MADE
    _, _, body = asked(stack)
    assert body == {
        "name": "ci",
        "scopes": ["chat", "models"],
        "models": ["b", "org/a"],
        "rpm": 5,
        "tpm": 6,
        "max_concurrent": None,
        "day_tokens": 7,
        "total_tokens": 8,
        "expires_at": "2030-01-31T00:00:00Z",
        "ceiling": "batch",
        "tenant": "team",
    }


def test_an_expiry_may_be_a_time_from_now(running: Run, stack: Any) -> None:
    stack.answer("POST", "/admin/v1/keys", MADE)
    before = datetime.now(UTC)
    running("key", "create", "ci", "--expires", "30d")
    ends = datetime.fromisoformat(asked(stack)[2]["expires_at"])
    assert before + timedelta(days=30) <= ends <= datetime.now(UTC) + timedelta(days=30)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("create", "a b"), "name: 'a b' is not valid"),
        (("create", "ci", "--rpm", "0"), "rpm: 0 is not valid"),
        (("create", "ci", "--scope", "all"), "scopes: 'all' is not valid"),
        (("create", "ci", "--ceiling", "sky"), "ceiling: 'sky' is not valid"),
        (("create", "ci", "--expires", "soon"), "neither a time from now such as 30d nor a date"),
        (("rotate", "ci", "--grace", "long"), "valid is a whole number with s, m, h or d"),
        (("create", "ci", "--rpm", "many"), "rpm"),
    ],
)
def test_what_cannot_be_is_said_and_not_asked_for(
    running: Run, stack: Any, arguments: Any, words: str
) -> None:
    done = running("key", *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert stack.asked == []


def test_the_list_shows_limits_and_state(running: Run, stack: Any) -> None:
    ended = {**KEY, "id": "cd34", "name": "old", "state": "revoked", "ceiling": "batch", "models": []}
    stack.answer("GET", "/admin/v1/keys", {"keys": [KEY, ended]})
    lines = running("key", "list").stdout.splitlines()
    assert lines[0].split() == ["ID", "NAME", "STATE", "SCOPES", "MODELS", "LIMITS", "LAST", "USED"]
    assert "rpm 60, at once 8, until 2030-01-31 00:00 UTC" in lines[1]
    assert lines[1].split()[:5] == ["ab12", "ci", "active", "chat,models", "org/tiny"]
    assert lines[2].split()[:5] == ["cd34", "old", "revoked", "chat,models", "all"]
    assert "ceiling batch" in lines[2]
    assert json.loads(running("key", "list", "--json").stdout) == {"keys": [KEY, ended]}


def test_one_key(running: Run, stack: Any) -> None:
    stack.answer("GET", "/admin/v1/keys/ci", KEY)
    rows = dict(line.split(maxsplit=1) for line in running("key", "show", "ci").stdout.splitlines()[1:])
    assert (rows["rpm"], rows["tpm"], rows["scopes"]) == ("60", "-", "chat, models")
    assert rows["created_at"] == "2026-01-02 03:04 UTC"
    assert json.loads(running("key", "show", "ci", "--json").stdout) == KEY


def test_a_rotation_with_and_without_grace(running: Run, stack: Any) -> None:
    stack.answer("POST", "/admin/v1/keys/ci/rotate", MADE)
    assert running("key", "rotate", "ci").stdout == f"{SECRET}\n"
    assert asked(stack)[2] == {"grace_s": 0.0}
    running("key", "rotate", "ci", "--grace", "12h")
    assert asked(stack)[2] == {"grace_s": 43_200.0}


def test_a_revocation(running: Run, stack: Any) -> None:
    stack.answer("DELETE", "/admin/v1/keys/ci", {**KEY, "state": "revoked"})
    done = running("key", "revoke", "ci")
    assert (done.returncode, done.stdout) == (0, "")
    assert "key ab12 (ci) is revoked" in done.stderr
    assert json.loads(running("key", "revoke", "ci", "--json").stdout)["state"] == "revoked"


def test_a_key_that_there_is_not(running: Run, stack: Any) -> None:
    stack.answer("DELETE", "/admin/v1/keys/x", {"error": {"message": "There is no key 'x'."}}, 404)
    done = running("key", "revoke", "x")
    assert done.returncode == 5
    assert "There is no key 'x'." in done.stderr


def test_usage_as_a_table_and_as_json(running: Run, stack: Any) -> None:
    report = {"first": "2026-11-01", "last": "2026-11-28", "rows": [ROW, {**ROW, "model": "", "name": ""}]}
    stack.answer("GET", "/admin/v1/usage?", report)
    lines = running("usage").stdout.splitlines()
    assert lines[1].split() == ["2026-11-28", "ci", "org/tiny", "chat", "7", "70", "35", "1", "2"]
    assert lines[2].split()[:4] == ["2026-11-28", "ab12", "-", "chat"]
    assert json.loads(running("usage", "--json").stdout) == report


def test_usage_of_one_key_and_some_days(running: Run, stack: Any) -> None:
    running("usage", "--key", "ci", "--model", "org/tiny", "--from", "2026-11-01", "--to", "2026-11-02")
    path = "/admin/v1/usage?key=ci&model=org%2Ftiny&from=2026-11-01&to=2026-11-02"
    assert asked(stack) == ("GET", path, None)
    done = running("usage", "--from", "yesterday")
    assert done.returncode == 2
    assert "yesterday" in done.stderr
