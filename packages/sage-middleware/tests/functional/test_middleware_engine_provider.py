"""A provider elsewhere: its refusals in our words, no key to another server, TLS that is checked."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from sage.common.config import EngineConfig
from sage.common.errors import EngineError, OverloadedError, UnreachableError
from sage.middleware.engines.port import Engine, Route
from sage.middleware.engines.registry import engine_kind
from sage.middleware.testing.engines import RecordingSink, call_for

KEY = "provider-secret"
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
ANSWER = b'{"choices": [], "model": "m"}'


class Provider:
    """Answers every request with the same bytes, and keeps what it was sent."""

    def __init__(self, status: int, *headers: str, body: bytes = ANSWER) -> None:
        head = [f"HTTP/1.1 {status} X", f"content-length: {len(body)}", *headers, "", ""]
        self.answer = "\r\n".join(head).encode() + body
        self.asked: list[bytes] = []
        self.port = 0

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
            self.asked.append(head + await reader.readexactly(length))
            writer.write(self.answer)
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            return  # it did not trust us
        finally:
            writer.close()

    @asynccontextmanager
    async def listening(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[None]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=tls)
        self.port = server.sockets[0].getsockname()[1]
        async with server:
            yield


def connect(monkeypatch: pytest.MonkeyPatch, url: str) -> Engine:
    monkeypatch.setenv("PROVIDER_KEY", KEY)
    config = EngineConfig(
        name="far", kind="openai", model="gpt-4o", served_as="m", url=url, api_key_env="PROVIDER_KEY"
    )
    return engine_kind("openai").connect(config, url)


async def ask(engine: Engine) -> RecordingSink:
    sink = RecordingSink()
    try:
        await engine.send(call_for(engine, Route.CHAT, **CHAT), sink)
    finally:
        await engine.close()
    return sink


@pytest.mark.parametrize("status", [401, 403])
async def test_a_key_that_it_refuses_is_ours_and_not_the_clients(
    monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    provider = Provider(status, body=b'{"error": {"message": "Incorrect API key provided: prov***"}}')
    async with provider.listening():
        with pytest.raises(EngineError, match="did not accept this server's key") as caught:
            await ask(connect(monkeypatch, f"http://127.0.0.1:{provider.port}/v1"))
    assert (caught.value.status, caught.value.code) == (502, "engine_error")
    assert "Incorrect" not in str(caught.value)
    assert f"Bearer {KEY}".encode() in provider.asked[0]
    assert b'"model":"gpt-4o"' in provider.asked[0]


@pytest.mark.parametrize(("headers", "wait"), [(("retry-after: 17",), 17.0), ((), 1.0)])
async def test_a_limit_of_the_provider_is_overload_with_its_time(
    monkeypatch: pytest.MonkeyPatch, headers: tuple[str, ...], wait: float
) -> None:
    provider = Provider(429, *headers, body=b'{"error": {"message": "quota of org-123"}}')
    async with provider.listening():
        with pytest.raises(OverloadedError, match="far answered 429") as caught:
            await ask(connect(monkeypatch, f"http://127.0.0.1:{provider.port}"))
    assert caught.value.retry_after == wait
    assert "org-123" not in str(caught.value)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_is_not_followed(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    elsewhere = Provider(200)
    async with elsewhere.listening():
        provider = Provider(status, f"location: http://127.0.0.1:{elsewhere.port}/v1/chat/completions")
        async with provider.listening():
            with pytest.raises(EngineError, match=f"far answered {status}"):
                await ask(connect(monkeypatch, f"http://127.0.0.1:{provider.port}"))
    assert elsewhere.asked == []


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a self-signed certificate for 127.0.0.1, in one file."""
    file = tmp_path_factory.mktemp("tls") / "both.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    command += ["-nodes", "-keyout", str(file), "-out", f"{file}.crt", "-days", "2", "-subj", "/CN=x"]
    try:
        subprocess.run([*command, "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no openssl command")
    file.write_bytes(file.read_bytes() + Path(f"{file}.crt").read_bytes())
    return file


@pytest.mark.parametrize(
    ("trusted", "host"), [(True, "127.0.0.1"), (False, "127.0.0.1"), (True, "localhost")]
)
async def test_tls_is_checked(
    monkeypatch: pytest.MonkeyPatch, certificate: Path, trusted: bool, host: str
) -> None:
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", f"{certificate}.crt")
    else:
        monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    provider = Provider(200)
    async with provider.listening(context):
        engine = connect(monkeypatch, f"https://{host}:{provider.port}/v1")
        if trusted and host == "127.0.0.1":
            assert (await ask(engine)).body == ANSWER
        else:
            with pytest.raises(UnreachableError, match="certificate"):
                await ask(engine)
            assert provider.asked == []
