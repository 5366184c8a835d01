"""The studio over real HTTP, in front of a real admin API."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from http.cookies import SimpleCookie
from typing import Any

import aiohttp
import pytest

from sage.common.errors import ConflictError
from sage.studio.server import Studio, listen


def base(studio: Studio) -> str:
    return studio.url.partition("/login")[0]


@pytest.fixture
async def http() -> Any:
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        yield session


@pytest.fixture
async def logged_in(http: Any, studio: Any) -> Any:
    async with http.get(studio.url) as response:
        assert response.status == 200
    return http


async def test_the_login_link_leads_to_the_page(http: Any, studio: Any) -> None:
    async with http.get(studio.url) as response:
        assert str(response.url) == f"{base(studio)}/"
        assert "SAGE studio" in await response.text()


async def test_the_cookie_is_httponly_strict_and_named_by_port(http: Any, studio: Any) -> None:
    async with http.get(studio.url, allow_redirects=False) as response:
        assert response.status == 303
        cookie = SimpleCookie(response.headers["Set-Cookie"])
    (morsel,) = cookie.values()
    assert morsel.key == f"sage_studio_{base(studio).rpartition(':')[2]}"
    assert morsel["httponly"]
    assert morsel["samesite"] == "strict"
    assert morsel["path"] == "/"


async def test_the_login_link_works_once(http: Any, studio: Any) -> None:
    async with http.get(studio.url, allow_redirects=False) as response:
        assert response.status == 303
    async with http.get(studio.url, allow_redirects=False) as response:
        assert response.status == 403
        assert "Run `sage studio` again" in await response.text()


@pytest.mark.parametrize(
    "path", ["/", "/studio.css", "/studio.js", "/icon.svg", "/api/snapshot", "/api/events", "/docs", "/nope"]
)
async def test_nothing_is_served_without_the_cookie(http: Any, studio: Any, path: str) -> None:
    async with http.get(base(studio) + path) as response:
        assert response.status == 401
    async with http.get(base(studio) + path, headers={"Cookie": 'sage_studio_1=x; "; ='}) as response:
        assert response.status == 401


@pytest.mark.parametrize("host", ["example.org", "127.0.0.1", "127.0.0.1:1", "localhost.example.org:{port}"])
async def test_another_host_name_is_refused(logged_in: Any, studio: Any, host: str) -> None:
    port = base(studio).rpartition(":")[2]
    async with logged_in.get(f"{base(studio)}/", headers={"Host": host.format(port=port)}) as response:
        assert response.status == 403


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
async def test_nothing_can_be_changed(logged_in: Any, studio: Any, method: str) -> None:
    async with logged_in.request(method, f"{base(studio)}/api/snapshot") as response:
        assert response.status == 405


@pytest.mark.parametrize("path", ["/", "/studio.js", "/login?token=x", "/nope"])
async def test_every_answer_carries_the_security_headers(logged_in: Any, studio: Any, path: str) -> None:
    async with logged_in.get(base(studio) + path) as response:
        assert response.headers["Content-Security-Policy"].startswith("default-src 'self'")
        assert "unsafe" not in response.headers["Content-Security-Policy"]
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Cache-Control"] == "no-store"
        assert "Server" not in response.headers


async def test_the_snapshot_is_what_the_admin_api_says(logged_in: Any, studio: Any, admin: Any) -> None:
    async with logged_in.get(f"{base(studio)}/api/snapshot") as response:
        body = await response.json()
    assert body["problem"] == ""
    assert [engine["name"] for engine in body["status"]["engines"]] == ["llm-0", "embed-0"]
    assert body["status"]["policy"] == "least_load"
    assert [decision["request_id"] for decision in body["decisions"]] == ["req-2", "req-1"]
    assert admin.asked == 2


async def test_the_admin_token_never_reaches_the_browser(logged_in: Any, studio: Any) -> None:
    for path in ("/", "/studio.js", "/api/snapshot"):
        async with logged_in.get(base(studio) + path) as response:
            assert "sk-sage" not in await response.text()
            assert "sk-sage" not in str(response.headers)


async def test_events_follow_the_stack(logged_in: Any, studio: Any, admin: Any) -> None:
    async with logged_in.get(f"{base(studio)}/api/events") as response:
        assert response.headers["Content-Type"].startswith("text/event-stream")
        first = await _event(response)
        assert len(first["status"]["engines"]) == 2
        admin.engines.pop()
        async with asyncio.timeout(60):
            while len((await _event(response))["status"]["engines"]) != 1:
                pass


async def test_a_stack_that_went_away_is_said_on_the_page(logged_in: Any, studio: Any, paths: Any) -> None:
    paths.run_file.unlink()
    async with logged_in.get(f"{base(studio)}/api/snapshot") as response:
        body = await response.json()
    assert body["status"] is None
    assert "No stack is running" in body["problem"]


async def test_an_open_stream_does_not_hold_up_the_end(paths: Any) -> None:
    from sage.studio.feed import stack_source

    sock = listen(0)
    server = Studio(stack_source(paths), sock.getsockname()[1], period=3600.0)
    serving = asyncio.create_task(server.serve(sockets=[sock]))
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as http:
        await (await http.get(server.url)).read()
        async with http.get(f"{base(server)}/api/events") as response:
            await _event(response)
            server.should_exit = True
            await asyncio.wait_for(serving, 60)
            assert not (await response.content.read()).strip()


def test_a_port_in_use_is_one_clear_sentence() -> None:
    with listen(0) as taken, pytest.raises(ConflictError, match=r"Port \d+ on 127\.0\.0\.1 cannot be used"):
        listen(taken.getsockname()[1])


async def test_the_command_prints_a_link_serves_and_ends_on_a_signal(paths: Any) -> None:
    call = "import typer; from sage.studio.cli import studio; typer.run(studio)"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", call, "--port", "0",
        stdout=subprocess.PIPE, env={"SAGE_HOME": str(paths.state.parent), "PATH": "/usr/bin"},
    )  # fmt: skip
    assert process.stdout
    url = (await asyncio.wait_for(process.stdout.readline(), 60)).decode().strip()
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as http:
        async with http.get(url) as response:
            assert response.status == 200
        async with http.get(url.partition("/login")[0] + "/api/snapshot") as response:
            assert (await response.json())["status"]["version"] == "26.11.0"
    process.send_signal(signal.SIGINT)
    await asyncio.wait_for(process.wait(), 60)


def test_the_command_imports_no_server() -> None:
    heavy = "('fastapi', 'uvicorn', 'pydantic')"
    probe = f"import sys, sage.studio.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


async def _event(response: aiohttp.ClientResponse) -> dict[str, Any]:
    while True:
        line = await response.content.readline()
        if line.startswith(b"data: "):
            event: dict[str, Any] = json.loads(line[6:])
            return event
