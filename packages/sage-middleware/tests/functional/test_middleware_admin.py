"""The admin client against a real server on loopback."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from sage.common import errors
from sage.common.api import RunInfo
from sage.middleware.admin import AdminClient
from sage.middleware.rest import Rest

DECISION = {
    "request_id": "req-1",
    "at": 1.0,
    "request_class": "chat",
    "tenant": "default",
    "model": "m",
    "route": "chat/completions",
    "policy": "fifo",
    "engine": "llm-0",
    "reason": "the only one",
    "outcome": "done",
}
POLICY = {"name": "fifo", "available": ["fifo", "least_load"]}


class Server(ThreadingHTTPServer):
    """Answers by table; remembers what was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[tuple[str, str], tuple[int, bytes]] = {}
        self.asked: list[tuple[str, str, str, bytes]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def answer(self, method: str, path: str, body: Any, status: int = 200) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.answers[method, path] = (status, raw)


class Handler(BaseHTTPRequestHandler):
    server: Server

    def _reply(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.server.asked.append((self.command, self.path, self.headers["Authorization"], body))
        status, raw = self.server.answers[self.command, self.path]
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    do_GET = do_PUT = do_POST = _reply

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def client(server: Server) -> AdminClient:
    return AdminClient(info(server.url), "secret")


def info(url: str) -> RunInfo:
    return RunInfo(
        pid=1, version="0", base_url=f"{url}/v1", admin_url=url, health_url=url, started_at=time.time()
    )


def test_every_read_is_typed_and_authorised(server: Server, client: AdminClient) -> None:
    status = {"version": "1", "uptime_s": 2.0, "policy": "fifo", "engines": [], "queues": []}
    server.answer("GET", "/admin/v1/status", status)
    server.answer("GET", "/admin/v1/engines", {"engines": []})
    server.answer("GET", "/admin/v1/policy", POLICY)
    gauge = {"name": "up", "kind": "gauge", "unit": "s", "help": "h", "samples": [{"value": 1.5}]}
    server.answer("GET", "/admin/v1/metrics", {"metrics": [gauge]})
    server.answer("GET", "/admin/v1/decisions?limit=5", {"decisions": [DECISION]})
    server.answer("GET", "/admin/v1/decisions/req-1", DECISION)
    assert client.status().uptime_s == 2.0
    assert client.engines().engines == []
    assert client.policy().available == ["fifo", "least_load"]
    assert client.metrics().metrics[0].samples[0].value == 1.5
    assert client.decisions(5).decisions == [client.decision("req-1")]
    assert {token for _, _, token, _ in server.asked} == {"Bearer secret"}


def test_setting_the_policy_puts_its_name(server: Server, client: AdminClient) -> None:
    server.answer("PUT", "/admin/v1/policy", POLICY)
    assert client.set_policy("fifo").name == "fifo"
    assert json.loads(server.asked[0][3]) == {"name": "fifo"}


def test_an_id_cannot_leave_its_place_in_the_path(server: Server, client: AdminClient) -> None:
    server.answer("GET", "/admin/v1/decisions/..%2Fpolicy%3Fx", DECISION)
    assert client.decision("../policy?x").request_id == "req-1"


def test_an_admin_url_may_carry_its_prefix(server: Server) -> None:
    server.answer("GET", "/admin/v1/policy", POLICY)
    assert AdminClient(info(f"{server.url}/admin/v1"), "secret").policy().name == "fifo"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, errors.BadRequestError),
        (401, errors.UnauthorizedError),
        (403, errors.ForbiddenError),
        (404, errors.NotFoundError),
        (429, errors.OverloadedError),
        (503, errors.UnavailableError),
        (500, errors.SageError),
    ],
)
def test_the_servers_error_is_raised_as_ours(
    server: Server, client: AdminClient, status: int, kind: type[errors.SageError]
) -> None:
    server.answer("GET", "/admin/v1/policy", {"error": {"message": "No, because."}}, status)
    with pytest.raises(kind, match=r"^No, because\.$") as caught:
        client.policy()
    assert type(caught.value) is kind


@pytest.mark.parametrize("body", [b"<html>", b'{"error": "text"}', b"[1]", b""])
def test_an_error_that_is_not_ours_is_shown_as_it_is(
    server: Server, client: AdminClient, body: bytes
) -> None:
    server.answer("GET", "/admin/v1/policy", body, 500)
    with pytest.raises(errors.SageError, match="answered 500"):
        client.policy()


def test_an_answer_of_another_version_is_explained(server: Server, client: AdminClient) -> None:
    server.answer("GET", "/admin/v1/policy", {"name": "fifo", "kinds": 3})
    with pytest.raises(errors.SageError, match="does not know") as caught:
        client.policy()
    assert "sage down" in caught.value.hint


def test_nothing_that_listens_is_unreachable() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        with pytest.raises(errors.UnreachableError, match="refused"):
            AdminClient(info(url), "secret").status()


def test_a_server_that_never_answers_is_unreachable_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        with pytest.raises(errors.UnreachableError, match="timed out"):
            AdminClient(info(url), "secret", timeout=0.2).status()


def test_a_proxy_variable_is_not_followed(
    server: Server, client: AdminClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    server.answer("GET", "/admin/v1/policy", POLICY)
    assert client.policy().name == "fifo"


def test_events_are_read_up_to_done(server: Server) -> None:
    stream = b': ping\n\ndata: {"n": 1}\n\ndata:{"n": 2}\n\ndata: [DONE]\n\ndata: {"n": 3}\n\n'
    server.answer("POST", "/v1/chat/completions", stream)
    found = list(Rest(f"{server.url}/v1", "key").events("/chat/completions", {"model": "m"}))
    assert found == [{"n": 1}, {"n": 2}]


def test_an_error_event_is_raised_after_what_came_before(server: Server) -> None:
    server.answer("POST", "/v1/x", b'data: {"n": 1}\n\ndata: {"error": {"message": "engine died"}}\n\n')
    events = Rest(f"{server.url}/v1/", "key").events("/x", {})
    assert next(events) == {"n": 1}
    with pytest.raises(errors.EngineError, match="engine died"):
        next(events)


def test_a_stream_without_its_end_is_an_error(server: Server) -> None:
    server.answer("POST", "/v1/x", b'data: {"n": 1}\n\n')
    with pytest.raises(errors.EngineError, match="broke off"):
        list(Rest(f"{server.url}/v1", "key").events("/x", {}))
