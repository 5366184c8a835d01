"""Health answers, from the snapshot and on a socket."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator

import msgspec
import pytest

from sage.gateway.health import Health, Snapshot
from sage.gateway.serve import bind


class Clock:
    at = 100.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(clock: Clock) -> Iterator[Health]:
    health = Health(bind("127.0.0.1", 0, "ports.health"), now=clock)
    health.start()
    yield health
    health.stop()


def ask(health: Health, method: str, path: str) -> tuple[int, dict[str, object]]:
    connection = http.client.HTTPConnection("127.0.0.1", health.port, timeout=10)
    connection.request(method, path)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, msgspec.json.decode(body)


def test_ready_says_what_is_missing(health: Health, clock: Clock) -> None:
    assert ask(health, "GET", "/readyz") == (503, {"status": "not ready", "missing": ["starting"]})
    health.publish(Snapshot(clock.at, ("engine a is starting",)))
    assert ask(health, "GET", "/readyz")[1]["missing"] == ["engine a is starting"]
    health.publish(Snapshot(clock.at, ()))
    assert ask(health, "GET", "/readyz?verbose") == (200, {"status": "ready", "missing": []})


def test_a_loop_that_hangs_is_not_ready_and_later_not_alive(health: Health, clock: Clock) -> None:
    health.publish(Snapshot(clock.at, ()))
    clock.at += 10
    assert ask(health, "GET", "/readyz")[0] == 503
    assert ask(health, "GET", "/healthz")[0] == 200
    clock.at += 30
    assert ask(health, "GET", "/healthz") == (503, {"status": "stuck", "heartbeat_age_s": 40.0})


def test_other_paths_and_methods(health: Health) -> None:
    assert ask(health, "GET", "/admin/v1/status")[0] == 404
    assert ask(health, "POST", "/healthz")[0] == 405


@pytest.mark.parametrize(
    ("hosts", "status"),
    [
        (("localhost",), 200),
        (("LOCALHOST:8887",), 200),
        (("[::1]:1",), 200),
        (("evil.example",), 403),
        (("127.0.0.1.evil.example:8887",), 403),
        ((), 400),
        (("",), 403),
        (("localhost", "evil.example"), 400),
    ],
)
def test_only_names_of_this_machine_are_answered(health: Health, hosts: tuple[str, ...], status: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", health.port, timeout=10)
    connection.putrequest("GET", "/healthz", skip_host=True)
    for host in hosts:
        connection.putheader("Host", host)
    connection.endheaders()
    response = connection.getresponse()
    body = response.read()
    connection.close()
    assert response.status == status
    assert b"evil" not in body


def test_a_client_that_says_nothing_or_too_much_holds_nobody_up(health: Health) -> None:
    with socket.create_connection(("127.0.0.1", health.port)) as silent:
        with socket.create_connection(("127.0.0.1", health.port)) as loud:
            loud.sendall(b"x" * 20000)
            assert ask(health, "GET", "/healthz")[0] == 200
        silent.settimeout(10)
        assert silent.recv(1) == b""


def test_stop_frees_the_port() -> None:
    health = Health(bind("127.0.0.1", 0, "ports.health"))
    health.start()
    port = health.port
    ask(health, "GET", "/healthz")
    health.stop()
    bind("127.0.0.1", port, "ports.health").close()
